"""Pooling against a loop over single texts in float64, with padding on either side and prompts left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embed_worker.inference.pooling import are_lengths, are_usable, finish_and_measure, finish_vectors, norms, pool
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.model_files.plan import PoolingMode

D = 3  # B, T and D are batch, tokens and dimension


def pool_one_text(tokens: NDArray[np.float64], mode: PoolingMode, skipped: int) -> NDArray[np.float64]:
    """Pool one text without padding, (T, D) → (D,), as plainly as possible."""
    kept = tokens[skipped:]
    places = [float(place) for place in range(skipped + 1, len(tokens) + 1)]
    total = [sum(row[d] for row in kept) for d in range(D)]
    match mode:
        case PoolingMode.CLS:
            values = list(kept[0])
        case PoolingMode.LAST_TOKEN:
            values = list(tokens[-1])
        case PoolingMode.MAX:
            values = [max(row[d] for row in kept) for d in range(D)]
        case PoolingMode.MEAN:
            values = [total[d] / len(kept) for d in range(D)]
        case PoolingMode.MEAN_SQRT_LEN:
            values = [total[d] / math.sqrt(len(kept)) for d in range(D)]
        case PoolingMode.WEIGHTED_MEAN:
            weighted = [sum(place * row[d] for place, row in zip(places, kept, strict=True)) for d in range(D)]
            values = [value / sum(places) for value in weighted]
    return np.array(values, np.float64)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[NDArray[np.float64]], list[int], bool]:
    """Draw texts as token vectors, the leading tokens to leave out, and the side of the padding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    texts = [rng.normal(size=(length, D)).astype(np.float32).astype(np.float64) for length in lengths]
    skipped = [draw(st.integers(0, length - 1)) for length in lengths]
    return texts, skipped, draw(st.booleans())


def padded(texts: list[NDArray[np.float64]], *, left: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    longest = max(map(len, texts))
    hidden = np.full((len(texts), longest, D), 1e6, np.float32)  # padding that would be noticed
    mask = np.zeros((len(texts), longest), np.int64)
    for place, text in enumerate(texts):
        here = slice(longest - len(text), None) if left else slice(len(text))
        hidden[place, here] = text
        mask[place, here] = 1
    return hidden, mask


MODES = st.lists(st.sampled_from(PoolingMode), min_size=1, max_size=6, unique=True).map(tuple)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(batches(), MODES, st.booleans())
def test_pooling_equals_a_loop_over_single_texts(
    batch: tuple[list[NDArray[np.float64]], list[int], bool], modes: tuple[PoolingMode, ...], has_prompts: bool
) -> None:
    texts, skipped, left = batch
    hidden, mask = padded(texts, left=left)
    pooled = pool(hidden, mask, modes, np.array(skipped) if has_prompts else None)
    expected = [
        np.concatenate([pool_one_text(text, mode, skip if has_prompts else 0) for mode in modes])
        for text, skip in zip(texts, skipped, strict=True)
    ]
    assert pooled.dtype == np.float32
    assert pooled.shape == (len(texts), D * len(modes))
    np.testing.assert_allclose(pooled, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mode", PoolingMode)
def test_the_side_of_the_padding_changes_nothing(mode: PoolingMode) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.normal(size=(length, D)) for length in (1, 4, 7)]
    right, left = (pool(*padded(texts, left=side), (mode,)) for side in (False, True))
    np.testing.assert_allclose(left, right, rtol=1e-6)


@pytest.mark.parametrize("mode", [PoolingMode.MEAN, PoolingMode.MEAN_SQRT_LEN, PoolingMode.WEIGHTED_MEAN])
def test_a_text_of_which_everything_is_left_out_has_no_length(mode: PoolingMode) -> None:
    hidden, mask = padded([np.ones((2, D)), np.ones((3, D))], left=False)
    vectors = pool(hidden, mask, (mode,), np.array([2, 1]))
    assert are_usable(vectors).tolist() == [False, True]


def test_a_maximum_over_nothing_cannot_be_used() -> None:
    hidden, mask = padded([np.ones((2, D))], left=True)
    assert are_usable(pool(hidden, mask, (PoolingMode.MAX,), np.array([5]))).tolist() == [False]


# Finishing

VECTORS = st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VECTORS, st.integers(1, 5), st.booleans())
def test_vectors_are_cut_first_and_then_scaled(raw: list[list[float]], dimensions: int, normalize: bool) -> None:
    vectors = np.array(raw, np.float32)
    finished = finish_vectors(vectors, dimensions, normalize=normalize)
    assert finished.dtype == np.float32
    assert finished.flags.c_contiguous
    for row, result in zip(vectors.astype(np.float64)[:, :dimensions], finished, strict=True):
        length = math.sqrt(sum(value * value for value in row))
        expected = row / length if normalize and length > 0 else row
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-30)


