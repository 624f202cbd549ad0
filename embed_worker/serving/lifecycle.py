"""The life of the worker between its first line and its exit, as a table: no I/O, no threads, no clock.

`next_life(life, on)` looks up what happened in `TRANSITIONS`; what the table does not name changes nothing. `server.py`
does what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias, assert_never

from embed_worker.protocol import ErrorCode, ExitCode


class State(StrEnum):
    """Where the worker is in its life; `ping` tells the first three."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    LAST_WORDS = "last words"  # without a model: whoever still asks hears why
    ENDED = "ended"


class On(StrEnum):
    """What happens to it."""

    MODEL_READY = "the default model is ready"
    NO_MODEL = "the default model has failed"
    START_LIMIT = "the default model takes too long"
    END_OF_INPUT = "end of input"
    INPUT_BROKEN = "read error"
    SHUTDOWN = "shutdown"
    TERMINATED = "SIGTERM"
    INTERRUPTED = "SIGINT"
    RECYCLE = "too much memory"
    PARENT_DIED = "the parent died"
    OUTPUT_BROKEN = "nobody reads"
    OUT_OF_MEMORY = "an allocation failed"
    THREAD_DIED = "a thread ended unexpectedly"
    NOTHING_OWED = "nothing is owed"
    TIMEOUT = "the state lasts too long"


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Everything that a step depends on.

    Attributes:
        status: The exit status, if the worker ended now.
        is_deaf: Nothing more is read, because of a signal.
        is_input_over: There is nothing more to read.
    """

    state: State = State.LOADING
    status: int = ExitCode.OK
    is_deaf: bool = False
    is_input_over: bool = False

    @property
    def refusal(self) -> ErrorCode | None:
        """What new work is answered with; None while it is taken."""
        match self.state:
            case State.LOADING | State.READY:
                return None
            case State.LAST_WORDS:
                return ErrorCode.MODEL_LOAD_FAILED
            case State.DRAINING | State.ENDED:
                return ErrorCode.SHUTTING_DOWN
            case _:
                assert_never(self.state)


Guard: TypeAlias = Callable[[Life], bool]


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: in one of `states`, on this, `when` that holds, go `to`.

    Attributes:
        status: The exit status from now on; None: as it was.
        fails: What everything that is owed is answered with, at once; None: it is finished, or nobody would read it.
        is_deaf: Nothing more is read from now on.
        is_input_over: There is nothing more to read.
    """

    states: tuple[State, ...]
    on: On
    to: State
    when: Guard | None = None
    status: int | None = None
    fails: ErrorCode | None = None
    is_deaf: bool = False
    is_input_over: bool = False


def next_life(life: Life, on: On) -> tuple[Life, ErrorCode | None]:
    """Return the life after something happened, and what everything that is owed is to be answered with."""
    for row in TRANSITIONS:
        if row.on is on and life.state in row.states and (row.when is None or row.when(life)):
            after = replace(
                life,
                state=row.to,
                status=life.status if row.status is None else row.status,
                is_deaf=life.is_deaf or row.is_deaf,
                is_input_over=life.is_input_over or row.is_input_over,
            )
            return after, row.fails
    return life, None


# Guards -----------------------------------------------------------------------------------------------------------


def nobody_can_ask(life: Life) -> bool:
    """No line will be read any more."""
    return life.is_input_over or life.is_deaf


def it_is_the_first_signal(life: Life) -> bool:
    """Accepted work may still end; a second signal drops it."""
    return not life.is_deaf


_SERVING = (State.LOADING, State.READY)
_WORKING = (*_SERVING, State.DRAINING)
_LIVING = (*_WORKING, State.LAST_WORDS)
_D, _L, _E = State.DRAINING, State.LAST_WORDS, State.ENDED

TRANSITIONS = (
    Transition((State.LOADING,), On.MODEL_READY, State.READY),
    Transition(
        _WORKING,
        On.NO_MODEL,
        _E,
        nobody_can_ask,
        status=ExitCode.UNUSABLE_MODEL,
        fails=ErrorCode.MODEL_LOAD_FAILED,
    ),
    Transition(_WORKING, On.NO_MODEL, _L, status=ExitCode.UNUSABLE_MODEL, fails=ErrorCode.MODEL_LOAD_FAILED),
    Transition(_WORKING, On.START_LIMIT, _E, status=ExitCode.TRY_AGAIN, fails=ErrorCode.SHUTTING_DOWN),
    # Reasons to finish what was accepted.
    Transition(_SERVING, On.END_OF_INPUT, _D, is_input_over=True),
    Transition(_SERVING, On.INPUT_BROKEN, _D, status=ExitCode.PIPE_FAILED, is_input_over=True),
    Transition(_SERVING, On.SHUTDOWN, _D),
    Transition(_SERVING, On.TERMINATED, _D, is_deaf=True),
    Transition(_SERVING, On.INTERRUPTED, _D, status=ExitCode.INTERRUPTED, is_deaf=True),
    Transition((State.READY,), On.RECYCLE, _D, status=ExitCode.RECYCLED, is_deaf=True),
    # While it is being finished.
    Transition((_D,), On.NOTHING_OWED, _E),
    Transition((_D,), On.TIMEOUT, _E, fails=ErrorCode.SHUTTING_DOWN),
    Transition((_D,), On.END_OF_INPUT, _D, is_input_over=True),
    Transition((_D,), On.INPUT_BROKEN, _D, is_input_over=True),
    Transition((_D,), On.TERMINATED, _D, it_is_the_first_signal, is_deaf=True),
    Transition((_D,), On.TERMINATED, _E, fails=ErrorCode.SHUTTING_DOWN),
    Transition((_D,), On.INTERRUPTED, _D, it_is_the_first_signal, status=ExitCode.INTERRUPTED, is_deaf=True),
    Transition((_D,), On.INTERRUPTED, _E, fails=ErrorCode.SHUTTING_DOWN),
    # While there is no model.
    *(
        Transition((_L,), on, _E)
        for on in (
            On.TIMEOUT,
            On.END_OF_INPUT,
            On.INPUT_BROKEN,
            On.TERMINATED,
            On.INTERRUPTED,
            On.PARENT_DIED,
            On.OUTPUT_BROKEN,
        )
    ),
    # Reasons to end at once.
    Transition(_WORKING, On.PARENT_DIED, _E, status=ExitCode.PIPE_FAILED),
    Transition(_WORKING, On.OUTPUT_BROKEN, _E, status=ExitCode.PIPE_FAILED),
    Transition(_LIVING, On.OUT_OF_MEMORY, _E, status=ExitCode.TRY_AGAIN, fails=ErrorCode.OUT_OF_MEMORY),
    Transition(_LIVING, On.THREAD_DIED, _E, status=ExitCode.INTERNAL, fails=ErrorCode.INTERNAL_ERROR),
)
