"""Hang detection under a virtual clock: silence, no progress, and the healthy workers that must not be killed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge_client.health import Check, Health
from bridge_client.options import Timing


class Worker:
    """A health record and a clock that the test turns second by second."""

    def __init__(self) -> None:
        self.health = Health(0.0, Timing())
        self.now = 0.0
        self.is_busy = False
        self.pings = 0
        self.verdict = Check.NOTHING

    def begin(self) -> None:
        self.is_busy = True
        self.health.work_began(self.now)

    def run(self, seconds: float, *, pong: int | None = None, every_s: float = 1.0) -> Check:
        """Let time pass; pings are answered with `pong` micro-batches, or not at all."""
        until = self.now + seconds
        while self.now < until and self.verdict is Check.NOTHING:
            self.now += every_s
            match self.health.check(self.now, is_busy=self.is_busy):
                case Check.PING:
                    self.pings += 1
                    if pong is not None:
                        self.health.received(self.now)
                        self.health.ponged(self.now, pong, is_busy=self.is_busy)
                case Check.NOTHING:
                    pass
                case verdict:
                    self.verdict = verdict
        return self.verdict


def test_silence_is_a_hang_after_two_misses() -> None:
    worker = Worker()
    assert worker.run(24.0) is Check.NOTHING
    assert worker.pings == 2
    assert worker.run(1.0) is Check.SILENT


def test_one_missed_pong_is_no_hang() -> None:
    worker = Worker()
    worker.run(24.0)
    worker.health.received(worker.now)
    assert worker.run(14.0) is Check.NOTHING


def test_a_busy_worker_that_answers_pings_and_progresses_is_healthy() -> None:
    worker = Worker()
    worker.begin()
    for micro_batches in range(1, 60):
        assert worker.run(10.0, pong=micro_batches) is Check.NOTHING


def test_an_idle_worker_without_progress_is_healthy() -> None:
    worker = Worker()
    assert worker.run(3600.0, pong=7) is Check.NOTHING


def test_no_micro_batch_for_a_minute_of_work_is_a_hang() -> None:
    worker = Worker()
    worker.run(1000.0, pong=7)
    worker.begin()
    assert worker.run(60.0, pong=7) is Check.NOTHING
    assert worker.run(30.0, pong=7) is Check.STUCK


def test_slow_micro_batches_earn_patience() -> None:
    worker = Worker()
    worker.begin()
    for micro_batches in range(1, 30):
        worker.run(20.0, pong=micro_batches)
    assert worker.run(200.0, pong=29) is Check.NOTHING, "20 s each: 60 s would be too short"
    assert worker.run(600.0, pong=29) is Check.STUCK


def test_time_without_work_is_not_a_slow_micro_batch() -> None:
    worker = Worker()
    for _ in range(20):
        worker.is_busy = False
        worker.run(600.0, pong=3)
        worker.begin()
        worker.run(6.0, pong=4)
    assert worker.run(120.0, pong=4) is Check.STUCK


def test_other_answers_do_not_hide_that_there_is_no_progress() -> None:
    worker = Worker()
    worker.begin()
    while worker.verdict is Check.NOTHING and worker.now < 300.0:
        worker.health.received(worker.now)  # `metrics`, every second
        worker.run(1.0, pong=0)
    assert worker.verdict is Check.STUCK


def test_a_host_that_slept_does_not_kill_its_worker() -> None:
    worker = Worker()
    worker.begin()
    worker.run(5.0, pong=0)
    worker.run(5.0)
    assert worker.pings == 2
    worker.now += 10_000.0  # the host was stopped; the second pong and the answer lie in the pipe
    worker.health.received(worker.now)
    worker.health.ponged(worker.now, 0, is_busy=True)
    assert worker.health.check(worker.now, is_busy=True) in (Check.NOTHING, Check.PING)


@given(st.lists(st.floats(0.1, 9.9), min_size=1, max_size=100), st.booleans())
def test_a_worker_that_is_heard_often_enough_is_never_silent(gaps: list[float], is_busy: bool) -> None:
    worker = Worker()
    if is_busy:
        worker.begin()
    for number, gap in enumerate(gaps):
        assert worker.run(gap, every_s=0.1) is Check.NOTHING
        worker.health.received(worker.now)
        worker.health.ponged(worker.now, number, is_busy=is_busy)
