"""The life of one worker as a state machine: no I/O, no threads, no clock.

`step(life, event, now, policy)` looks the event up in `TRANSITIONS` and returns the next life and what is to be done;
`supervisor.py` does it. The picture in `docs/supervision.md` is drawn from the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias


class State(StrEnum):
    """Where a worker is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing_off"
    FAILED = "failed"
    CLOSING = "closing"
    CLOSED = "closed"


class On(StrEnum):
    """What happens to it."""

    START = "start"  # somebody wants it
    ANSWERED_INFO = "info fits"
    EMBEDDED = "embedded"  # the first success of this process
    GONE = "gone"  # the process is dead and reaped, or could not be spawned
    TIMEOUT = "timeout"  # `wake_at` has come
    RESTART = "restart()"
    CLOSE = "close()"


class Effect(StrEnum):
    """What the supervisor has to do."""

    SPAWN = "spawn"
    END_INPUT = "end input"
    TERMINATE = "terminate"
    KILL = "kill"
    FAIL_WAITING = "fail what waits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What the budget needs to know of a worker that is gone.

    Attributes:
        is_permanent: Another start cannot help.
        is_recycle: It ended by itself, at its memory ceiling, all work answered.
        is_charged: False for the further deaths of one investigation.
        is_investigation: Isolated chunks wait; the restarts for them wait the initial back-off only.
        jitter: In -1 … 1, drawn by the caller.
    """

    is_permanent: bool = False
    is_recycle: bool = False
    is_charged: bool = True
    is_investigation: bool = False
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; a `GONE` comes with its loss."""

    on: On
    loss: Loss = Loss()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers, in seconds where nothing else is said."""

    start_timeout_s: float = 60.0
    restart_budget: float = 5
    restart_forgive_s: float = 60.0
    backoff_initial_s: float = 0.2
    backoff_max_s: float = 30.0
    backoff_jitter: float = 0.2
    half_open_initial_s: float = 60.0
    half_open_max_s: float = 600.0
    healthy_s: float = 60.0
    recycle_every_s: float = 60.0
    drain_s: float = 5.0
    terminate_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Everything that a decision depends on.

    Attributes:
        has_process: There is a process that is not known to be gone.
        wake_at: When `TIMEOUT` is due.
        level: The leaky bucket: failures not yet forgiven, as of the last failure.
        ready_since: When this process answered `info`.
        useful_since: When it embedded first; from then on the bucket leaks.
        failures: In a row, none of them after a healthy minute: they double the back-off.
        half_open_s: How long the next FAILED lasts.
        rung: How far the close ladder has been climbed.
    """

    state: State = State.STOPPED
    has_process: bool = False
    wake_at: float | None = None
    level: float = 0.0
    ready_since: float | None = None
    useful_since: float | None = None
    failures: int = 0
    half_open_s: float | None = None
    recycled_at: float | None = None
    rung: int = 0


Guard: TypeAlias = Callable[[Life, Event, float, Policy], bool]
Action: TypeAlias = Callable[[Life, Event, float, Policy], tuple[Life, tuple[Effect, ...]]]


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: in `state`, `on` this, `when` that holds, go `to`, and `do` this."""

    state: State
    on: On
    to: State
    do: Action
    when: Guard | None = None


def step(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Return the life after an event, and the effects in order. What the table does not name changes nothing."""
    if event.on is On.GONE:
        life = _account(life, event.loss, now, policy)
    for row in TRANSITIONS:
        if row.state is life.state and row.on is event.on and (row.when is None or row.when(life, event, now, policy)):
            after, effects = row.do(life, event, now, policy)
            return replace(after, state=row.to), effects
    return life, ()


def level_at(life: Life, now: float, policy: Policy) -> float:
    """Return what is in the bucket now."""
    leaked = 0.0 if life.useful_since is None else (now - life.useful_since) / policy.restart_forgive_s
    return max(0.0, life.level - leaked)


