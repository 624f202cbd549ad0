"""The block of `check --provider coreml`, with workers that answer what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embed_worker import protocol
from embed_worker.accelerators.coreml.shapes import buckets_of
from embed_worker.tools.provider_report import block, measure_buckets, text_of
from embed_worker.tools.quality import Embedded


class FakeWorker:
    """Tokenises every word to two, gives one vector, and proves a bucket when it has been asked often enough."""

    def __init__(self, seconds: float, turn: float = 0.0) -> None:
        self.seconds, self.turn = seconds, turn
        self.asked_for: list[int] = []
        self.polls = 0

    def ask(self, request: protocol.Request) -> dict[str, Any]:
        if isinstance(request, protocol.Metrics):
            return {"metrics": {"rss_bytes": 1}}
        self.polls += 1
        bucket = {"batch": 1, "length": 32, "state": "proving" if self.polls < 3 else "proved", "reason": "it is right"}
        found = bucket | {"partitions": 1, "coreml_nodes": 9, "nodes": 9, "cache_hit": False, "build_ms": 7.4}
        return {"provider": {"buckets": [found]}}

    def embed(self, texts: Sequence[str]) -> Embedded:
        tokens = tuple(2 * len(text.split()) + 2 for text in texts)
        self.asked_for.append(max(tokens))
        vectors = np.array([[np.cos(self.turn), np.sin(self.turn)]] * len(texts), np.float32)
        return Embedded(vectors=vectors, tokens=tokens, truncated=())

    def time_s(self, texts: Sequence[str]) -> float:
        self.embed(texts)
        return self.seconds


INFO: dict[str, Any] = {
    "model": "m",
    "fingerprint": "0123456789abcdef",
    "precision": "float32",
    "machine": {"architecture": "arm64"},
    "threads": {"value": 4},
    "provider": {"asked": "coreml", "chosen": "CoreML", "reason": "proved", "units": "ALL", "precision": "fp32"},
}


def test_a_bucket_is_waited_for_filled_and_timed_in_turns() -> None:
    accelerated, cpu = FakeWorker(0.002, turn=0.01), FakeWorker(0.008)
    waits: list[float] = []
    (report,) = measure_buckets(accelerated, cpu, [(1, 32)], clock=lambda: 0.0, sleep=waits.append)
    assert len(waits) == 2
    assert (report.found["state"], report.provider_ms, report.cpu_ms) == ("proved", (2.0, 2.0), (8.0, 8.0))
    assert abs(report.cosine - np.cos(0.01)) < 1e-6
    assert 24 <= accelerated.asked_for[-1] <= 32
    text = block(
        INFO | {"provider": INFO["provider"] | {"cache": "/Users/somebody/c"}}, [report], (5_000_000, 3_000_000)
    )
    assert "    1     32 proved            1 9/9      False        7  0.99995" in text
    assert "2.00/2.00" in text
    assert "0.25" in text
    assert "resident: 5 MB with it, 3 MB on the CPU alone" in text
    assert "somebody" not in text
    assert text.startswith("```\n")
    assert text.endswith("\n```")


def test_a_proof_that_never_ends_is_waited_for_no_longer_than_five_minutes() -> None:
    worker = FakeWorker(0.002)
    worker.polls = -(10**6)
    now = iter(float(second) for second in range(0, 10**6, 100))
    (report,) = measure_buckets(worker, FakeWorker(0.008), [(1, 32)], clock=lambda: next(now), sleep=lambda _: None)
    assert report.found["state"] == "proving"


def test_texts_come_close_to_the_length_whatever_a_word_is_made_of() -> None:
    for tokens in (32, 64, 512):
        made = FakeWorker(0).embed([text_of(FakeWorker(0), tokens)]).tokens[0]
        assert tokens - 6 <= made <= tokens


def test_buckets_are_those_that_the_limit_can_need() -> None:
    assert [str(shape) for shape in buckets_of(100)] == ["1x32", "8x32", "1x64", "8x64", "1x128", "8x128"]
    assert len(buckets_of(8192)) == 10
