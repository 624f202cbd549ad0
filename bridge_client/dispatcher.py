"""From the queue to a worker and back to the caller: what is sent where and when, and how each call ends.

No threads, no clock, no lock of its own: whoever calls holds the supervisor's, passes the time, and delivers
`take_deliveries()` once the lock is free, because the host's code may hang on a future.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError

from bridge_client.errors import (
    BridgeError,
    ModelChangedError,
    PoisonedInputError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    error_of,
)
from bridge_client.exits import Cause, ExitReport
from bridge_client.investigation import Quarantine, Verdict
from bridge_client.options import ClientOptions
from bridge_client.place import Awaited, Control, Internal, Place, is_short
from bridge_client.requests import Answer, Job, Piece
from embed_worker import protocol
from embed_worker.protocol import ErrorCode, Failure, Limits, ProtocolError, Response

_RECENT = 1024  # calls that the percentiles speak of
_LONGEST_DRAIN_S = 15.0  # a supervised worker allows itself 10


class Dispatcher:
    """The queue of a client, and the way of every piece through it."""

    def __init__(
        self,
        options: ClientOptions,
        places: Sequence[Place],
        *,
        call_back: Callable[[Callable[[], object]], None],
        wake: Callable[[float], None],
    ) -> None:
        self._options = options
        self._places = places
        self._call_back = call_back
        self._wake = wake  # the thread that looks at the clock must look by then
        self._short: deque[Piece] = deque()
        self._bulk: deque[Piece] = deque()
        self._queued_bytes = 0
        self._quarantine = Quarantine()
        self._ids = itertools.count(1)
        self._deliveries: list[Callable[[], object]] = []
        self._room: list[Future[None]] = []
        self.queued_jobs = 0
        self.counts: Counter[str] = Counter()  # requests, replays, convictions, timeouts, unknown
        self.latencies_ms: deque[float] = deque(maxlen=_RECENT)

    def take_deliveries(self) -> list[Callable[[], object]]:
        """Return what is to be called once the lock is free, and forget it."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries

    # The queue

    def submit(self, job: Job, pieces: list[Piece], now: float) -> None:
        """Queue a call.

        Raises:
            PoisonedInputError: An input is known to kill the worker.
            QueueFullError: Too much is waiting.
        """
        if guilty := self._quarantine.find(job.inputs, now):
            raise PoisonedInputError(tuple(guilty), None)
        is_full = self.queued_jobs >= self._options.max_queued_requests
        if self.queued_jobs and (is_full or self._queued_bytes + job.bytes > self._options.max_queued_bytes):
            raise QueueFullError(f"{self.queued_jobs} calls with {self._queued_bytes} bytes are waiting")
        job.submitted_at = now
        self.counts["requests"] += 1
        for piece in pieces:
            self._lane(piece).append(piece)
            self._count_unsent(job, piece.weight)
        if job.deadline is not None:
            self._wake(job.deadline)
        self.dispatch(now)

    def add_room_waiter(self, future: Future[None]) -> None:
        """Complete a future when a call that did not fit may be tried again."""
        self._room.append(future)
        if self.queued_jobs < self._options.max_queued_requests:
            self.make_room()

    def make_room(self) -> None:
        """Complete the futures of those who wait for room."""
        waiting, self._room = self._room, []
        self._deliveries.extend(functools.partial(_complete, future) for future in waiting)

    def _lane(self, piece: Piece) -> deque[Piece]:
        return self._short if is_short(piece) else self._bulk

    def _count_unsent(self, job: Job, change: int) -> None:
        before, job.unsent = job.unsent, job.unsent + change
        sign = (job.unsent > 0) - (before > 0)
        self.queued_jobs += sign
        self._queued_bytes += sign * job.bytes
        if sign < 0:
            self.make_room()

    # Sending

    def dispatch(self, now: float) -> None:
        """Send what may be sent: suspects alone and first, then short pieces, then bulk."""
        for place in self._places:
            while place.accepts and not place.is_busy and place.case.suspects:
                piece = place.case.suspects.popleft()
                if self._send(place, piece, place.case.suspects, now):
                    place.case.on_trial(piece)
            place.case.close_if_done()
        for lane in (self._short, self._bulk):
            while lane and (free := self._least_loaded(lane[0])) is not None:
                self._send(free, lane.popleft(), lane, now)

    def _least_loaded(self, piece: Piece) -> Place | None:
        free = [place for place in self._places if place.accepts and not place.case.is_open and place.has_room(piece)]
        return min(free, key=lambda place: place.tokens, default=None)

    def _send(self, place: Place, piece: Piece, source: deque[Piece], now: float) -> bool:
        """Send a piece; False when it has no outcome to wait for, or went back to `source` in parts."""
        if piece.job.is_over:
            return False
        assert place.process is not None
        assert place.served is not None
        if guilty := self._quarantine.find(piece.texts, now):
            self._take_out(piece, guilty[0], source, now)
            return False
        most = min(place.served.limits.max_inputs, place.case.ceiling(now) or math.inf)
        if len(piece) > most:
            source.extendleft(reversed(piece.cut(int(most))))
            return False
        request_id = next(self._ids)
        line = self._encode(piece, request_id, place.served.limits, source)
        if line is None:
            return False
        self.counts["replays"] += piece.attempts > 0
        piece.attempts += 1
        if piece.sent_at is None:
            piece.sent_at = now
        if not place.is_busy and place.health is not None:
            place.health.work_began(now)
        place.awaited[request_id] = piece
        place.load(piece)
        self._count_unsent(piece.job, -piece.weight)
        place.process.send(line)
        self._wake(piece.deadline)
        return True

    def _encode(self, piece: Piece, request_id: int, limits: Limits, source: deque[Piece]) -> bytes | None:
        """Write the line; one that is too long is halved, and a single text that is too long is refused."""
        try:
            line = protocol.encode_request(request_id, piece.job.request(piece.start, piece.stop))
        except ProtocolError as error:
            self.fail(piece.job, RequestError(error.code, str(error), retryable=False))
            return None
        if len(line) - 1 <= limits.max_line_bytes:
            return line
        if len(piece) > 1:
            source.extendleft(reversed(piece.cut(len(piece) // 2)))
        else:
            message = f"input {piece.start} makes a line of {len(line)} bytes, the limit is {limits.max_line_bytes}"
            too_long = RequestError(ErrorCode.INPUT_TOO_LONG, message, retryable=False, index=piece.start)
            self.fail(piece.job, too_long)
        return None

    def _take_out(self, piece: Piece, index: int, source: deque[Piece], now: float) -> None:
        """Convict the input at `index` of a piece without trying it again; the rest goes back to `source`."""
        before, rest = piece.cut(index)
        guilty, behind = rest.cut(1)
        source.extendleft(part for part in (behind, before) if len(part))
        self._count_unsent(piece.job, -1)
        piece.job.convict(guilty.start)
        self._conclude(piece.job, now)

    # Control requests

    def ask(self, place: Place, control: Control) -> None:
        """Send a control request as soon as its worker is ready."""
        place.controls.append(control)
        self._wake(control.deadline)
        self.send_controls(place)

    def send_controls(self, place: Place) -> None:
        """Send the control requests that have waited for their worker."""
        while place.accepts and place.controls:
            control = place.controls.popleft()
            if not control.is_over:
                self.send_control(place, control.request, control)

    def send_control(self, place: Place, request: protocol.Request, awaited: Awaited) -> None:
        """Send something that waits in no queue and counts towards no limit."""
        if place.process is not None:
            request_id = next(self._ids)
            place.awaited[request_id] = awaited
            place.process.send(protocol.encode_request(request_id, request))

    # Outcomes

    def answered(self, place: Place, piece: Piece, response: Response, answer: Answer | None, now: float) -> None:
        """Take what a worker has made of a piece; `answer` is None for an error, or where nobody wants it."""
        place.unload(piece)
        place.case.answered(piece)
        if place.health is not None:
            place.health.embedded(now)
        if piece.job.is_over:
            pass
        elif isinstance(response, Failure):
            self._refused(place, piece, response, now)
        elif answer is not None and piece.job.take(piece, answer):
            self._conclude(piece.job, now)
        elif place.process is not None:
            # restart(accept_model=True) while the call was running: a part of it lies in another vector space.
            self.fail(piece.job, ModelChangedError(place.process.report(None, Cause.MODEL_CHANGED)))
        self.dispatch(now)

    def _refused(self, place: Place, piece: Piece, failure: Failure, now: float) -> None:
        if failure.code == ErrorCode.SHUTTING_DOWN:
            # No answer about the request: it was not begun, and the worker is about to leave.
            place.doom(now + _LONGEST_DRAIN_S, Cause.EXITED, "it said that it would end, and did not")
            self._wake(now + _LONGEST_DRAIN_S)
            (place.case.suspects if piece.is_suspect else self._lane(piece)).appendleft(piece)
            self._count_unsent(piece.job, piece.weight)
            return
        if failure.code == ErrorCode.OUT_OF_MEMORY:
            place.case.out_of_memory(len(piece), now)
        index = None if failure.index is None else piece.start + failure.index
        self.fail(piece.job, RequestError(failure.code, failure.message, retryable=failure.is_retryable, index=index))

    def answered_control(self, control: Control, response: Response) -> None:
        """Pass an answer on."""
        if isinstance(response, Failure):
            self.fail(control, RequestError(response.code, response.message, retryable=response.is_retryable))
        elif control.settle(functools.partial(dict, response.members)):
            self._deliver(control)

    def carry_out(self, verdict: Verdict, report: ExitReport, now: float) -> None:
        """Do as the investigation says: what was in flight is waiting again, or has its outcome."""
        for piece in reversed(verdict.again):
            self._lane(piece).appendleft(piece)
        for piece in (*verdict.again, *verdict.suspects):
            self._count_unsent(piece.job, piece.weight)
        for piece in verdict.convicted:
            self.counts["convictions"] += 1
            self._quarantine.add(piece.texts[0], now)
            piece.job.convict(piece.start)
            self._conclude(piece.job, now)
        for piece in verdict.failed:
            self.fail(piece.job, error_of(report))

    def fail_waiting(self, place: Place, make_error: Callable[[], BridgeError], *, everything: bool) -> None:
        """Fail what only this place could have served, or everything that waits."""
        waiting: list[Job | Control] = [piece.job for piece in place.case.suspects]
        waiting.extend(place.controls)
        place.controls.clear()
        if everything:
            waiting.extend(piece.job for piece in (*self._short, *self._bulk))
        for promise in waiting:
            self.fail(promise, make_error())

    def fail(self, promise: Job | Control, error: BridgeError) -> None:
        """End a call with an error, unless it has ended before."""
        if promise.settle(error):
            if isinstance(promise, Job):
                self.withdraw(promise)
            self._deliver(promise)

    def withdraw(self, job: Job) -> None:
        """Drop what is left of a call: unsent pieces here, sent ones in the worker. Their late answers are ignored."""
        if job.unsent:
            for lane in (self._short, self._bulk, *(place.case.suspects for place in self._places)):
                kept = [piece for piece in lane if piece.job is not job]
                lane.clear()
                lane.extend(kept)
            self._count_unsent(job, -job.unsent)
        for place in self._places:
            for request_id in place.ids_of(job):
                self.send_control(place, protocol.Cancel(target=request_id), Internal.CANCEL)
            place.case.close_if_done()

    def _conclude(self, job: Job, now: float) -> None:
        if job.conclude():
            self.latencies_ms.append((now - job.submitted_at) * 1e3)
            self._deliver(job)

    def _deliver(self, promise: Job | Control) -> None:
        if isinstance(promise, Job) and promise.calls_back:
            self._deliveries.append(functools.partial(self._call_back, promise.deliver))
        else:
            self._deliveries.append(promise.deliver)

    # Time

    def next_deadline(self) -> float:
        """Return when the first time-out is due."""
        return min((each.deadline for each in self._waiting()), default=math.inf)

    def expire(self, now: float) -> None:
        """Fail the calls whose time is over; the worker is told, and lives on."""
        for each in [each for each in self._waiting() if each.deadline <= now]:
            promise = each.job if isinstance(each, Piece) else each
            if not promise.is_over:
                self.counts["timeouts"] += 1
                message = f"no answer within {promise.timeout_s:g} s"
                self.fail(promise, RequestTimeoutError(message, timeout_s=promise.timeout_s))
        self.dispatch(now)

    def _waiting(self) -> Iterator[Piece | Control]:
        """Everything that somebody waits for."""
        yield from self._short
        yield from self._bulk
        for place in self._places:
            yield from place.case.suspects
            for each in (*place.controls, *place.awaited.values()):
                if not isinstance(each, Internal) and not (each.job if isinstance(each, Piece) else each).is_over:
                    yield each


def _complete(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(None)
