"""Is the worker hung? Pure: times come in, a verdict comes out.

Two detectors, because alive is not the same as working. *Silence*: two pings in a row without any sign of life.
*No progress*: a pong says that no micro-batch was finished for too long while work was in flight. A busy worker answers
pings from its reader thread, so being busy is neither.
"""

from __future__ import annotations

from enum import Enum, auto

from bridge_client.options import Timing

_SLOW_FACTOR = 20
_AVERAGE_WEIGHT = 0.2  # of the newest micro-batch time in the moving average
_MISSES = 2


class Check(Enum):
    """What is to be done now."""

    NOTHING = auto()
    PING = auto()
    SILENT = auto()
    STUCK = auto()


class Health:
    """What one worker process has let us see, from the moment it was ready."""

    def __init__(self, now: float, timing: Timing) -> None:
        self._timing = timing
        self._received_at = now
        self._pinged_at: float | None = None
        self._misses = 0
        self._progress_at = now
        self._seen_at = now  # when we last knew whether there was progress
        self._micro_batches: int | None = None  # as of the last pong since the work began
        self._counted_at = now
        self._micro_batch_s = 0.0
        self._is_stuck = False

    def work_began(self, now: float) -> None:
        """Note that the first request after a pause was sent."""
        self._progress_at = self._seen_at = now
        self._micro_batches = None  # time that passed without work must not count as a slow micro-batch

    def received(self, now: float) -> None:
        """Note a sign of life: any line."""
        self._received_at = now
        self._misses = 0

    def embedded(self, now: float) -> None:
        """Note an answer to an `embed`, which is progress."""
        self._progress_at = self._seen_at = now

    def ponged(self, now: float, micro_batches: int, *, is_busy: bool) -> None:
        """Note a pong and what it tells of progress."""
        before, self._micro_batches = self._micro_batches, micro_batches
        pinged_at, self._pinged_at = self._pinged_at, None
        if before is None or micro_batches != before:
            if before is not None and micro_batches > before:
                each_s = (now - self._counted_at) / (micro_batches - before)
                self._micro_batch_s += _AVERAGE_WEIGHT * (each_s - self._micro_batch_s)
            self._progress_at = self._counted_at = now
        elif is_busy and pinged_at is not None:
            # As of the ping: a host that slept has answers lying in the pipe behind this pong.
            patience_s = max(self._timing.stuck_after_s, _SLOW_FACTOR * self._micro_batch_s)
            self._is_stuck = pinged_at - self._progress_at >= patience_s
        self._seen_at = now

    def check(self, now: float, *, is_busy: bool) -> Check:
        """Decide; a returned `PING` counts as sent."""
        if self._is_stuck:
            return Check.STUCK
        if now < self.next_check(is_busy=is_busy):
            return Check.NOTHING
        if self._pinged_at is not None and self._received_at < self._pinged_at:
            self._misses += 1
            if self._misses >= _MISSES:
                return Check.SILENT
        self._pinged_at = now
        return Check.PING

    def next_check(self, *, is_busy: bool) -> float:
        """Return when `check` has something to say, as far as is known now."""
        if self._is_stuck:
            return self._received_at
        if self._pinged_at is not None:
            return self._pinged_at + self._timing.pong_timeout_s
        return (min(self._received_at, self._seen_at) if is_busy else self._received_at) + self._timing.ping_every_s
