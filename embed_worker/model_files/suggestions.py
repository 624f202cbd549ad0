"""What was probably meant by the name of a model that is nowhere, in a few words: one suggestion, never a list.

Names are compared with the models that are here, the table of known models, and what other programs call them.
"""

from __future__ import annotations

from collections.abc import Collection

from embed_worker.model_files.known_models import find_known_model, known_models, names_elsewhere
from embed_worker.protocol.spelling import closest

_LIKENESS = 0.75  # names of models have much in common: `e5-small-v2` and `e5-base-v2` are two


def meant_model(name: str, here: Collection[str]) -> str | None:
    """Return the model that a name was probably meant for; None where there is no likeness.

    Args:
        name: As it was typed, `org/name` and `name:tag` included.
        here: The names of models that are there.

    Returns:
        One of `here`, the name of a known model, or `org/name` of a repository of the hub.
    """
    plain = name.partition(":")[0].rpartition("/")[2].casefold()
    if (here_too := {model.casefold(): model for model in here}.get(plain)) is not None:
        return here_too
    if "/" not in name and (meant := names_elsewhere().get(plain)) is not None:
        return meant
    if (known := find_known_model(name) or find_known_model(plain)) is not None:
        return known.name
    return None if "/" in name else closest(plain, [*here, *(model.name for model in known_models())], _LIKENESS)


def advice(name: str, here: Collection[str]) -> str:
    """Return how a sentence ends that says that a name is nowhere: what was meant, or how it comes here."""
    meant = meant_model(name, here)
    if meant in here:
        return f"; did you mean `{meant}`?"
    known = find_known_model(name)
    if known is not None or (meant is None and "/" in name):
        return f": fetch it with `embed-worker pull {name if known is None else known.name}`"
    if meant is not None:
        return f"; did you mean `{meant}`? `embed-worker pull {meant}` fetches it"
    return ": `embed-worker models` lists those that there are"