def _account(life: Life, loss: Loss, now: float, policy: Policy) -> Life:
    """Let the bucket leak for the time that the process was useful, then charge its end."""
    level = level_at(life, now, policy)
    if life.state in (State.STARTING, State.READY):
        is_free = loss.is_permanent or not loss.is_charged or (loss.is_recycle and _is_recycle_free(life, now, policy))
        level = min(policy.restart_budget, level + (0 if is_free else 1))
    return replace(life, has_process=False, level=level, useful_since=None)


def _is_recycle_free(life: Life, now: float, policy: Policy) -> bool:
    return life.recycled_at is None or now - life.recycled_at >= policy.recycle_every_s


# Guards: their names stand on the arrows of the picture -----------------------------------------------------------


def it_is_permanent(life: Life, event: Event, now: float, policy: Policy) -> bool:
    """Another start cannot help."""
    return event.loss.is_permanent


def recycle_is_free(life: Life, event: Event, now: float, policy: Policy) -> bool:
    """It ended at its memory ceiling, for the first time within a minute."""
    return event.loss.is_recycle and _is_recycle_free(life, now, policy)


def budget_is_spent(life: Life, event: Event, now: float, policy: Policy) -> bool:
    """The bucket is full. A microscopic tolerance keeps sums of quarters honest."""
    return event.loss.is_charged and life.level >= policy.restart_budget - 1e-9


def process_is_there(life: Life, event: Event, now: float, policy: Policy) -> bool:
    """The old process has not gone yet; a new one must wait for that."""
    return life.has_process


# Actions ----------------------------------------------------------------------------------------------------------


