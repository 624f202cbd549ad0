"""Counters and latency percentiles of one worker. Whoever counts or looks holds the lock of the answers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from embed_worker.protocol import ErrorCode

_WINDOW = 1024  # recent requests that the percentiles speak of


class WorkerMetrics:
    """What `metrics` tells.

    Attributes:
        micro_batches: Finished so far, and the pieces of `tokenize` too: the sign of progress.
        padded_tokens: What they computed, padding included.
    """

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._total_ms: deque[float] = deque(maxlen=_WINDOW)
        self._texts = 0
        self._tokens = 0
        self._tokenized_texts = 0
        self.micro_batches = 0
        self.padded_tokens = 0

    def count_embedded(self, tokens: Sequence[int], total_ms: float) -> None:
        """Note a request that was answered with vectors; `tokens` before truncation, one for each text."""
        self._answers["ok"] += 1
        self._texts += len(tokens)
        self._tokens += sum(tokens)
        self._total_ms.append(total_ms)

    def count_tokenized(self, texts: int) -> None:
        """Note a request that was answered with the counts of so many texts."""
        self._answers["ok"] += 1
        self._tokenized_texts += texts

    def count_error(self, code: ErrorCode) -> None:
        """Note a request line that was answered with an error."""
        self._answers[code.value] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return everything at one moment; times in milliseconds."""
        recent = sorted(self._total_ms)
        return {
            "requests": dict(self._answers),
            "texts": self._texts,
            "tokens": self._tokens,
            "tokenized_texts": self._tokenized_texts,
            "padded_tokens": self.padded_tokens,
            "micro_batches": self.micro_batches,
            "latency_ms": {f"p{share}": percentile(recent, share) for share in (50, 95, 99)},
        }


def percentile(ascending: Sequence[float], share: int) -> float | None:
    """Return the smallest value that at least `share` percent do not exceed; None without values."""
    if not ascending:
        return None
    return round(ascending[max(0, -(-len(ascending) * share // 100) - 1)], 3)
