"""What a call gives: vectors or tokens, and what the worker says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Precision: TypeAlias = Literal["float32", "float16", "ubinary"]
Matrix: TypeAlias = NDArray[Any]  # (B, D) float32 or float16, or (B, D / 8 rounded up) uint8, as `Precision` says


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """What `embed_detailed` returns.

    Attributes:
        vectors: (B, D) float32, one row for each input, in order; with `precision`, (B, D) float16 or
            (B, D / 8 rounded up) uint8.
        dimension: D, the components of a vector.
        tokens: Real tokens of each input, special tokens included, before truncation.
        truncated: The indexes of the inputs that were cut.
        model: The model's name.
        fingerprint: Names the vector space; vectors of two fingerprints must not be mixed.
        timing_ms: Milliseconds inside the worker: `queue`, `tokenize`, `inference`, `total`. Of the slowest chunk,
            where the call was split.
        failures: Of a stream that goes on after errors: why a row has no vector, by row. Its numbers are all NaN.
    """

    vectors: Matrix
    dimension: int
    tokens: tuple[int, ...]
    truncated: tuple[int, ...]
    model: str
    fingerprint: str
    timing_ms: Mapping[str, float]
    failures: Mapping[int, Exception] = field(default_factory=dict)

    def __repr__(self) -> str:
        count = len(self.vectors)
        cut = f" truncated={len(self.truncated)}" if self.truncated else ""
        failed = f" failures={len(self.failures)}" if self.failures else ""
        return f"<Embeddings {count} x {self.dimension} {self.model} fingerprint={self.fingerprint}{cut}{failed}>"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokenization:
    """What `tokenize` returns.

    Attributes:
        tokens: Of each input, prompt and special tokens included, before truncation: what `Embeddings.tokens` are.
        truncated: The indexes of the inputs that `embed` would cut.
        offsets: For each input (tokens, 2) int64: where its own tokens begin and end, so that `text[start:end]` is
            the token's part of the text; None where it was not asked for. Special tokens and the prompt's have none.
        model: The model's name.
        fingerprint: Names the vector space, and with it the tokenizer.
    """

    tokens: tuple[int, ...]
    truncated: tuple[int, ...]
    offsets: tuple[NDArray[np.int64], ...] | None
    model: str
    fingerprint: str

    def __repr__(self) -> str:
        return f"<Tokenization of {len(self.tokens)} {self.model} tokens={sum(self.tokens)}>"
