"""What `client.stats()` tells: frozen snapshots, safe to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge_client.exits import ExitReport
from bridge_client.lifecycle import State


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """One worker.

    Attributes:
        generation: How many processes there have been in this place, this one included.
        budget_level: What is in the restart budget's bucket now.
        is_investigating: It is being found out which input killed it.
        last_exit: How the process before this one ended.
    """

    state: State
    pid: int | None
    generation: int
    in_flight: int
    outstanding_tokens: int
    budget_level: float
    is_investigating: bool
    last_exit: ExitReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """The client as a whole; `state`, `pid`, `generation` and `last_exit` are those of its most useful worker.

    Attributes:
        restarts: Processes started after the first of each worker.
        queued: Calls of which something has not been sent.
        replays: Requests sent again after a death.
        blamed: Inputs that were found to kill workers.
        unknown_answers: Late, doubled or unexpected answers, which were ignored.
        latency_ms: `p50`, `p95`, `p99` of recent calls, from submission to the last vector.
    """

    state: State
    pid: int | None
    generation: int
    restarts: int
    in_flight: int
    queued: int
    requests: int
    replays: int
    blamed: int
    timeouts: int
    unknown_answers: int
    latency_ms: Mapping[str, float | None]
    last_exit: ExitReport | None
    workers: tuple[WorkerStats, ...]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return the nearest-rank percentiles; None without values."""
    ascending = sorted(values)
    return {
        f"p{share}": ascending[max(0, -(-len(ascending) * share // 100) - 1)] if ascending else None
        for share in (50, 95, 99)
    }
