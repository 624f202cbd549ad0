"""The table of the worker's life: every way to its end, and what each leaves undone."""

from __future__ import annotations

import itertools

import pytest

from embed_worker.protocol import ErrorCode, ExitCode
from embed_worker.serving.lifecycle import TRANSITIONS, Life, On, State, next_life


def after(*happened: On) -> Life:
    life = Life()
    for on in happened:
        life, _ = next_life(life, on)
    return life


@pytest.mark.parametrize(
    ("happened", "status"),
    [
        ([On.END_OF_INPUT, On.NOTHING_OWED], ExitCode.OK),
        ([On.MODEL_READY, On.SHUTDOWN, On.NOTHING_OWED], ExitCode.OK),
        ([On.MODEL_READY, On.TERMINATED, On.NOTHING_OWED], ExitCode.OK),
        ([On.MODEL_READY, On.INTERRUPTED, On.NOTHING_OWED], ExitCode.INTERRUPTED),
        ([On.MODEL_READY, On.END_OF_INPUT, On.INTERRUPTED, On.NOTHING_OWED], ExitCode.INTERRUPTED),
        ([On.MODEL_READY, On.INPUT_BROKEN, On.NOTHING_OWED], ExitCode.PIPE_FAILED),
        ([On.MODEL_READY, On.RECYCLE, On.NOTHING_OWED], ExitCode.RECYCLED),
        ([On.MODEL_READY, On.PARENT_DIED], ExitCode.PIPE_FAILED),
        ([On.OUTPUT_BROKEN], ExitCode.PIPE_FAILED),
        ([On.NO_MODEL, On.TIMEOUT], ExitCode.UNUSABLE_MODEL),
        ([On.NO_MODEL, On.OUTPUT_BROKEN], ExitCode.UNUSABLE_MODEL),
        ([On.END_OF_INPUT, On.NO_MODEL], ExitCode.UNUSABLE_MODEL),
        ([On.START_LIMIT], ExitCode.TRY_AGAIN),
        ([On.END_OF_INPUT, On.START_LIMIT], ExitCode.TRY_AGAIN),
        ([On.MODEL_READY, On.SHUTDOWN, On.OUT_OF_MEMORY], ExitCode.TRY_AGAIN),
        ([On.MODEL_READY, On.THREAD_DIED], ExitCode.INTERNAL),
    ],
)
def test_each_way_to_the_end_has_its_exit_status(happened: list[On], status: int) -> None:
    assert after(*happened).state is State.ENDED
    assert after(*happened[:-1]).state is not State.ENDED
    assert after(*happened).status == status


def test_a_second_signal_drops_what_the_first_lets_end() -> None:
    for first, second in itertools.product((On.TERMINATED, On.INTERRUPTED), repeat=2):
        life, fails = next_life(after(On.MODEL_READY), first)
        assert (life.state, life.is_deaf, fails) == (State.DRAINING, True, None)
        life, fails = next_life(life, second)
        assert (life.state, fails) == (State.ENDED, ErrorCode.SHUTTING_DOWN)


def test_nothing_happens_to_a_worker_that_has_ended() -> None:
    ended = after(On.OUTPUT_BROKEN)
    assert {next_life(ended, on) for on in On} == {(ended, None)}


def test_from_every_state_that_can_be_reached_the_end_can_be() -> None:
    reached = {Life()}
    while more := {next_life(life, on)[0] for life in reached for on in On} - reached:
        reached |= more
    assert {life.state for life in reached} == set(State)
    for life in reached - {life for life in reached if life.state is State.ENDED}:
        assert any(next_life(next_life(life, first)[0], then)[0].state is State.ENDED for first in On for then in On)


def test_new_work_is_refused_from_the_first_reason_to_stop_on() -> None:
    assert after().refusal is None
    assert after(On.MODEL_READY).refusal is None
    assert after(On.SHUTDOWN).refusal is ErrorCode.SHUTTING_DOWN
    assert after(On.NO_MODEL).refusal is ErrorCode.MODEL_LOAD_FAILED


def test_every_row_of_the_table_can_be_taken() -> None:
    reached = {Life()}
    taken = set()
    while True:
        steps = {
            (life, index)
            for life in reached
            for index, row in enumerate(TRANSITIONS)
            if life.state in row.states
            and (row.when is None or row.when(life))
            # The first that fits is taken.
            and not any(
                earlier.on is row.on and life.state in earlier.states and (earlier.when is None or earlier.when(life))
                for earlier in TRANSITIONS[:index]
            )
        }
        taken |= {index for _, index in steps}
        more = {next_life(life, TRANSITIONS[index].on)[0] for life, index in steps} - reached
        if not more:
            break
        reached |= more
    assert taken == set(range(len(TRANSITIONS)))
