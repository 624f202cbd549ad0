"""Counters and percentiles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.protocol import ErrorCode
from embed_worker.serving.metrics import WorkerMetrics, percentile


def test_a_new_worker_has_counted_nothing() -> None:
    assert WorkerMetrics().snapshot() == {
        "requests": {},
        "texts": 0,
        "tokens": 0,
        "padded_tokens": 0,
        "micro_batches": 0,
        "latency_ms": {"p50": None, "p95": None, "p99": None},
    }


def test_batches_answers_and_errors_are_counted() -> None:
    metrics = WorkerMetrics()
    metrics.micro_batches, metrics.padded_tokens = 2, 37
    metrics.count_embedded([4, 5], 12.5)
    metrics.count_error(ErrorCode.CANCELLED)
    metrics.count_error(ErrorCode.CANCELLED)
    snapshot = metrics.snapshot()
    assert metrics.micro_batches == snapshot["micro_batches"] == 2
    assert snapshot["padded_tokens"] == 37
    assert (snapshot["texts"], snapshot["tokens"]) == (2, 9)
    assert snapshot["requests"] == {"ok": 1, "cancelled": 2}
    assert snapshot["latency_ms"] == {"p50": 12.5, "p95": 12.5, "p99": 12.5}


def test_percentiles_speak_of_recent_requests() -> None:
    metrics = WorkerMetrics()
    for _ in range(2000):
        metrics.count_embedded([1], 1000.0)
    for _ in range(1024):
        metrics.count_embedded([1], 1.0)
    assert metrics.snapshot()["latency_ms"]["p99"] == 1.0


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
