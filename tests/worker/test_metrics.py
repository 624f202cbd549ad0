"""Counters and percentiles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.protocol import ErrorCode
from embed_worker.serving.metrics import WorkerMetrics, percentile


def timing_ms(total: float, **others: float) -> dict[str, float]:
    return {"queue": 0.0, "tokenize": 0.0, "inference": 0.0, "total": total} | others


def test_a_new_worker_has_counted_nothing() -> None:
    snapshot = WorkerMetrics().snapshot()
    for histogram in snapshot.pop("histograms").values():
        assert (set(histogram["buckets"].values()), histogram["sum"], histogram["count"]) == ({0}, 0, 0)
    assert snapshot == {
        "requests": {},
        "texts": 0,
        "truncated_texts": 0,
        "tokens": 0,
        "tokenized_texts": 0,
        "padded_tokens": 0,
        "micro_batches": 0,
        "latency_ms": {"p50": None, "p95": None, "p99": None},
    }


def test_batches_answers_and_errors_are_counted() -> None:
    metrics = WorkerMetrics()
    metrics.count_batch(1, 12)
    metrics.count_batch(2, 25)
    metrics.count_embedded([4, 5], 1, timing_ms(12.5))
    metrics.count_error(ErrorCode.CANCELLED)
    metrics.count_error(ErrorCode.CANCELLED)
    snapshot = metrics.snapshot()
    assert metrics.micro_batches == snapshot["micro_batches"] == 2
    assert snapshot["padded_tokens"] == 37
    assert (snapshot["texts"], snapshot["tokens"], snapshot["truncated_texts"]) == (2, 9, 1)
    assert snapshot["requests"] == {"ok": 1, "cancelled": 2}
    assert snapshot["latency_ms"] == {"p50": 12.5, "p95": 12.5, "p99": 12.5}


def test_percentiles_speak_of_recent_requests() -> None:
    metrics = WorkerMetrics()
    for _ in range(2000):
        metrics.count_embedded([1], 0, timing_ms(1000.0))
    for _ in range(1024):
        metrics.count_embedded([1], 0, timing_ms(1.0))
    assert metrics.snapshot()["latency_ms"]["p99"] == 1.0


def test_each_part_of_a_request_has_a_histogram_in_seconds() -> None:
    metrics = WorkerMetrics()
    for queue, inference, total in ((0.0, 0.1, 0.1), (3.0, 4.0, 7.5), (99_000.0, 1.0, 99_001.0)):
        metrics.count_embedded([1], 0, timing_ms(total, queue=queue, inference=inference))
    histograms = metrics.snapshot()["histograms"]
    queue = histograms["queue_s"]
    assert {name: queue["buckets"][name] for name in ("0.0001", "0.0025", "0.005", "60", "+Inf")} == {
        "0.0001": 1,
        "0.0025": 1,
        "0.005": 2,
        "60": 2,
        "+Inf": 3,
    }
    assert (queue["count"], queue["sum"]) == (3, 99.003)
    assert histograms["inference_s"]["buckets"]["0.0001"] == 1, "a value on a bound is in its bucket"
    assert histograms["tokenize_s"]["sum"] == 0
    assert histograms["total_s"]["sum"] == 99.0086


def test_micro_batches_have_histograms_of_their_texts_and_tokens() -> None:
    metrics = WorkerMetrics()
    for texts, tokens in ((1, 16), (3, 384), (600, 10_000)):
        metrics.count_batch(texts, tokens)
    histograms = metrics.snapshot()["histograms"]
    texts, tokens = histograms["batch_texts"]["buckets"], histograms["batch_tokens"]["buckets"]
    assert [texts[bound] for bound in ("1", "2", "4", "512", "+Inf")] == [1, 1, 2, 2, 3]
    assert [tokens[bound] for bound in ("16", "256", "512", "8192", "+Inf")] == [1, 1, 2, 2, 3]
    assert (histograms["batch_texts"]["sum"], histograms["batch_tokens"]["count"]) == (604, 3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e6)))
def test_buckets_ascend_and_count_what_is_not_above_their_bound(values: list[float]) -> None:
    metrics = WorkerMetrics()
    for value in values:
        metrics.count_embedded([1], 0, timing_ms(value))
    told = metrics.snapshot()["histograms"]["total_s"]
    assert list(told["buckets"]) == sorted(told["buckets"], key=float)
    for bound, count in told["buckets"].items():
        assert count == sum(value / 1e3 <= float(bound) for value in values)
    assert told["count"] == len(values)


@pytest.mark.parametrize(("share", "value"), [(1, 1), (50, 5), (51, 6), (95, 10), (99, 10), (100, 10)])
def test_a_percentile_is_one_of_the_values(share: int, value: float) -> None:
    assert percentile([float(n) for n in range(1, 11)], share) == value


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1000).map(float), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: int) -> None:
    values.sort()
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= share * len(values)
    assert sum(value < found for value in values) * 100 < share * len(values)
