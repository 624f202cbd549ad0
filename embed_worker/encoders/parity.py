"""How far what a graph gives may be, or is, from what it was made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embed_worker.encoders.checkpoint import CheckFailedError, Floats
from embed_worker.inference.pooling import cosine_distances


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The largest difference of a component, and the smallest cosine of a row."""

    max_difference: float
    min_cosine: float


def check_parity(found: Floats, expected: Floats, allowed: Parity, *, of: str) -> Parity:
    """Compare rows, (N, D) and (N, D).

    Args:
        found: What the graph gives.
        expected: The reference.
        allowed: The difference is relative to the largest component of the reference, where that is above 1.
        of: What the graph was made of, for the message.

    Raises:
        CheckFailedError: They differ by more.
    """
    difference = float(np.abs(found - expected).max())
    parity = Parity(max_difference=difference, min_cosine=float(1 - cosine_distances(found, expected).max()))
    limit = allowed.max_difference * max(1.0, float(np.abs(expected).max()))
    # The comparisons are written so that NaN fails.
    if not (parity.max_difference <= limit and parity.min_cosine >= allowed.min_cosine):
        raise CheckFailedError(
            f"the graph differs from {of}: largest difference {parity.max_difference:.1e} of {limit:.1e} allowed, "
            f"smallest cosine {parity.min_cosine:.7f} of {allowed.min_cosine} required"
        )
    return parity
