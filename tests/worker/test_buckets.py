"""Batches that are padded to few shapes: the shapes, and that padding changes no vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_worker.accelerators import onnx_provider
from embed_worker.accelerators.openvino import backend as openvino
from embed_worker.inference.buckets import Bucket, Buckets, Padding, SteadyLength
from embed_worker.inference.token_batch import TokenBatch

Steps = Callable[[int, int], Buckets]
STEPS = st.sampled_from([openvino.buckets_of, onnx_provider.buckets_of])


@given(STEPS, st.integers(1, 600), st.integers(1, 2000), st.sampled_from([16, 512, 8192]), st.integers(8, 1024))
def test_a_batch_fits_its_bucket_and_wastes_little(
    steps: Steps, rows: int, tokens: int, budget: int, limit: int
) -> None:
    buckets = steps(budget, limit)
    tokens = min(tokens, limit)
    rows = min(rows, buckets.most_rows(tokens))
    bucket = buckets.of(rows, tokens)
    assert bucket.rows >= rows
    assert bucket.tokens >= tokens
    assert bucket.tokens <= limit
    assert bucket.rows <= max(rows + 8, 2 * rows)
    assert bucket.tokens <= max(tokens + 8, tokens * 3 // 2 + 1) or tokens > 512
    if tokens <= 512:
        assert bucket in set(buckets)


@given(STEPS, st.integers(1, 2000), st.integers(1, 1024), st.sampled_from([16, 512, 8192]))
def test_what_is_run_for_a_batch_of_any_size_is_known_before(steps: Steps, rows: int, tokens: int, budget: int) -> None:
    buckets = steps(budget, 1024)
    most = buckets.most_rows(tokens)
    turns = [min(most, rows - first) for first in range(0, rows, most)]
    run = [buckets.of(turn, tokens) for turn in turns]
    assert buckets.together(rows, tokens) == Bucket(sum(bucket.rows for bucket in run), run[0].tokens)


def test_there_are_few_buckets() -> None:
    assert len(list(openvino.buckets_of(512, 256))) < 150
    assert len(list(openvino.buckets_of(512, 8192))) < 160
    assert len(list(onnx_provider.buckets_of(8192, 512))) < 120
    assert len(list(onnx_provider.buckets_of(8192, 8192))) < 160


def test_the_largest_batches_of_the_scheduler_are_run_whole() -> None:
    for tokens in range(8, 513):
        assert openvino.buckets_of(512, 512).most_rows(tokens) >= min(64, 512 // tokens)
    for tokens in range(8, 8193):
        assert onnx_provider.buckets_of(8192, 8192).most_rows(tokens) >= 8192 // tokens


def test_a_batch_of_one_long_text_has_a_bucket_of_its_own() -> None:
    assert openvino.buckets_of(512, 8192).of(1, 700) == Bucket(1, 1024)


@pytest.mark.parametrize("pad_left", [False, True])
@given(rows=st.integers(1, 40), tokens=st.integers(1, 70), skips=st.booleans())
def test_a_batch_is_in_its_turns_with_masked_tokens_and_copies_of_its_first_text(
    pad_left: bool, rows: int, tokens: int, skips: bool
) -> None:
    chance = np.random.default_rng(rows * 100 + tokens)
    skipped = chance.integers(0, 3, rows) if skips else None
    mask = (np.arange(tokens) < chance.integers(1, tokens + 1, (rows, 1))).astype(np.int64)
    batch = TokenBatch(chance.integers(1, 99, (rows, tokens)), mask, skipped)
    padding = Padding(onnx_provider.buckets_of(96, 128), pad_id=0, pad_left=pad_left)
    turns = padding.turns(batch)
    assert np.array_equal(np.concatenate([turn.ids for turn in turns]), batch.ids)
    for turn in turns:
        count, filled = len(turn.ids), padding.fill(turn)
        assert filled.ids.shape == filled.mask.shape == padding.buckets.of(count, tokens)
        own = slice(-tokens, None) if pad_left else slice(tokens)
        assert np.array_equal(filled.ids[:count, own], turn.ids)
        assert np.array_equal(filled.mask[:count, own], turn.mask)
        assert filled.mask.sum() == filled.mask[:, own].sum()
        assert all(np.array_equal(row, filled.ids[0]) for row in filled.ids[count:])
        assert filled.mask.any(axis=1).all()
        if turn.skipped is not None:
            assert filled.skipped is not None
            assert filled.skipped.tolist() == [*turn.skipped, *[turn.skipped[0]] * (len(filled.ids) - count)]


@given(st.integers(0, 64), st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_texts_alone_keep_the_length_of_the_last_ones_while_that_costs_less_than_a_change(
    spare: int, lengths: list[int]
) -> None:
    steady = SteadyLength(spare)
    for place, length in enumerate(lengths):
        given_length = steady.of(length)
        assert length <= given_length <= length + spare
        assert given_length in lengths[max(0, place - 7) : place + 1]
        assert not any(given_length < other <= length + spare for other in lengths[max(0, place - 7) : place + 1])


def test_a_text_of_rare_length_is_forgotten_after_some_others() -> None:
    steady = SteadyLength(50)
    assert [steady.of(length) for length in (12, 48, *[12] * 9)] == [12, *[48] * 8, 12, 12]
