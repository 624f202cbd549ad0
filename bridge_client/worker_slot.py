"""One slot in the pool of workers, and the process that is in it now: what it serves and what it has been sent."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, TypeAlias

from bridge_client.chunks import AnyCall, Chunk
from bridge_client.exits import Cause, ExitReport
from bridge_client.futures import Outlet, Promise
from bridge_client.handshake import Served
from bridge_client.health import Health
from bridge_client.investigation import Investigation
from bridge_client.lifecycle import Life, Policy, State, level_at
from bridge_client.stats import WorkerStats
from bridge_client.worker_process import WorkerProcess
from embed_worker.protocol import Request

WINDOW_REQUESTS = 256  # more would not make better batches, only more chunks to isolate
_WINDOW_TOKENS = 65_536  # of bulk work: seconds of it, so that its time-outs measure work and not the queue
_WINDOW_BYTES = 16 * 2**20


class Internal(enum.Enum):
    """What the supervisor itself asks a worker."""

    HANDSHAKE = enum.auto()
    PING = enum.auto()
    CANCEL = enum.auto()


class Control(Promise[dict[str, Any]]):
    """An `info`, `ping` or `metrics` of the host; answered by the worker at once, so it waits in no queue."""

    def __init__(
        self, request: Request, worker: int, deadline: float, timeout_s: float, outlet: Outlet[dict[str, Any]]
    ) -> None:
        super().__init__(outlet)
        self.request = request
        self.worker = worker
        self.deadline = deadline
        self.timeout_s = timeout_s


Awaited: TypeAlias = Chunk | Control | Internal


class Generation:
    """One process and all that is known of it, dropped whole when it is gone: nothing late counts.

    The pool's lock guards it.

    Attributes:
        served: Known since it has answered `info`, like `health`.
        awaited: By id, in the order of sending.
        requests: Chunks in flight, wanted or not; `tokens`, `bulk_tokens` and `bytes` are theirs.
        invalid_lines: Lines that are no answers; `invalid_line` is the first before it was ready.
        is_stopping: It is being killed or drained, and gets nothing new.
        ignores_output: What it still says does not count.
        kill_at: When it will be killed, with the cause and the reason.
        abandon_at: Until when it must have died.
    """

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        self.served: Served | None = None
        self.health: Health | None = None
        self.awaited: dict[int, Awaited] = {}
        self.requests = self.tokens = self.bulk_tokens = self.bytes = 0
        self.has_embedded = False
        self.invalid_lines = 0
        self.invalid_line = ""
        self.is_stopping = False
        self.ignores_output = False
        self.kill_at: tuple[float, Cause, str] | None = None
        self.abandon_at: float | None = None

    def has_room(self, chunk: Chunk) -> bool:
        """Whether a chunk fits into the window of what is in flight."""
        assert self.served is not None
        limits = self.served.limits
        if not self.requests:
            return True
        if self.requests >= min(WINDOW_REQUESTS, limits.max_in_flight):
            return False
        if self.bytes + chunk.bytes > min(_WINDOW_BYTES, limits.max_in_flight_bytes // 2):
            return False
        # Only bulk work counts against bulk work: a short text never waits behind a long call in here.
        return chunk.is_short or self.bulk_tokens == 0 or self.bulk_tokens + chunk.tokens <= _WINDOW_TOKENS

    def count(self, chunk: Chunk, sign: int) -> None:
        """Count a chunk that was sent (1) or answered (-1)."""
        self.requests += sign
        self.tokens += sign * chunk.tokens
        self.bytes += sign * chunk.bytes
        self.bulk_tokens += 0 if chunk.is_short else sign * chunk.tokens

    def chunks(self) -> list[Chunk]:
        """Return what is in flight, in the order in which it was sent."""
        return [awaited for awaited in self.awaited.values() if isinstance(awaited, Chunk)]

    def ids_of(self, call: AnyCall) -> list[int]:
        """Return the ids under which chunks of a call are in flight."""
        return [key for key, each in self.awaited.items() if isinstance(each, Chunk) and each.call is call]

    def stop_at(self, at: float, cause: Cause, why: str) -> None:
        """Send nothing more, and have the process killed then, unless it is gone or another reason is sooner."""
        self.is_stopping = True
        if self.kill_at is None or at < self.kill_at[0]:
            self.kill_at = (at, cause, why)


class WorkerSlot:
    """A slot for one worker at a time: its life, and what outlives a process. The pool's lock guards it.

    Attributes:
        spawned: How many processes there have been, the one of `generation` included.
        controls: What the host has asked of this worker and has not been sent.
    """

    def __init__(self, number: int, *, replay: bool) -> None:
        self.number = number
        self.life = Life()
        self.case = Investigation(replay=replay)
        self.generation: Generation | None = None
        self.spawned = 0
        self.last_exit: ExitReport | None = None
        self.controls: deque[Control] = deque()

    @property
    def serving(self) -> Generation | None:
        """The generation that requests may be sent to; None while there is none."""
        generation = self.generation
        if generation is None or self.life.state is not State.READY or generation.is_stopping:
            return None
        return None if generation.served is None else generation

    def room_for(self, chunk: Chunk) -> Generation | None:
        """Return the generation that a chunk may be sent to now; None where it has to wait."""
        generation = self.serving
        if generation is None or self.case.is_open or not generation.has_room(chunk):
            return None
        return generation

    def stats(self, now: float, policy: Policy) -> WorkerStats:
        """Take a snapshot."""
        current = self.generation
        return WorkerStats(
            state=self.life.state,
            pid=None if current is None else current.process.worker_pid,
            generation=self.spawned,
            in_flight=0 if current is None else current.requests,
            outstanding_tokens=0 if current is None else current.tokens,
            budget_level=level_at(self.life, now, policy),
            is_investigating=self.case.is_open,
            last_exit=self.last_exit,
        )
