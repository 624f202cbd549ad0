"""From token vectors to one vector a text: the pooling modes, and L2 normalisation.

B, T and D are batch, tokens and dimension. Everything here is float32 unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from embed_worker.model_files.plan import PoolingMode

Float32: TypeAlias = NDArray[np.float32]
Int64: TypeAlias = NDArray[np.int64]


def pool(hidden: Float32, mask: Int64, modes: tuple[PoolingMode, ...], skipped: Int64 | None = None) -> Float32:
    """Pool token vectors in each of the modes and concatenate the results in their order.

    Args:
        hidden: (B, T, D) token vectors.
        mask: (B, T), 1 for a token and 0 for padding, which may be on either side.
        modes: At least one.
        skipped: (B,) leading tokens to leave out: a prompt's. None for no such tokens.

    Returns:
        (B, D * len(modes)).

    Reference: sentence-transformers, the module `Pooling`.
    """
    # Only places in a text need to be counted, and leading tokens; otherwise 1 and 0 tell as much.
    counts = skipped is not None or PoolingMode.WEIGHTED_MEAN in modes
    positions = token_counts(mask, skipped) if counts else mask
    counted = np.sign(positions) if counts else mask
    pooled = [_pool_one(mode, hidden, mask, positions, counted) for mode in modes]
    return pooled[0] if len(pooled) == 1 else np.concatenate(pooled, axis=1)


def token_counts(mask: Int64, skipped: Int64 | None = None) -> Int64:
    """Count the tokens of each text from 1, wherever its padding is: (B, T) → (B, T).

    Padding gets 0, and so do the first `skipped` tokens of each text, (B,).
    """
    counts: Int64 = mask.cumsum(axis=1) * mask
    return counts if skipped is None else counts * (counts > skipped[:, None])


def _pool_one(mode: PoolingMode, hidden: Float32, mask: Int64, positions: Int64, counted: Int64) -> Float32:
    match mode:
        case PoolingMode.CLS:
            return cls_pool(hidden, mask if counted is mask else _or_all(counted, mask))
        case PoolingMode.LAST_TOKEN:
            return last_token_pool(hidden, counted)
        case PoolingMode.MEAN:
            return mean_pool(hidden, counted)
        case PoolingMode.MEAN_SQRT_LEN:
            return mean_sqrt_len_pool(hidden, counted)
        case PoolingMode.MAX:
            return max_pool(hidden, counted)
        case PoolingMode.WEIGHTED_MEAN:
            return weighted_mean_pool(hidden, positions)
        case _:
            assert_never(mode)


def _or_all(counted: Int64, mask: Int64) -> Int64:
    """Let all tokens of a text count where none does: the first of them is its own, and never padding."""
    return np.where(counted.any(axis=1, keepdims=True), counted, mask)


def mean_pool(hidden: Float32, mask: Int64) -> Float32:
    """Average the vectors of the tokens of each text: (B, T, D), (B, T) → (B, D)."""
    weights = mask.astype(np.float32)
    return weighted_sum(hidden, weights) / _total(weights)


def mean_sqrt_len_pool(hidden: Float32, mask: Int64) -> Float32:
    """Sum the vectors of each text and divide by the square root of its length: (B, T, D), (B, T) → (B, D)."""
    weights = mask.astype(np.float32)
    roots: Float32 = np.sqrt(_total(weights))
    return weighted_sum(hidden, weights) / roots


def weighted_mean_pool(hidden: Float32, positions: Int64) -> Float32:
    """Average with each token's 1-based position in its text as the weight: (B, T, D), (B, T) → (B, D).

    Positions count from the text's own first token, so that padding on the left changes nothing.
    """
    weights = positions.astype(np.float32)
    return weighted_sum(hidden, weights) / _total(weights)


def cls_pool(hidden: Float32, mask: Int64) -> Float32:
    """Take the first token of each text that counts: (B, T, D), (B, T) → (B, D)."""
    first: Float32 = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]
    return first


def last_token_pool(hidden: Float32, mask: Int64) -> Float32:
    """Take the last token of each text that counts, wherever the padding is: (B, T, D), (B, T) → (B, D).

    Zeros where none counts: a prompt that is left out may be all that there is.
    """
    place = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    last: Float32 = hidden[np.arange(len(hidden)), place]
    last[~mask.any(axis=1)] = 0
    return last


def max_pool(hidden: Float32, mask: Int64) -> Float32:
    """Take the largest value of each component among the tokens: (B, T, D), (B, T) → (B, D)."""
    largest: Float32 = np.where(mask[:, :, None] > 0, hidden, np.float32(-np.inf)).max(axis=1)
    return largest


def weighted_sum(hidden: Float32, weights: Float32) -> Float32:
    """Sum token vectors with weights, as one matrix product a text: (B, T, D), (B, T) → (B, D)."""
    product: Float32 = np.matmul(weights[:, None], hidden)[:, 0]
    return product


def _total(weights: Float32) -> Float32:
    """Add up the weights of each text: (B, T) → (B, 1); 1 where there is none, for a division."""
    totals = np.add.reduce(weights, axis=1).tolist()
    return np.array([total or 1 for total in totals], np.float32)[:, None]


def finish_vectors(raw: Float32, dimensions: int | None, *, normalize: bool) -> Float32:
    """Cut vectors to their first components, then scale them to length 1 where asked: the order of Matryoshka models.

    Args:
        raw: (B, D) as pooled.
        dimensions: Components to keep; None for all.
        normalize: Whether to divide by the L2 norm.

    Returns:
        (B, dimensions) float32, C-contiguous. A vector of norm 0 stays 0 for the caller to refuse.
    """
    return finish_and_measure(raw, dimensions, normalize=normalize)[0]


def finish_and_measure(raw: Float32, dimensions: int | None, *, normalize: bool) -> tuple[Float32, list[float]]:
    """Do what `finish_vectors` does; return with it the L2 norm of each vector after the cut."""
    kept = raw[:, :dimensions]
    if len(kept) <= _PIECE_ROWS:
        return _finish(kept, normalize=normalize)
    finished, lengths = np.empty(kept.shape, np.float32), []
    for first in range(0, len(kept), _PIECE_ROWS):
        here = slice(first, first + _PIECE_ROWS)
        finished[here], some = _finish(kept[here], normalize=normalize)
        lengths += some
    return finished, lengths


def _finish(kept: Float32, *, normalize: bool) -> tuple[Float32, list[float]]:
    wide = kept.astype(np.float64)
    lengths: list[float] = norms(wide).tolist()
    if normalize:
        wide /= np.array([length or 1 for length in lengths])[:, None]
    return wide.astype(np.float32), lengths


def at_precision(vectors: Float32, precision: str) -> NDArray[Any]:
    """Return vectors with fewer bits, little-endian and C-contiguous.

    Args:
        vectors: (B, D), finite.
        precision: `float32`; `float16`, rounded to the nearest, ties to even; or `ubinary`, a bit for each component
            that is greater than 0, the first the highest of its byte, and zeros up to the end of the last byte.

    Returns:
        (B, D) float32 or float16, or (B, D / 8 rounded up) uint8.

    Reference: sentence-transformers, `quantize_embeddings`.
    """
    match precision:
        case "float32":
            return vectors.astype("<f4", copy=False)
        case "float16":
            with np.errstate(over="ignore"):  # what is too large becomes infinite, for the caller to refuse
                return vectors.astype("<f2")
        case "ubinary":
            return np.packbits(vectors > 0, axis=1)
        case _:
            raise ValueError(precision)


_PIECE_ROWS = 1024  # norms are computed in float64: the copy of a whole matrix would be twice its size


def norms(vectors: Float32 | NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute L2 norms in float64, where squares of float32 neither overflow nor vanish: (B, D) → (B,)."""
    lengths: NDArray[np.float64] = np.sqrt(np.vecdot(vectors, vectors, dtype=np.float64))
    return lengths


def are_lengths(lengths: Sequence[float]) -> list[bool]:
    """Return which L2 norms are those of vectors that can be used, as `are_usable` says.

    In float64 no square of a float32 overflows or vanishes: a norm is finite and above 0 where its vector is finite and
    not 0, and nowhere else.
    """
    return [0 < length < math.inf for length in lengths]


def cosine_distances(a: Float32, b: Float32) -> NDArray[np.float64]:
    """Compute 1 - cosine in float64, row by row: (B, D), (B, D) → (B,). NaN where a vector has no length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.einsum("bd,bd->b", a.astype(np.float64), b.astype(np.float64)) / (norms(a) * norms(b))
    distances: NDArray[np.float64] = 1 - cosines
    return distances


def are_usable(vectors: Float32) -> NDArray[np.bool_]:
    """Return which vectors are finite and have a length: (B, D) → (B,)."""
    usable: NDArray[np.bool_] = np.logical_and(np.isfinite(vectors).all(axis=1), vectors.any(axis=1))
    return usable
