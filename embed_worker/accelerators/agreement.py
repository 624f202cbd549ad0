"""The golden test: whether a provider's vectors are the CPU's.

A provider is believed for its vectors and not for its name: zeros, NaN and wrong values have all come without an error.
B and T are batch and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embed_worker.inference.backend import TOLERANCES, Backend
from embed_worker.inference.pooling import Float32, cosine_distances, norms
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer

# The smallest cosine to the CPU's vectors that passes, by the precision that is computed in. The CPU runs a quantised
# graph as quantised as any provider does, so that is no excuse.
MIN_COSINE = {precision: 1 - tolerance for precision, tolerance in TOLERANCES.items()}
_MIN_NORM = 0.1

_GOLDEN_TEXT = (
    "a vector database keeps one row for every text and finds the nearest of them by the angle between two rows while "
    "rain falls on 47 green hills, größer als Straßen in 東京, et l'été passe à pied: 3.14 € per kg; SELECT * FROM t;"
)


class ProofError(Exception):
    """A provider's vectors are not the CPU's; the message says how they differ."""


def golden_batches(tokenizer: TextTokenizer, rows: int, tokens: int, *, pad_left: bool) -> list[TokenBatch]:
    """Make the batches that every provider is compared on: a full one, and one with padding and fewer rows.

    Args:
        tokenizer: Its limit may keep the full one below `tokens`.
        rows: Of the full one.
        tokens: Of its rows.
        pad_left: On which side padding goes, as the model has it.
    """
    words = _GOLDEN_TEXT.split()
    texts = [" ".join((words[row:] + words[:row]) * (tokens // len(words) + 1)) for row in range(rows)]
    ids = [text.ids[:tokens] for text in tokenizer.encode(texts, "")]
    lengths = [max(1, tokens * share // 8) for share in (1, 3, 5, 7, 2)][: max(1, rows - 1)]
    shorter = [row[:length] for row, length in zip(ids, lengths, strict=False)]
    return [TokenBatch.of_rows(some, pad_id=tokenizer.pad_id, pad_left=pad_left) for some in (ids, shorter)]


def agreement_with_cpu(
    embed: Callable[[TokenBatch], Float32], cpu: Backend, batches: Sequence[TokenBatch], precision: str
) -> float:
    """Compare a provider's vectors with the CPU's; return the smallest cosine.

    Raises:
        ProofError: They are not finite, have no length, have another shape, or another direction.
    """
    smallest = 1.0
    for batch in batches:
        expected, vectors = cpu.embed(batch, exclusive=True), embed(batch)
        if vectors.shape != expected.shape:
            raise ProofError(f"gives an output of shape {vectors.shape} where the CPU gives {expected.shape}")
        if not np.isfinite(vectors).all():
            raise ProofError("gives values that are not finite")
        shortest = float(norms(vectors).min())
        if not shortest > _MIN_NORM:
            raise ProofError(f"gives vectors of length {shortest:.2g}")
        smallest = min(smallest, 1 - float(cosine_distances(vectors, expected).max()))
    needed = MIN_COSINE.get(precision, MIN_COSINE["float32"])
    if not smallest >= needed:
        raise ProofError(f"differs from the CPU: a cosine is {smallest:.6f}, and {needed} is needed")
    return smallest
