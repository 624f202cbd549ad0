"""Which class of transformers builds a folder's tokenizer: version 5 lets the class decide, and not tokenizer.json.

The table beside this file is the arbiter's own, with its version: `python -m tests.reference.tokenizer_classes`.
"""

from __future__ import annotations

import functools
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

# Builds nothing: it takes tokenizer.json as it is.
FROM_THE_JSON = "TokenizersBackend"
# Classes written in Python, which do not read tokenizer.json.
IN_PYTHON = "PythonBackend"

# Tokenizers of Mistral's own package; without it transformers takes tokenizer.json.
_MISTRAL = "MistralCommonBackend"


@dataclass(frozen=True, slots=True)
class _Table:
    builders: Mapping[str, str]
    registered: Mapping[str, str]
    mislabelled: frozenset[str]


@functools.cache
def _table() -> _Table:
    data = pkgutil.get_data(__name__, "tokenizer_classes.json")  # the package may lie in an archive
    document = json.loads(data or b"")
    return _Table(
        {name: builder for builder, names in document["builders"].items() for name in names},
        {kind: name for name, kinds in document["registered"].items() for kind in kinds},
        frozenset(document["mislabelled"]),
    )


def builder_of(model_type: str | None, declared: str | None, *, is_byte_level: bool) -> str:
    """Return the name of the class whose constructor builds the tokenizer.

    Args:
        model_type: Of config.json.
        declared: `tokenizer_class` of tokenizer_config.json, or else of config.json.
        is_byte_level: tokenizer.json works on bytes.

    Reference: transformers 5, `AutoTokenizer.from_pretrained`.
    """
    table = _table()
    name = None if declared is None else declared.removesuffix("Fast")
    registered = table.registered.get(model_type or "")
    is_mislabelled = model_type in table.mislabelled
    if name == "LlamaTokenizer" and is_byte_level and registered != _MISTRAL and not is_mislabelled:
        return FROM_THE_JSON
    if name is not None and registered is not None and registered != name:
        if registered in (FROM_THE_JSON, IN_PYTHON, _MISTRAL):
            return FROM_THE_JSON
        if is_mislabelled:
            name = registered
    elif name is None:
        name = registered
    # A name that transformers does not know, `PreTrainedTokenizerFast` among them, leaves tokenizer.json as it is.
    return table.builders.get(name or "", FROM_THE_JSON)
