"""One slot in the pool of workers: its life, its process while there is one, and what that has been sent."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, TypeAlias

from bridge_client.calls import Chunk, EmbedCall, Promise
from bridge_client.exits import Cause, ExitReport
from bridge_client.handshake import Served
from bridge_client.health import Health
from bridge_client.investigation import Investigation
from bridge_client.lifecycle import Life, Policy, State, level_at
from bridge_client.stats import WorkerStats
from bridge_client.worker_process import WorkerProcess
from embed_worker.protocol import Request

_SHORT_TOKENS = 512  # about one micro-batch of the worker
_WINDOW_REQUESTS = 256  # more would not make better batches, only more chunks to isolate
_WINDOW_TOKENS = 65_536  # of bulk work: seconds of it, so that its time-outs measure work and not the queue
_WINDOW_BYTES = 16 * 2**20


class Internal(enum.Enum):
    """What the supervisor itself asks a worker."""

    HANDSHAKE = enum.auto()
    PING = enum.auto()
    CANCEL = enum.auto()


class Control(Promise[dict[str, Any]]):
    """An `info`, `ping` or `metrics` of the host; answered by the worker at once, so it waits in no queue."""

    def __init__(self, request: Request, worker: int, deadline: float, timeout_s: float) -> None:
        super().__init__()
        self.request = request
        self.worker = worker
        self.deadline = deadline
        self.timeout_s = timeout_s


Awaited: TypeAlias = Chunk | Control | Internal


class WorkerSlot:
    """A worker's slot. The supervisor's lock guards it."""

    def __init__(self, number: int, *, replay: bool) -> None:
        self.number = number
        self.life = Life()
        self.case = Investigation(replay=replay)
        self.generation = 0
        self.last_exit: ExitReport | None = None
        self.controls: deque[Control] = deque()
        self.forget_process()

    def forget_process(self) -> None:
        """Be empty: nothing of the old process counts any more."""
        self.process: WorkerProcess | None = None
        self.served: Served | None = None  # since it has answered `info`, like `health`
        self.health: Health | None = None
        self.awaited: dict[int, Awaited] = {}  # by id, in the order of sending
        self.requests = self.tokens = self.bulk_tokens = self.bytes = 0  # of the chunks in flight
        self.has_embedded = False
        self.invalid_lines = 0
        self.is_stopping = False  # being killed or drained: gets nothing new
        self.ignores_output = False  # what it still says does not count
        self.kill_at: tuple[float, Cause, str] | None = None
        self.abandon_at: float | None = None

    @property
    def accepts(self) -> bool:
        """Whether requests may be sent."""
        return self.life.state is State.READY and not self.is_stopping and self.served is not None

    @property
    def is_busy(self) -> bool:
        """Whether work is in flight, wanted or not."""
        return self.requests > 0

    def stats(self, now: float, policy: Policy) -> WorkerStats:
        """Take a snapshot."""
        return WorkerStats(
            state=self.life.state,
            pid=None if self.process is None else self.process.worker_pid,
            generation=self.generation,
            in_flight=self.requests,
            outstanding_tokens=self.tokens,
            budget_level=level_at(self.life, now, policy),
            is_investigating=self.case.is_open,
            last_exit=self.last_exit,
        )

    def has_room(self, chunk: Chunk) -> bool:
        """Whether a chunk fits into the window of what is in flight."""
        assert self.served is not None
        limits = self.served.limits
        if not self.is_busy:
            return True
        if self.requests >= min(_WINDOW_REQUESTS, limits.max_in_flight):
            return False
        if self.bytes + chunk.bytes > min(_WINDOW_BYTES, limits.max_in_flight_bytes // 2):
            return False
        # Only bulk work counts against bulk work: a short text never waits behind a long call in here.
        return is_short(chunk) or self.bulk_tokens == 0 or self.bulk_tokens + chunk.tokens <= _WINDOW_TOKENS

    def load(self, chunk: Chunk) -> None:
        """Count a chunk that was sent."""
        self._count(chunk, 1)

    def unload(self, chunk: Chunk) -> None:
        """Count a chunk that was answered."""
        self._count(chunk, -1)

    def _count(self, chunk: Chunk, sign: int) -> None:
        self.requests += sign
        self.tokens += sign * chunk.tokens
        self.bytes += sign * chunk.bytes
        self.bulk_tokens += 0 if is_short(chunk) else sign * chunk.tokens

    def chunks(self) -> list[Chunk]:
        """Return what is in flight, in the order in which it was sent."""
        return [awaited for awaited in self.awaited.values() if isinstance(awaited, Chunk)]

    def ids_of(self, call: EmbedCall) -> list[int]:
        """Return the ids under which chunks of a call are in flight."""
        return [key for key, each in self.awaited.items() if isinstance(each, Chunk) and each.call is call]

    def stop_at(self, at: float, cause: Cause, why: str) -> None:
        """Send nothing more, and have the process killed then, unless it is gone or another reason is sooner."""
        self.is_stopping = True
        if self.kill_at is None or at < self.kill_at[0]:
            self.kill_at = (at, cause, why)


def is_short(chunk: Chunk) -> bool:
    """Whether a chunk is so small that it should not wait behind larger ones."""
    return chunk.tokens <= _SHORT_TOKENS
