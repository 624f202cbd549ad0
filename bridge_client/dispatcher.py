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

from bridge_client.calls import Answer, Chunk, EmbedCall
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
from bridge_client.worker_slot import Awaited, Control, Internal, WorkerSlot, is_short
from embed_worker import protocol
from embed_worker.protocol import ErrorCode, Failure, Limits, ProtocolError, Response

_RECENT = 1024  # calls that the percentiles speak of
_LONGEST_DRAIN_S = 15.0  # a supervised worker allows itself 10


class Dispatcher:
    """The queue of a client, and the way of every chunk through it."""

    def __init__(
        self,
        options: ClientOptions,
        slots: Sequence[WorkerSlot],
        *,
        call_back: Callable[[Callable[[], object]], None],
        wake: Callable[[float], None],
    ) -> None:
        self._options = options
        self._slots = slots
        self._call_back = call_back
        self._wake = wake  # the thread that looks at the clock must look by then
        self._short: deque[Chunk] = deque()
        self._bulk: deque[Chunk] = deque()
        self._queued_bytes = 0
        self._quarantine = Quarantine()
        self._ids = itertools.count(1)
        self._deliveries: list[Callable[[], object]] = []
        self._room: list[Future[None]] = []
        self.queued_calls = 0
        self.counts: Counter[str] = Counter()  # requests, replays, blamed, timeouts, unknown
        self.latencies_ms: deque[float] = deque(maxlen=_RECENT)

    def take_deliveries(self) -> list[Callable[[], object]]:
        """Return what is to be called once the lock is free, and forget it."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries

    # The queue

    def submit(self, call: EmbedCall, chunks: list[Chunk], now: float) -> None:
        """Queue a call.

        Raises:
            PoisonedInputError: An input is known to kill the worker.
            QueueFullError: Too much is waiting.
        """
        if blamed := self._quarantine.find(call.inputs, now):
            raise PoisonedInputError(tuple(blamed), None)
        is_full = self.queued_calls >= self._options.max_queued_requests
        if self.queued_calls and (is_full or self._queued_bytes + call.bytes > self._options.max_queued_bytes):
            raise QueueFullError(f"{self.queued_calls} calls with {self._queued_bytes} bytes are waiting")
        call.submitted_at = now
        self.counts["requests"] += 1
        for chunk in chunks:
            self._lane(chunk).append(chunk)
            self._count_unsent(call, chunk.weight)
        if call.deadline is not None:
            self._wake(call.deadline)
        self.dispatch(now)

    def add_room_waiter(self, future: Future[None]) -> None:
        """Complete a future when a call that did not fit may be tried again."""
        self._room.append(future)
        if self.queued_calls < self._options.max_queued_requests:
            self.make_room()

    def make_room(self) -> None:
        """Complete the futures of those who wait for room."""
        waiting, self._room = self._room, []
        self._deliveries.extend(functools.partial(_complete, future) for future in waiting)

    def _lane(self, chunk: Chunk) -> deque[Chunk]:
        return self._short if is_short(chunk) else self._bulk

    def _count_unsent(self, call: EmbedCall, change: int) -> None:
        before, call.unsent = call.unsent, call.unsent + change
        sign = (call.unsent > 0) - (before > 0)
        self.queued_calls += sign
        self._queued_bytes += sign * call.bytes
        if sign < 0:
            self.make_room()

    # Sending

    def dispatch(self, now: float) -> None:
        """Send what may be sent: isolated chunks alone and first, then short chunks, then bulk."""
        for slot in self._slots:
            while slot.accepts and not slot.is_busy and slot.case.isolated:
                chunk = slot.case.isolated.popleft()
                if self._send(slot, chunk, slot.case.isolated, now):
                    slot.case.probe(chunk)
            slot.case.close_if_done()
        for lane in (self._short, self._bulk):
            while lane and (free := self._least_loaded(lane[0])) is not None:
                self._send(free, lane.popleft(), lane, now)

    def _least_loaded(self, chunk: Chunk) -> WorkerSlot | None:
        free = [slot for slot in self._slots if slot.accepts and not slot.case.is_open and slot.has_room(chunk)]
        return min(free, key=lambda slot: slot.tokens, default=None)

    def _send(self, slot: WorkerSlot, chunk: Chunk, source: deque[Chunk], now: float) -> bool:
        """Send a chunk; False when it has no outcome to wait for, or went back to `source` in parts."""
        if chunk.call.is_over:
            return False
        assert slot.process is not None
        assert slot.served is not None
        if blamed := self._quarantine.find(chunk.texts, now):
            self._take_out(chunk, blamed[0], source, now)
            return False
        most = min(slot.served.limits.max_inputs, slot.case.ceiling(now) or math.inf)
        if len(chunk) > most:
            source.extendleft(reversed(chunk.cut(int(most))))
            return False
        request_id = next(self._ids)
        line = self._encode(chunk, request_id, slot.served.limits, source)
        if line is None:
            return False
        self.counts["replays"] += chunk.attempts > 0
        chunk.attempts += 1
        if chunk.sent_at is None:
            chunk.sent_at = now
        if not slot.is_busy and slot.health is not None:
            slot.health.work_began(now)
        slot.awaited[request_id] = chunk
        slot.load(chunk)
        self._count_unsent(chunk.call, -chunk.weight)
        slot.process.send(line)
        self._wake(chunk.deadline)
        return True

    def _encode(self, chunk: Chunk, request_id: int, limits: Limits, source: deque[Chunk]) -> bytes | None:
        """Write the line; one that is too long is halved, and a single text that is too long is refused."""
        try:
            line = protocol.encode_request(request_id, chunk.call.request(chunk.start, chunk.stop))
        except ProtocolError as error:
            self.fail(chunk.call, RequestError(error.code, str(error), retryable=False))
            return None
        if len(line) - 1 <= limits.max_line_bytes:
            return line
        if len(chunk) > 1:
            source.extendleft(reversed(chunk.cut(len(chunk) // 2)))
        else:
            message = f"input {chunk.start} makes a line of {len(line)} bytes, the limit is {limits.max_line_bytes}"
            too_long = RequestError(ErrorCode.INPUT_TOO_LONG, message, retryable=False, index=chunk.start)
            self.fail(chunk.call, too_long)
        return None

    def _take_out(self, chunk: Chunk, index: int, source: deque[Chunk], now: float) -> None:
        """Blame the input at `index` of a chunk without trying it again; the rest goes back to `source`."""
        before, rest = chunk.cut(index)
        blamed, behind = rest.cut(1)
        source.extendleft(part for part in (behind, before) if len(part))
        self._count_unsent(chunk.call, -1)
        chunk.call.blame(blamed.start)
        self._conclude(chunk.call, now)

    # Control requests

    def ask(self, slot: WorkerSlot, control: Control) -> None:
        """Send a control request as soon as its worker is ready."""
        slot.controls.append(control)
        self._wake(control.deadline)
        self.send_controls(slot)

    def send_controls(self, slot: WorkerSlot) -> None:
        """Send the control requests that have waited for their worker."""
        while slot.accepts and slot.controls:
            control = slot.controls.popleft()
            if not control.is_over:
                self.send_control(slot, control.request, control)

    def send_control(self, slot: WorkerSlot, request: protocol.Request, awaited: Awaited) -> None:
        """Send something that waits in no queue and counts towards no limit."""
        if slot.process is not None:
            request_id = next(self._ids)
            slot.awaited[request_id] = awaited
            slot.process.send(protocol.encode_request(request_id, request))

    # Outcomes

    def answered(self, slot: WorkerSlot, chunk: Chunk, response: Response, answer: Answer | None, now: float) -> None:
        """Take what a worker has made of a chunk; `answer` is None for an error, or where nobody wants it."""
        slot.unload(chunk)
        slot.case.answered(chunk)
        if slot.health is not None:
            slot.health.embedded(now)
        if chunk.call.is_over:
            pass
        elif isinstance(response, Failure):
            self._refused(slot, chunk, response, now)
        elif answer is not None and chunk.call.take(chunk, answer):
            self._conclude(chunk.call, now)
        elif slot.process is not None:
            # restart(accept_model=True) while the call was running: a part of it lies in another vector space.
            self.fail(chunk.call, ModelChangedError(slot.process.report(None, Cause.MODEL_CHANGED)))
        self.dispatch(now)

    def _refused(self, slot: WorkerSlot, chunk: Chunk, failure: Failure, now: float) -> None:
        if failure.code == ErrorCode.SHUTTING_DOWN:
            # No answer about the request: it was not begun, and the worker is about to leave.
            slot.stop_at(now + _LONGEST_DRAIN_S, Cause.EXITED, "it said that it would end, and did not")
            self._wake(now + _LONGEST_DRAIN_S)
            (slot.case.isolated if chunk.is_isolated else self._lane(chunk)).appendleft(chunk)
            self._count_unsent(chunk.call, chunk.weight)
            return
        if failure.code == ErrorCode.OUT_OF_MEMORY:
            slot.case.out_of_memory(len(chunk), now)
        index = None if failure.index is None else chunk.start + failure.index
        self.fail(chunk.call, RequestError(failure.code, failure.message, retryable=failure.is_retryable, index=index))

    def answered_control(self, control: Control, response: Response) -> None:
        """Pass an answer on."""
        if isinstance(response, Failure):
            self.fail(control, RequestError(response.code, response.message, retryable=response.is_retryable))
        elif control.settle(functools.partial(dict, response.members)):
            self._deliver(control)

    def carry_out(self, verdict: Verdict, report: ExitReport, now: float) -> None:
        """Do as the investigation says: what was in flight is waiting again, or has its outcome."""
        for chunk in reversed(verdict.again):
            self._lane(chunk).appendleft(chunk)
        for chunk in (*verdict.again, *verdict.isolated):
            self._count_unsent(chunk.call, chunk.weight)
        for chunk in verdict.blamed:
            self.counts["blamed"] += 1
            self._quarantine.add(chunk.texts[0], now)
            chunk.call.blame(chunk.start)
            self._conclude(chunk.call, now)
        for chunk in verdict.failed:
            self.fail(chunk.call, error_of(report))

    def fail_waiting(self, slot: WorkerSlot, make_error: Callable[[], BridgeError], *, everything: bool) -> None:
        """Fail what only this slot could have served, or everything that waits."""
        waiting: list[EmbedCall | Control] = [chunk.call for chunk in slot.case.isolated]
        waiting.extend(slot.controls)
        slot.controls.clear()
        if everything:
            waiting.extend(chunk.call for chunk in (*self._short, *self._bulk))
        for promise in waiting:
            self.fail(promise, make_error())

    def fail(self, promise: EmbedCall | Control, error: BridgeError) -> None:
        """End a call with an error, unless it has ended before."""
        if promise.settle(error):
            if isinstance(promise, EmbedCall):
                self.withdraw(promise)
            self._deliver(promise)

    def withdraw(self, call: EmbedCall) -> None:
        """Drop what is left of a call: unsent chunks here, sent ones in the worker. Their late answers are ignored."""
        if call.unsent:
            for lane in (self._short, self._bulk, *(slot.case.isolated for slot in self._slots)):
                kept = [chunk for chunk in lane if chunk.call is not call]
                lane.clear()
                lane.extend(kept)
            self._count_unsent(call, -call.unsent)
        for slot in self._slots:
            for request_id in slot.ids_of(call):
                self.send_control(slot, protocol.Cancel(target=request_id), Internal.CANCEL)
            slot.case.close_if_done()

    def _conclude(self, call: EmbedCall, now: float) -> None:
        if call.conclude():
            self.latencies_ms.append((now - call.submitted_at) * 1e3)
            self._deliver(call)

    def _deliver(self, promise: EmbedCall | Control) -> None:
        if isinstance(promise, EmbedCall) and promise.calls_back:
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
            promise = each.call if isinstance(each, Chunk) else each
            if not promise.is_over:
                self.counts["timeouts"] += 1
                message = f"no answer within {promise.timeout_s:g} s"
                self.fail(promise, RequestTimeoutError(message, timeout_s=promise.timeout_s))
        self.dispatch(now)

    def _waiting(self) -> Iterator[Chunk | Control]:
        """Everything that somebody waits for."""
        yield from self._short
        yield from self._bulk
        for slot in self._slots:
            yield from slot.case.isolated
            for each in (*slot.controls, *slot.awaited.values()):
                if not isinstance(each, Internal) and not (each.call if isinstance(each, Chunk) else each).is_over:
                    yield each


def _complete(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(None)
