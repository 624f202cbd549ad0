"""What is known of published models and their folders do not say: prompts, pooling, gates of quality, where they are.

Reads `models/known_models.toml`, which names the source of every fact; standard library only. The table is a help:
where it is missing or damaged, the worker serves what folders say themselves.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_log = logging.getLogger(__name__)

_FILE_NAME = "known_models.toml"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Gates of `embed-worker check`, in cosine: of similar pairs, of different pairs, and of the gap between them."""

    similar_min: float
    different_max: float
    separation_min: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One published model.

    Attributes:
        name: The name of its folder.
        repository: Where it is on the Hugging Face hub, as `org/name`.
        aliases: Other repositories of the same weights.
        revision: A commit of `repository`, 40 hex digits; None where no source states one.
        onnx_repository: Where its graph is; None where that is `repository`.
        onnx_revision: A commit of `onnx_repository`.
        license: As the hub abbreviates it, `apache-2.0`.
        pooling: The modes whose vectors are concatenated, as sentence-transformers names them.
        normalize: Whether its published modules L2-normalise.
        max_tokens: Where sentence-transformers cuts a text, special tokens included.
        prompts: By name, joined verbatim before the text; empty where it wants none.
        sources: Where each of these facts is from.
    """

    name: str
    repository: str
    aliases: tuple[str, ...]
    revision: str | None
    onnx_repository: str | None
    onnx_revision: str | None
    license: str
    pooling: tuple[str, ...]
    normalize: bool
    dimension: int
    max_tokens: int
    prompts: Mapping[str, str]
    quality: Quality | None
    sources: tuple[str, ...]


def find_known_model(name: str) -> KnownModel | None:
    """Find a model by its folder's name or as `org/name`, upper and lower case alike; None where it is not known."""
    wanted = name.casefold()
    for model in known_models():
        repositories = [repository.casefold() for repository in (model.repository, *model.aliases)]
        names = [model.name.casefold(), *(repository.rpartition("/")[2] for repository in repositories)]
        if wanted in (repositories if "/" in name else names):
            return model
    return None


def names_elsewhere() -> Mapping[str, str]:
    """Read what other programs call models, in lower case: each is a name of the table, or `org/name` on the hub."""
    names = _table().get("elsewhere", {})
    return {name: meant for name, meant in names.items() if isinstance(meant, str)} if isinstance(names, dict) else {}


def known_models() -> tuple[KnownModel, ...]:
    """Read the table. What is wrong with it is logged, and the models that it concerns are left out."""
    entries = _table().get("models", [])
    models = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            models.append(_known_model(entry))
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("known_models.toml has an entry that is not used reason=%s", error)
    return tuple(models)


def _table() -> dict[str, Any]:
    try:
        return _parsed(_read_table())
    except FileNotFoundError:
        _log.warning("there is no known_models.toml: prompts and pooling come from models' folders alone")
    except (OSError, ValueError) as error:
        _log.warning("known_models.toml cannot be read, and is not used reason=%s", error)
    return {}


@functools.lru_cache(maxsize=1)  # a host may ask for a model that is nowhere again and again
def _parsed(table: bytes) -> dict[str, Any]:
    import tomllib  # with its regular expressions, some milliseconds that most starts need not spend

    return tomllib.loads(table.decode())


def _read_table() -> bytes:
    """Return the packaged table: the wheel carries models/ inside the package; in a checkout it lies beside it."""
    package = Path(__file__).parents[1]
    loader: Any = getattr(__spec__, "loader", None)
    with contextlib.suppress(OSError):
        return bytes(loader.get_data(str(package / "models" / _FILE_NAME)))  # also out of an archive
    return (package.parent / "models" / _FILE_NAME).read_bytes()


def _known_model(entry: Mapping[str, Any]) -> KnownModel:
    entry = _of_type(dict, entry)
    prompts = entry.get("prompts", {})
    quality = entry.get("quality")
    return KnownModel(
        name=_of_type(str, entry["name"]),
        repository=_of_type(str, entry["repository"]),
        aliases=_strings(entry.get("aliases", [])),
        revision=_optional(entry.get("revision")),
        onnx_repository=_optional(entry.get("onnx_repository")),
        onnx_revision=_optional(entry.get("onnx_revision")),
        license=_of_type(str, entry["license"]),
        pooling=_strings(entry["pooling"]),
        normalize=_of_type(bool, entry["normalize"]),
        dimension=_of_type(int, entry["dimension"]),
        max_tokens=_of_type(int, entry["max_tokens"]),
        prompts={name: _of_type(str, prompt) for name, prompt in _of_type(dict, prompts).items()},
        quality=None if quality is None else _quality(quality),
        sources=_strings(entry["sources"]),
    )


def _quality(entry: Mapping[str, Any]) -> Quality:
    return Quality(
        similar_min=float(entry["similar_min"]),
        different_max=float(entry["different_max"]),
        separation_min=float(entry["separation_min"]),
    )


def _strings(value: object) -> tuple[str, ...]:
    return tuple(_of_type(str, item) for item in _of_type(list, value))


def _optional(value: object) -> str | None:
    return None if value is None else _of_type(str, value)


def _of_type(kind: type[T], value: object) -> T:
    if type(value) is not kind:  # a bool is an int to isinstance, and no dimension
        raise ValueError(f"{value!r} is not {kind.__name__}")
    return value
