"""What a call gives: vectors, and what the worker says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """What `embed_detailed` returns.

    Attributes:
        vectors: (B, D) float32, one row for each input, in order.
        tokens: Real tokens of each input, special tokens included, before truncation.
        truncated: The indexes of the inputs that were cut.
        model: The model's name.
        fingerprint: Names the vector space; vectors of two fingerprints must not be mixed.
        timing_ms: Milliseconds inside the worker: `queue`, `tokenize`, `inference`, `total`. Of the slowest chunk,
            where the call was split.
        failures: Of a stream that goes on after errors: why a row has no vector, by row. Its numbers are all NaN.
    """

    vectors: Matrix
    tokens: tuple[int, ...]
    truncated: tuple[int, ...]
    model: str
    fingerprint: str
    timing_ms: Mapping[str, float]
    failures: Mapping[int, Exception] = field(default_factory=dict)

    def __repr__(self) -> str:
        count, dimension = self.vectors.shape
        cut = f" truncated={len(self.truncated)}" if self.truncated else ""
        failed = f" failures={len(self.failures)}" if self.failures else ""
        return f"<Embeddings {count} x {dimension} {self.model} fingerprint={self.fingerprint}{cut}{failed}>"