def spawn(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Start a process, and its time limit."""
    started = replace(
        life, has_process=True, wake_at=now + policy.start_timeout_s, ready_since=None, useful_since=None, rung=0
    )
    return started, (Effect.SPAWN,)


def pardon(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Start a process on an operator's word, with an empty bucket."""
    return spawn(replace(life, level=0.0, failures=0, half_open_s=None), event, now, policy)


def recycle(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Start the next process at once, and remember when."""
    return spawn(replace(life, recycled_at=now), event, now, policy)


def kill(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """End a process that took too long; `GONE` will follow."""
    return replace(life, wake_at=None), (Effect.KILL,)


def serve(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Be useful from now on."""
    return replace(life, wake_at=None, ready_since=now), ()


def leak(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Let the bucket leak from now on."""
    return replace(life, useful_since=now if life.useful_since is None else life.useful_since), ()


def back_off(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Wait before the next start: not at all after a healthy minute, else twice as long as the last time."""
    was_healthy = life.ready_since is not None and now - life.ready_since >= policy.healthy_s
    if event.loss.is_investigation:
        delay_s = policy.backoff_initial_s
    elif was_healthy:
        delay_s = 0.0
        life = replace(life, failures=0, half_open_s=None)
    else:
        # 2.0 ** 1024 would overflow; nobody's maximum needs so many doublings.
        delay_s = min(policy.backoff_max_s, policy.backoff_initial_s * 2.0 ** min(life.failures, 64))
        life = replace(life, failures=life.failures + 1)
    delay_s *= 1 + policy.backoff_jitter * event.loss.jitter
    return replace(life, wake_at=now + delay_s, ready_since=None), ()


def give_up(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Refuse everything until the half-open attempt, later each time."""
    wait_s = min(policy.half_open_max_s, life.half_open_s or policy.half_open_initial_s)
    later_s = min(policy.half_open_max_s, 2 * wait_s)
    return replace(life, wake_at=now + wait_s, half_open_s=later_s, ready_since=None), (Effect.FAIL_WAITING,)


def give_up_for_good(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Refuse everything until `restart()`."""
    return replace(life, wake_at=None, ready_since=None), (Effect.FAIL_WAITING,)


def stop(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Step on the close ladder: the end of input."""
    stopping = replace(life, wake_at=now + policy.drain_s, rung=0, ready_since=None, level=0.0, failures=0)
    return stopping, (Effect.END_INPUT,)


def close(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Step on the close ladder, and refuse what has not been sent."""
    stopping, effects = stop(life, event, now, policy)
    return stopping, (Effect.FAIL_WAITING, *effects)


def climb(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Go one rung up the close ladder: SIGTERM, then SIGKILL, and then `GONE` will follow."""
    if life.rung == 0:
        return replace(life, rung=1, wake_at=now + policy.terminate_s), (Effect.TERMINATE,)
    return replace(life, rung=2, wake_at=None), (Effect.KILL,)


def wait_on(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Change nothing: what is asked for is on its way."""
    return life, ()


def rest(life: Life, event: Event, now: float, policy: Policy) -> tuple[Life, tuple[Effect, ...]]:
    """Wait for nothing any more."""
    return replace(life, wake_at=None, ready_since=None), (Effect.FAIL_WAITING,)


# The table: the first row that fits holds -------------------------------------------------------------------------

TRANSITIONS: tuple[Transition, ...] = (
    Transition(State.STOPPED, On.START, State.STARTING, spawn),
    Transition(State.STOPPED, On.RESTART, State.STARTING, spawn),
    Transition(State.STOPPED, On.CLOSE, State.CLOSED, rest),
    Transition(State.STARTING, On.ANSWERED_INFO, State.READY, serve),
    Transition(State.STARTING, On.TIMEOUT, State.STARTING, kill),
    Transition(State.STARTING, On.GONE, State.FAILED, give_up_for_good, it_is_permanent),
    Transition(State.STARTING, On.GONE, State.STARTING, recycle, recycle_is_free),
    Transition(State.STARTING, On.GONE, State.FAILED, give_up, budget_is_spent),
    Transition(State.STARTING, On.GONE, State.BACKING_OFF, back_off),
    Transition(State.STARTING, On.RESTART, State.BACKING_OFF, stop),
    Transition(State.STARTING, On.CLOSE, State.CLOSING, close),
    Transition(State.READY, On.EMBEDDED, State.READY, leak),
    Transition(State.READY, On.GONE, State.FAILED, give_up_for_good, it_is_permanent),
    Transition(State.READY, On.GONE, State.STARTING, recycle, recycle_is_free),
    Transition(State.READY, On.GONE, State.FAILED, give_up, budget_is_spent),
    Transition(State.READY, On.GONE, State.BACKING_OFF, back_off),
    Transition(State.READY, On.RESTART, State.BACKING_OFF, stop),
    Transition(State.READY, On.CLOSE, State.CLOSING, close),
    Transition(State.BACKING_OFF, On.TIMEOUT, State.BACKING_OFF, climb, process_is_there),
    Transition(State.BACKING_OFF, On.TIMEOUT, State.STARTING, spawn),
    Transition(State.BACKING_OFF, On.GONE, State.STARTING, pardon),
    Transition(State.BACKING_OFF, On.RESTART, State.BACKING_OFF, wait_on, process_is_there),
    Transition(State.BACKING_OFF, On.RESTART, State.STARTING, pardon),
    Transition(State.BACKING_OFF, On.CLOSE, State.CLOSING, close, process_is_there),
    Transition(State.BACKING_OFF, On.CLOSE, State.CLOSED, rest),
    Transition(State.FAILED, On.TIMEOUT, State.STARTING, spawn),
    Transition(State.FAILED, On.RESTART, State.STARTING, pardon),
    Transition(State.FAILED, On.CLOSE, State.CLOSED, rest),
    Transition(State.CLOSING, On.TIMEOUT, State.CLOSING, climb),
    Transition(State.CLOSING, On.GONE, State.CLOSED, rest),
)


def picture() -> str:
    """Draw the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> stopped"]
    for row in TRANSITIONS:
        condition = "" if row.when is None else f" [{row.when.__name__.replace('_', ' ')}]"
        lines.append(f"    {row.state} --> {row.to}: {row.on}{condition}")
    return "\n".join([*lines, "    closed --> [*]"])
