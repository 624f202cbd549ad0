"""The state machine under a virtual clock: budget, back-off, half-open, the close ladder, and what holds always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client.lifecycle import (
    TRANSITIONS,
    Effect,
    Event,
    Life,
    Loss,
    On,
    Policy,
    State,
    level_at,
    step,
)

POLICY = Policy()


class Machine:
    """A life with a clock that the test turns."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.life = Life()
        self.now = 0.0
        self.effects: list[Effect] = []

    def state(self) -> State:
        return self.life.state

    def feed(self, on: On, loss: Loss | None = None) -> tuple[Effect, ...]:
        self.life, effects = step(self.life, Event(on, loss or Loss()), self.now, self.policy)
        self.effects.extend(effects)
        return effects

    def sleep(self) -> float:
        """Let the time pass until the timer, and let it ring; return how long that was."""
        assert self.life.wake_at is not None
        waited = self.life.wake_at - self.now
        self.now = self.life.wake_at
        self.feed(On.TIMEOUT)
        return waited

    def become_ready(self) -> None:
        if self.state() is State.STOPPED:
            self.feed(On.START)
        if self.state() is State.BACKING_OFF:
            self.sleep()
        assert self.state() is State.STARTING
        self.feed(On.ANSWERED_INFO)
        self.feed(On.EMBEDDED)
        assert self.state() is State.READY


def crashes_until_failed(ready_s: float, most: int = 200) -> int | None:
    machine = Machine()
    for crash in range(1, most + 1):
        machine.become_ready()
        machine.now += ready_s
        machine.feed(On.GONE)
        if machine.state() is State.FAILED:
            return crash
    return None


@pytest.mark.parametrize(
    ("ready_s", "crashes"), [(0.0, 5), (1.0, 6), (30.0, 9), (45.0, 17), (60.0, None), (3600.0, None)]
)
def test_the_bucket_leaks_one_failure_a_minute(ready_s: float, crashes: int | None) -> None:
    assert crashes_until_failed(ready_s) == crashes


def test_a_successful_start_alone_forgives_nothing() -> None:
    machine = Machine()
    for _ in range(5):
        machine.feed(On.START) if machine.state() is State.STOPPED else machine.sleep()
        machine.feed(On.ANSWERED_INFO)
        machine.now += 3600.0  # ready for an hour each time, but without one success
        machine.feed(On.GONE)
    assert machine.state() is State.FAILED


def test_failed_starts_fill_the_same_bucket() -> None:
    machine = Machine()
    machine.feed(On.START)
    for _ in range(4):
        machine.feed(On.GONE)
        machine.sleep()
    machine.feed(On.GONE)
    assert machine.state() is State.FAILED
    assert Effect.FAIL_WAITING in machine.effects


def test_the_back_off_doubles_to_its_maximum() -> None:
    machine = Machine(Policy(restart_budget=100))
    machine.feed(On.START)
    waits = []
    for _ in range(10):
        machine.feed(On.GONE)
        waits.append(machine.sleep())
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


@given(st.floats(-1, 1), st.integers(0, 3000))
def test_jitter_stays_within_a_fifth(jitter: float, failures: int) -> None:
    life = Life(state=State.READY, has_process=True, failures=failures)
    life, _ = step(life, Event(On.GONE, Loss(jitter=jitter)), 0.0, Policy(restart_budget=10**6))
    unjittered = min(30.0, 0.2 * 2.0 ** min(failures, 60))
    assert life.wake_at is not None
    assert 0.8 * unjittered - 1e-9 <= life.wake_at <= 1.2 * unjittered + 1e-9


def test_the_first_restart_after_a_healthy_minute_is_at_once() -> None:
    machine = Machine()
    machine.become_ready()
    machine.now += 60.0
    machine.feed(On.GONE)
    assert machine.sleep() == 0.0
    machine.feed(On.GONE)
    assert machine.sleep() == pytest.approx(0.2)


def test_permanent_causes_are_never_retried() -> None:
    machine = Machine()
    machine.become_ready()
    machine.feed(On.GONE, Loss(is_permanent=True))
    assert machine.state() is State.FAILED
    assert machine.life.wake_at is None
    assert machine.feed(On.START) == ()
    assert machine.feed(On.RESTART) == (Effect.SPAWN,)


def test_half_open_attempts_come_later_each_time_and_succeed_in_the_end() -> None:
    machine = Machine()
    machine.feed(On.START)
    while machine.state() is not State.FAILED:
        machine.feed(On.GONE)
        if machine.state() is State.BACKING_OFF:
            machine.sleep()
    waits = []
    for _ in range(6):
        waits.append(machine.sleep())
        assert machine.state() is State.STARTING
        machine.feed(On.GONE)
        assert machine.state() is State.FAILED
    assert waits == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    machine.sleep()
    machine.feed(On.ANSWERED_INFO)
    machine.feed(On.EMBEDDED)
    machine.now += 120.0
    machine.feed(On.GONE)
    assert machine.state() is State.BACKING_OFF, "two useful minutes forgave two failures"


def test_a_recycle_is_free_once_a_minute() -> None:
    machine = Machine()
    machine.become_ready()
    assert machine.feed(On.GONE, Loss(is_recycle=True)) == (Effect.SPAWN,)
    assert machine.life.level == 0.0
    machine.feed(On.ANSWERED_INFO)
    machine.now += 59.0
    machine.feed(On.GONE, Loss(is_recycle=True))
    assert machine.state() is State.BACKING_OFF
    assert machine.life.level == 1.0


