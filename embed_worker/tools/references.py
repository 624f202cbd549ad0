"""Reference vectors: what another implementation, best sentence-transformers, makes of texts and of a model's folder.

A file is a JSON object. `texts` with `embeddings` (lists of numbers), `embeddings_base64` (for each text its
little-endian float32) or `embeddings_float16` (its float16) are one set; `sets` is a list of sets. A set may have
`request` (members that were sent along: `prompt_name`, `prompt`), `tokens` and `truncated` as a worker answers them.
The file may have `source`, and `model`: what the implementation understood of the folder.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.model_files.known_models import find_known_model
from embed_worker.model_files.search import models_folders

Float32: TypeAlias = NDArray[np.float32]

# A folder's own, at its root; `make reference` writes one.
FILE_NAME = "references.json"
_REQUEST = ("prompt_name", "prompt", "dimensions", "normalize")


class ReferencesError(Exception):
    """A file of reference vectors cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceSet:
    """Texts of one request and what they give.

    Attributes:
        request: Members that go along with the texts.
        vectors: (B, D) float32.
        tokens: Of each text, before truncation; None where it is not known.
        truncated: The indexes of texts that are cut; None where it is not known.
    """

    request: Mapping[str, Any]
    texts: tuple[str, ...]
    vectors: Float32
    tokens: tuple[int, ...] | None = None
    truncated: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Return in one word what is asked for besides the texts: nothing, or a prompt."""
        return str(self.request.get("prompt_name") or ("prompt" if self.request.get("prompt") else ""))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """All that a file has.

    Attributes:
        source: Which implementation, of which weights.
        settings: What it understood of the folder, as `info` names it: `pooling`, `normalize`, `max_tokens`, `prompts`,
            `default_prompt_name`, `dimension`; empty where the file does not say.
        min_cosine: What the vectors of a float32 graph must reach; None for what the tools require.
    """

    source: str
    sets: tuple[ReferenceSet, ...]
    settings: Mapping[str, Any]
    min_cosine: float | None

    @classmethod
    def read(cls, file: Path) -> References:
        """Read a file.

        Raises:
            ReferencesError: It cannot be read, or is not that.
        """
        try:
            document = json.loads(file.read_bytes())
        except OSError as error:
            raise ReferencesError(f"{file} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ReferencesError(f"{file} is not JSON") from error
        members: dict[str, Any] = document if isinstance(document, dict) else {}
        minimum, settings = members.get("min_cosine"), members.get("model", {})
        if not isinstance(minimum, int | float | None) or not isinstance(settings, dict):
            raise ReferencesError(f"{file} has a `min_cosine` or a `model` of the wrong type")
        sets = members.get("sets", [members])
        if not isinstance(sets, list) or not sets:
            raise ReferencesError(f"{file} has `sets` that are no list of sets")
        return cls(
            source=str(members.get("source") or members.get("reference") or "not stated"),
            sets=tuple(_set(file, members) for members in sets),
            settings=settings,
            min_cosine=None if minimum is None else float(minimum),
        )


def find_references(name: str, folder: Path | None = None) -> References | None:
    """Read the reference vectors of a model: those in its folder, or those we have of a known model of its name.

    Raises:
        ReferencesError: The file is there and cannot be used.
    """
    known = find_known_model(name)
    stored = [Path("references", f"{name if known is None else known.name}.json")]
    files = [below / path for below in models_folders([]) for path in stored]
    if folder is not None:
        files.insert(0, folder / FILE_NAME)
    return next((References.read(file) for file in files if file.is_file()), None)


def _set(file: Path, members: object) -> ReferenceSet:
    members = members if isinstance(members, dict) else {}
    texts = members.get("texts")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ReferencesError(f"{file} needs a list `texts` of strings")
    vectors = _vectors(file, members)
    if len(vectors) != len(texts):
        raise ReferencesError(f"{file} has {len(texts)} texts and {len(vectors)} vectors")
    request = members.get("request", {"prompt_name": members.get("prompt_name")})
    if not isinstance(request, dict) or not set(request) <= set(_REQUEST):
        raise ReferencesError(f"{file} has a `request` with other members than {', '.join(_REQUEST)}")
    tokens = _integers(file, members, "tokens")
    if tokens is not None and len(tokens) != len(texts):
        raise ReferencesError(f"{file} has {len(texts)} texts and {len(tokens)} counts of tokens")
    return ReferenceSet(
        request={name: value for name, value in request.items() if value is not None},
        texts=tuple(texts),
        vectors=vectors,
        tokens=tokens,
        truncated=_integers(file, members, "truncated"),
    )


def _integers(file: Path, members: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    values = members.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ReferencesError(f"{file} has `{name}` that are no list of whole numbers")
    return tuple(values)


def _vectors(file: Path, members: Mapping[str, Any]) -> Float32:
    form = next((name for name in _READERS if name in members), "embeddings")
    try:
        vectors = _READERS[form](members[form])
    except (KeyError, TypeError, ValueError) as error:
        raise ReferencesError(
            f"{file} has no usable {' or '.join(f'`{name}`' for name in _READERS)}: {error}"
        ) from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all() or not np.abs(vectors).max(axis=1, initial=0).all():
        raise ReferencesError(f"{file} has vectors that are not of one size, not finite, or zero")
    return vectors


def _packed(kind: str) -> Callable[[Any], Float32]:
    def read(rows: Any) -> Float32:
        packed = [binascii.a2b_base64(row, strict_mode=True) for row in rows]
        return np.array([np.frombuffer(row, kind) for row in packed], np.float32)

    return read


_READERS: dict[str, Callable[[Any], Float32]] = {
    "embeddings_float16": _packed("<f2"),
    "embeddings_base64": _packed("<f4"),
    "embeddings": lambda rows: np.array(rows, np.float32),
}
