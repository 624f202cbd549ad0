"""Counters, histograms and latency percentiles of one worker. Whoever counts or looks holds the lock of the answers."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from embed_worker.protocol import ErrorCode

_WINDOW = 1024  # recent requests that the percentiles speak of

# Upper bounds, of which each value counts for the first that it does not exceed. A short text takes some milliseconds.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Histogram:
    """How often values were how large.

    Attributes:
        bounds: Ascending.
        counts: For each bound the values up to it and above the one before; at last those above all.
        sum: Of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def snapshot(self) -> dict[str, Any]:
        """Return it as Prometheus has it: each bucket with all that is below its bound, the last with everything."""
        cumulative = list(itertools.accumulate(self.counts))
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return {
            "buckets": dict(zip(names, cumulative, strict=True)),
            "sum": round(self.sum, 6),
            "count": cumulative[-1],
        }


class WorkerMetrics:
    """What `metrics` tells.

    Attributes:
        micro_batches: Finished so far, and the pieces of `tokenize` too: the sign of progress.
    """

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._total_ms: deque[float] = deque(maxlen=_WINDOW)
        self._texts = 0
        self._tokens = 0
        self._tokenized_texts = 0
        self._truncated = 0
        self._padded_tokens = 0
        self.micro_batches = 0
        self._parts = {name: Histogram(_SECONDS) for name in ("queue", "tokenize", "inference", "total")}
        self._batch_texts = Histogram(_TEXTS)
        self._batch_tokens = Histogram(_TOKENS)

    def count_embedded(self, tokens: Sequence[int], truncated: int, timing_ms: Mapping[str, float]) -> None:
        """Note a request that was answered with vectors.

        Args:
            tokens: Before truncation, one for each text.
            truncated: How many texts were cut.
            timing_ms: What it took, as its answer says.
        """
        self._answers["ok"] += 1
        self._texts += len(tokens)
        self._tokens += sum(tokens)
        self._truncated += truncated
        self._total_ms.append(timing_ms["total"])
        for name, histogram in self._parts.items():
            seconds = timing_ms[name] / 1e3
            histogram.counts[bisect_left(_SECONDS, seconds)] += 1
            histogram.sum += seconds

    def count_tokenized(self, texts: int) -> None:
        """Note a request that was answered with the counts of so many texts."""
        self._answers["ok"] += 1
        self._tokenized_texts += texts

    def count_error(self, code: ErrorCode) -> None:
        """Note a request line that was answered with an error."""
        self._answers[code.value] += 1

    def count_batch(self, texts: int, padded_tokens: int) -> None:
        """Note a micro-batch that has run: how many texts, and the tokens that it computed, padding included."""
        self.micro_batches += 1
        self._padded_tokens += padded_tokens
        self._batch_texts.counts[bisect_left(_TEXTS, texts)] += 1
        self._batch_texts.sum += texts
        self._batch_tokens.counts[bisect_left(_TOKENS, padded_tokens)] += 1
        self._batch_tokens.sum += padded_tokens

    def snapshot(self) -> dict[str, Any]:
        """Return everything at one moment; percentiles in milliseconds, histograms in seconds."""
        recent = sorted(self._total_ms)
        histograms = {f"{name}_s": histogram for name, histogram in self._parts.items()}
        histograms |= {"batch_texts": self._batch_texts, "batch_tokens": self._batch_tokens}
        return {
            "requests": dict(self._answers),
            "texts": self._texts,
            "truncated_texts": self._truncated,
            "tokens": self._tokens,
            "tokenized_texts": self._tokenized_texts,
            "padded_tokens": self._padded_tokens,
            "micro_batches": self.micro_batches,
            "latency_ms": {f"p{share}": percentile(recent, share) for share in (50, 95, 99)},
            "histograms": {name: histogram.snapshot() for name, histogram in histograms.items()},
        }


def percentile(ascending: Sequence[float], share: int) -> float | None:
    """Return the smallest value that at least `share` percent do not exceed; None without values."""
    if not ascending:
        return None
    return round(ascending[max(0, -(-len(ascending) * share // 100) - 1)], 3)
