"""Whether vectors are good: pairs of texts that mean the same or not, and reference vectors of another implementation.

It judges whatever `Embed` gives, and knows no worker, file of a model or clock. B and D are batch and dimension.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.model_files.known_models import Quality
from embed_worker.model_files.search import models_folders
from embed_worker.tools.texts import SIMILAR_PAIRS

Float32: TypeAlias = NDArray[np.float32]

# Of the graph's precision, to references in float32. Wrong pooling differs by far more: on 96 texts the default model's
# CLS vectors have cosines of 0.21 to 0.66 to its mean vectors, those of a mean weighted by position 0.93 to 0.997.
MIN_COSINE = 0.9999
MIN_COSINE_FLOAT16 = 0.999
MIN_COSINE_QUANTIZED = 0.95
_MAX_NORM_ERROR = 0.01


class Embed(Protocol):
    """Turns texts into (B, D) float32, with one of the model's prompts where it is named."""

    def __call__(self, texts: Sequence[str], *, prompt_name: str | None = None) -> Float32:
        """Return the vectors in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One requirement: `measured` must be so to `limit`; None could not be measured, and has not passed."""

    name: str
    measured: float | None
    comparison: str
    limit: float
    passed: bool
    note: str = ""

    @classmethod
    def of(cls, name: str, measured: float, comparison: str, limit: float, *, digits: int = 4) -> Gate:
        """Compare. NaN passes nothing."""
        passed = measured > limit if comparison == ">" else measured < limit
        return cls(name=name, measured=round(measured, digits), comparison=comparison, limit=limit, passed=bool(passed))


# Reference vectors --------------------------------------------------------------------------------------------------


class ReferencesError(Exception):
    """A file of reference vectors cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """Texts and what another implementation makes of them.

    Attributes:
        source: Which implementation.
        vectors: (B, D) float32; their lengths do not matter.
        min_cosine: That float32 must reach.
        prompt_name: The prompt that they were made with; None for what the model does by itself.
    """

    source: str
    texts: tuple[str, ...]
    vectors: Float32
    min_cosine: float
    prompt_name: str | None

    @classmethod
    def read(cls, file: Path) -> References:
        """Read a file.

        It is a JSON object: `texts`, and either `embeddings` (lists of numbers) or `embeddings_base64` (for each text
        its little-endian float32); `source`, `min_cosine` and `prompt_name` may be left out.

        Raises:
            ReferencesError: It cannot be read, or is not that.
        """
        try:
            document = json.loads(file.read_bytes())
        except OSError as error:
            raise ReferencesError(f"{file} cannot be read: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise ReferencesError(f"{file} is not JSON.") from error
        members: dict[str, Any] = document if isinstance(document, dict) else {}
        texts = members.get("texts")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ReferencesError(f"{file} needs a list `texts` of strings.")
        vectors = _vectors(file, members)
        if len(vectors) != len(texts):
            raise ReferencesError(f"{file} has {len(texts)} texts and {len(vectors)} vectors.")
        minimum, prompt_name = members.get("min_cosine", MIN_COSINE), members.get("prompt_name")
        if not isinstance(minimum, int | float) or not isinstance(prompt_name, str | None):
            raise ReferencesError(f"{file} has a `min_cosine` or a `prompt_name` of the wrong type.")
        return cls(
            source=str(members.get("source", "not stated")),
            texts=tuple(texts),
            vectors=vectors,
            min_cosine=float(minimum),
            prompt_name=prompt_name,
        )

    def cosines(self, vectors: Float32) -> NDArray[np.float64]:
        """Compare the vectors of the same texts with these: (B,)."""
        return cosines(vectors, self.vectors)


def find_references(name: str) -> References | None:
    """Read the stored reference vectors of a model, or give None where there are none.

    Raises:
        ReferencesError: The file is there and cannot be used.
    """
    files = (folder / "references" / f"{name}.json" for folder in models_folders([]))
    return next((References.read(file) for file in files if file.is_file()), None)


def _vectors(file: Path, members: dict[str, Any]) -> Float32:
    try:
        if "embeddings_base64" in members:
            packed = [binascii.a2b_base64(row, strict_mode=True) for row in members["embeddings_base64"]]
            vectors = np.array([np.frombuffer(row, "<f4") for row in packed], np.float32)
        else:
            vectors = np.array(members["embeddings"], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise ReferencesError(f"{file} has no usable `embeddings` or `embeddings_base64`: {error}.") from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all() or not np.abs(vectors).max(axis=1, initial=0).all():
        raise ReferencesError(f"{file} has vectors that are not of one size, not finite, or zero.")
    return vectors


# Judging ------------------------------------------------------------------------------------------------------------


def judge_pairs(embed: Embed, quality: Quality | None, *, normalizes: bool) -> list[Gate]:
    """Judge lengths and similarities. The first of a pair is embedded as a query, the second as a document.

    Args:
        embed: The model.
        quality: What is required of it; None: of any model, that a pair is closer than any two texts of two pairs.
        normalizes: Whether it says that its vectors have length 1.
    """
    queries, documents = zip(*SIMILAR_PAIRS, strict=True)
    left, right = embed(queries, prompt_name="query"), embed(documents, prompt_name="document")
    gates = []
    if normalizes:
        norms = np.linalg.norm(np.concatenate([left, right]).astype(np.float64), axis=1)
        gates.append(Gate.of("norm_error", float(np.abs(norms - 1).max()), "<", _MAX_NORM_ERROR, digits=7))
    similarities = cosines(left[:, None], right[None])
    similar = similarities.diagonal()
    different = similarities[~np.eye(len(similarities), dtype=bool)]
    if quality is not None:
        gates.append(Gate.of("similar_pairs_min", float(similar.min()), ">", quality.similar_min))
        gates.append(Gate.of("different_pairs_max", float(different.max()), "<", quality.different_max))
    needed = 0.0 if quality is None else quality.separation_min
    gates.append(Gate.of("separation", float(similar.min() - different.max()), ">", needed))
    return gates


def judge_references(embed: Embed, references: References, precision: str, operators: Collection[str]) -> Gate:
    """Compare with the reference vectors, as closely as the graph's precision allows."""
    limit = references.min_cosine
    if is_quantized(operators):
        limit = min(limit, MIN_COSINE_QUANTIZED)
    elif precision != "float32":
        limit = min(limit, MIN_COSINE_FLOAT16)
    vectors = embed(references.texts, prompt_name=references.prompt_name)
    if vectors.shape != references.vectors.shape:
        note = f"dimension {vectors.shape[1]}, and the references have {references.vectors.shape[1]}"
        return Gate(name="references", measured=None, comparison=">", limit=limit, passed=False, note=note)
    return Gate.of("references", float(references.cosines(vectors).min()), ">", limit, digits=7)


def is_quantized(operators: Collection[str]) -> bool:
    """Tell from its operators whether a graph computes with quantised weights."""
    signs = ("quantize", "qlinear", "qattention", "integer", "nbits")
    return any(sign in operator.lower() for operator in operators for sign in signs)


def cosines(a: Float32, b: Float32) -> NDArray[np.float64]:
    """Compute cosines along the last axis in float64; NaN where a vector has no length."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(wide_a, axis=-1) * np.linalg.norm(wide_b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (wide_a * wide_b).sum(axis=-1) / lengths
    return found