def test_deaths_of_one_investigation_wait_only_the_initial_back_off_and_cost_once() -> None:
    machine = Machine()
    machine.become_ready()
    machine.feed(On.GONE, Loss(is_investigation=True))
    for _ in range(20):
        assert machine.sleep() == pytest.approx(0.2)
        machine.feed(On.ANSWERED_INFO)
        machine.feed(On.GONE, Loss(is_investigation=True, is_charged=False))
    assert machine.life.level == 1.0


def test_restart_clears_the_budget_and_waits_for_the_old_process() -> None:
    machine = Machine()
    for _ in range(3):
        machine.become_ready()
        machine.feed(On.GONE)
    machine.become_ready()
    assert machine.feed(On.RESTART) == (Effect.END_INPUT,)
    assert machine.feed(On.RESTART) == ()
    assert machine.feed(On.GONE) == (Effect.SPAWN,)
    assert machine.state() is State.STARTING
    assert machine.life.level == 0.0


def test_the_close_ladder_fires_exactly_at_its_rungs() -> None:
    machine = Machine()
    machine.become_ready()
    assert machine.feed(On.CLOSE) == (Effect.FAIL_WAITING, Effect.END_INPUT)
    assert machine.sleep() == 5.0
    assert machine.sleep() == 2.0
    assert machine.effects[-2:] == [Effect.TERMINATE, Effect.KILL]
    assert machine.life.wake_at is None
    machine.feed(On.GONE)
    assert machine.state() is State.CLOSED


def test_a_death_within_the_ladder_is_not_escalated() -> None:
    machine = Machine()
    machine.become_ready()
    machine.feed(On.CLOSE)
    machine.now = 4.99
    machine.feed(On.GONE)
    assert machine.state() is State.CLOSED
    assert Effect.TERMINATE not in machine.effects


def test_a_start_that_takes_too_long_is_killed_and_charged() -> None:
    machine = Machine()
    machine.feed(On.START)
    assert machine.sleep() == 60.0
    assert machine.effects[-1] is Effect.KILL
    machine.feed(On.GONE)
    assert (machine.state(), machine.life.level) == (State.BACKING_OFF, 1.0)


def test_the_level_is_told_as_of_now() -> None:
    machine = Machine()
    machine.become_ready()
    machine.feed(On.GONE)
    machine.become_ready()
    assert level_at(machine.life, machine.now + 30.0, POLICY) == pytest.approx(0.5)


# What holds whatever happens --------------------------------------------------------------------------------------

losses = st.builds(
    Loss,
    is_permanent=st.booleans(),
    is_recycle=st.booleans(),
    is_charged=st.booleans(),
    is_investigation=st.booleans(),
    jitter=st.floats(-1, 1),
)
happenings = st.lists(st.tuples(st.sampled_from(On), losses, st.floats(0, 500)), max_size=60)


def run_through(sequence: list[tuple[On, Loss, float]]) -> Machine:
    """Feed what can happen: a process is gone only if there is one, a timer rings only when it is due."""
    machine = Machine()
    for on, loss, pause in sequence:
        machine.now += pause
        if on is On.GONE and not machine.life.has_process:
            continue
        if on is On.TIMEOUT:
            if machine.life.wake_at is None:
                continue
            machine.now = max(machine.now, machine.life.wake_at)
        had_process = machine.life.has_process and on is not On.GONE
        was_closed = machine.state() is State.CLOSED
        before = machine.life
        effects = machine.feed(on, loss)
        assert not (had_process and Effect.SPAWN in effects), "at most one process"
        assert not (was_closed and (effects or machine.life != before)), "closed is the end"
        assert 0.0 <= machine.life.level <= machine.policy.restart_budget
        assert machine.life.wake_at in (None, before.wake_at) or machine.life.wake_at >= machine.now
        assert machine.life.has_process == (had_process or Effect.SPAWN in effects)
        if machine.state() in (State.STOPPED, State.FAILED, State.CLOSED):
            assert not machine.life.has_process
        if machine.state() in (State.STARTING, State.READY, State.CLOSING):
            assert machine.life.has_process
    return machine


@given(happenings)
def test_whatever_happens_the_invariants_hold(sequence: list[tuple[On, Loss, float]]) -> None:
    run_through(sequence)


@given(happenings)
def test_close_ends_every_life_within_the_ladder(sequence: list[tuple[On, Loss, float]]) -> None:
    machine = run_through(sequence)
    machine.feed(On.CLOSE)
    started = machine.now
    while machine.life.wake_at is not None:
        machine.sleep()
    if machine.life.has_process:
        assert machine.effects[-1] is Effect.KILL
        machine.feed(On.GONE)
    assert machine.state() is State.CLOSED
    assert machine.now - started <= POLICY.drain_s + POLICY.terminate_s + 1e-6


@given(happenings)
def test_every_failure_can_be_left(sequence: list[tuple[On, Loss, float]]) -> None:
    machine = run_through(sequence)
    if machine.state() is State.FAILED:
        machine.feed(On.RESTART)
        assert machine.state() is State.STARTING
        assert machine.life.level == 0.0


def test_no_row_of_the_table_is_hidden_behind_another() -> None:
    seen: set[tuple[State, On, object]] = set()
    unguarded: set[tuple[State, On]] = set()
    for row in TRANSITIONS:
        assert (row.state, row.on) not in unguarded, f"{row.state} {row.on}: never reached"
        assert (row.state, row.on, row.when) not in seen
        seen.add((row.state, row.on, row.when))
        if row.when is None:
            unguarded.add((row.state, row.on))


def test_every_state_but_the_last_can_be_closed() -> None:
    assert {row.state for row in TRANSITIONS if row.on is On.CLOSE} == set(State) - {State.CLOSING, State.CLOSED}