def test_all_dimensions_are_kept_unless_fewer_are_asked_for() -> None:
    vectors = np.array([[3, 4]], np.float32)
    assert finish_vectors(vectors, None, normalize=False).tolist() == [[3, 4]]
    np.testing.assert_allclose(finish_vectors(vectors, None, normalize=True), [[0.6, 0.8]])


def test_a_vector_of_zeros_stays_for_the_caller_to_refuse() -> None:
    finished = finish_vectors(np.zeros((1, 2), np.float32), None, normalize=True)
    assert finished.tolist() == [[0, 0]]
    assert are_usable(finished).tolist() == [False]


@pytest.mark.parametrize(
    ("vector", "usable"),
    [
        ([1, 0], True),
        ([0, 0], False),
        ([math.nan, 1], False),
        ([math.inf, 1], False),
        ([-math.inf, 1], False),
        ([3e38, 3e38], True),
        ([1e-45, 0], True),
    ],
)
def test_only_finite_vectors_with_a_length_are_usable(vector: list[float], usable: bool) -> None:
    vectors: NDArray[Any] = np.array([vector], np.float32)
    assert are_usable(vectors).tolist() == [usable]
    assert are_lengths(finish_and_measure(vectors, None, normalize=False)[1]) == [usable]
    if usable:
        np.testing.assert_allclose(norms(finish_vectors(vectors, None, normalize=True)), 1, rtol=1e-6)


def test_the_last_token_of_a_text_that_is_all_prompt_is_zeros_as_in_sentence_transformers() -> None:
    hidden = np.arange(1, 13, dtype=np.float32).reshape(2, 2, D)
    mask, skipped = np.array([[1, 0], [1, 1]]), np.array([1, 1])
    pooled = pool(hidden, mask, (PoolingMode.LAST_TOKEN, PoolingMode.CLS), skipped)
    assert pooled.tolist() == [[0, 0, 0, 1, 2, 3], [10, 11, 12, 10, 11, 12]]


@pytest.mark.parametrize("left", [False, True])
def test_the_first_token_of_a_text_that_is_all_prompt_is_its_own_and_no_padding(left: bool) -> None:
    texts = [np.full((2, D), 5.0), np.full((4, D), 7.0)]
    hidden, mask = padded(texts, left=left)
    hidden[mask == 0] = 9
    assert pool(hidden, mask, (PoolingMode.CLS,), np.array([2, 2])).tolist() == [[5] * D, [7] * D]


@pytest.mark.parametrize("tokens", [1, 512, 513, 2000])
def test_the_mask_of_a_text_that_runs_alone_has_all_of_its_tokens_and_cannot_be_spoilt(tokens: int) -> None:
    batch = TokenBatch.of_rows([np.arange(tokens)], pad_id=0, pad_left=False)
    assert batch.mask.shape == batch.ids.shape == (1, tokens)
    assert batch.mask.sum() == tokens
    if tokens <= 512:  # it is shared
        with pytest.raises(ValueError, match="read-only"):
            batch.mask[0, 0] = 0


@pytest.mark.parametrize("normalize", [True, False])
def test_many_vectors_are_finished_as_few_are(normalize: bool) -> None:
    vectors = np.random.default_rng(1).standard_normal((2500, 5)).astype(np.float32)
    finished, lengths = finish_and_measure(vectors, 4, normalize=normalize)
    apart = [finish_and_measure(row[None], 4, normalize=normalize) for row in vectors]
    np.testing.assert_array_equal(finished, np.concatenate([rows for rows, _ in apart]))
    assert lengths == [length for _, (length,) in apart]
