"""From the queue to a worker and back to the caller: what is sent where and when, and how each call ends.

No threads, no clock, no lock of its own: whoever calls holds the pool's, passes the time, and delivers what
`take_deliveries()` returns once the lock is free, because the host's code may hang on a future.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bridge_client.chunks import Answer, AnyCall, Call, Chunk
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
from bridge_client.futures import Promise
from bridge_client.handshake import Served
from bridge_client.investigation import Quarantine, Verdict
from bridge_client.options import ClientOptions
from bridge_client.worker_slot import Awaited, Control, Generation, Internal, WorkerSlot
from embed_worker import protocol
from embed_worker.protocol import ErrorCode, Failure, ProtocolError, Response

_RECENT = 1024  # calls that the percentiles speak of
_LONGEST_DRAIN_S = 15.0  # a supervised worker allows itself 10


class Dispatcher:
    """The queue of a client, and the way of every chunk through it."""

    def __init__(self, options: ClientOptions, slots: Sequence[WorkerSlot], wake: Callable[[float], None]) -> None:
        self._options = options
        self._slots = slots
        self._wake = wake  # the thread that looks at the clock must look by then
        self._short: deque[Chunk] = deque()
        self._bulk: deque[Chunk] = deque()
        self._queued_bytes = 0
        self._outside: OrderedDict[AnyCall, None] = OrderedDict()  # calls that wait for room in the queue, in order
        self._quarantine = Quarantine()
        self._ids = itertools.count(1)
        self._deliveries: list[Promise[Any]] = []
        self.queued_calls = 0
        self.counts: Counter[str] = Counter()  # requests, replays, blamed, timeouts, unknown
        self.latencies_ms: deque[float] = deque(maxlen=_RECENT)

    def take_deliveries(self) -> list[Promise[Any]]:
        """Return what is to be delivered once the lock is free, and forget it."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries

    # The queue

    def submit(self, call: AnyCall, now: float) -> None:
        """Queue a call, or let it wait for room: it is queued in its turn.

        Raises:
            PoisonedInputError: An input is known to kill the worker.
            QueueFullError: Too much is waiting, and the call is not one that waits for room.
        """
        if self._quarantine.until and (blamed := self._quarantine.find(call.inputs, now)):
            raise PoisonedInputError(tuple(blamed), None)
        call.submitted_at = now
        if self._outside or not self._has_room(call):
            if not call.waits_for_room:
                raise QueueFullError(f"{self.queued_calls} calls with {self._queued_bytes} bytes are waiting")
            self._outside[call] = None
            self._wake(_deadline(call))
            return
        self._admit(call)
        self.dispatch(now)

    def _has_room(self, call: AnyCall) -> bool:
        """Whether a call fits into the queue; one that is larger than the queue does when it is alone."""
        if not self.queued_calls:
            return True
        is_full = self.queued_calls >= self._options.max_queued_requests
        return not is_full and self._queued_bytes + call.bytes <= self._options.max_queued_bytes

    def _admit(self, call: AnyCall) -> None:
        self.counts["requests"] += 1
        for chunk in call.chunks():
            self._lane(chunk).append(chunk)
            self._count_unsent(call, chunk.weight)
        if call.deadline is not None:
            self._wake(call.deadline)

    def _admit_waiting(self) -> bool:
        """Queue what has waited for room, in its order; False when nobody's turn has come."""
        before = len(self._outside)
        while self._outside and self._has_room(call := next(iter(self._outside))):
            del self._outside[call]
            if not call.is_over:
                self._admit(call)
        return len(self._outside) < before

    def _lane(self, chunk: Chunk) -> deque[Chunk]:
        return self._short if chunk.is_short else self._bulk

    def _count_unsent(self, call: AnyCall, change: int) -> None:
        before, call.unsent = call.unsent, call.unsent + change
        sign = (call.unsent > 0) - (before > 0)
        self.queued_calls += sign
        self._queued_bytes += sign * call.bytes

    # Sending

    def dispatch(self, now: float) -> None:
        """Send what may be sent: isolated chunks alone and first, then short chunks, then bulk."""
        for slot in self._slots:
            if slot.case.isolated:
                self._send_probe(slot, now)
        while True:
            for lane in (self._short, self._bulk):
                while lane and (least := self._least_loaded(lane[0])) is not None:
                    self._send(least, lane.popleft(), lane, now)
            if not self._outside or not self._admit_waiting():
                return

    def _send_probe(self, slot: WorkerSlot, now: float) -> None:
        isolated = slot.case.isolated
        while isolated and (generation := slot.serving) is not None and not generation.requests:
            chunk = isolated.popleft()
            if self._send(slot, chunk, isolated, now):
                slot.case.probe(chunk)
        slot.case.close_if_done()

    def _least_loaded(self, chunk: Chunk) -> WorkerSlot | None:
        best, least = None, math.inf
        for slot in self._slots:
            generation = slot.room_for(chunk)
            if generation is not None and generation.tokens < least:
                best, least = slot, generation.tokens
        return best

    def _send(self, slot: WorkerSlot, chunk: Chunk, source: deque[Chunk], now: float) -> bool:
        """Send a chunk; False when it has no outcome to wait for, or went back to `source` in parts."""
        if chunk.call.is_over:
            return False
        generation = slot.generation
        assert generation is not None
        assert generation.served is not None
        if self._quarantine.until and (blamed := self._quarantine.find(chunk.texts, now)):
            self._take_out(chunk, blamed[0], source, now)
            return False
        most = min(generation.served.limits.max_inputs, slot.case.ceiling(now) or math.inf)
        if chunk.weight > most:
            source.extendleft(reversed(chunk.cut(int(most))))
            return False
        request_id = next(self._ids)
        line = self._encode(chunk, request_id, generation.served, source)
        if line is None:
            return False
        self.counts["replays"] += chunk.attempts > 0
        chunk.attempts += 1
        if chunk.sent_at is None:
            chunk.sent_at = now
        if not generation.requests and generation.health is not None:
            generation.health.work_began(now)
        generation.awaited[request_id] = chunk
        generation.count(chunk, 1)
        self._count_unsent(chunk.call, -chunk.weight)
        generation.process.send(line)
        self._wake(chunk.deadline)
        return True

    def _encode(self, chunk: Chunk, request_id: int, served: Served, source: deque[Chunk]) -> bytes | None:
        """Write the line; one that is too long is halved, and a single text that is too long is refused."""
        try:
            request = chunk.call.request(chunk.start, chunk.stop, served.prompts)
            line = protocol.encode_request(request_id, request)
        except ProtocolError as error:
            self.fail(chunk.call, RequestError(error.code, str(error), retryable=False))
            return None
        most = served.limits.max_line_bytes
        if len(line) - 1 <= most:
            return line
        if len(chunk) > 1:
            source.extendleft(reversed(chunk.cut(len(chunk) // 2)))
        else:
            message = f"input {chunk.start} makes a line of {len(line)} bytes, the limit is {most}"
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
        while slot.controls and (generation := slot.serving) is not None:
            control = slot.controls.popleft()
            if not control.is_over:
                self.send_control(generation, control.request, control)

    def send_control(self, generation: Generation, request: protocol.Request, awaited: Awaited) -> None:
        """Send something that waits in no queue and counts towards no limit."""
        request_id = next(self._ids)
        generation.awaited[request_id] = awaited
        generation.process.send(protocol.encode_request(request_id, request))

    # Outcomes

    def answered(
        self,
        slot: WorkerSlot,
        generation: Generation,
        chunk: Chunk,
        response: Response,
        answer: Answer | None,
        now: float,
    ) -> None:
        """Take what a worker has made of a chunk; `answer` is None for an error, or where nobody wants it."""
        generation.count(chunk, -1)
        if chunk.is_isolated:
            slot.case.answered(chunk)
        if generation.health is not None:
            generation.health.embedded(now)
        if chunk.call.is_over:
            pass
        elif isinstance(response, Failure):
            self._refused(slot, generation, chunk, response, now)
        elif answer is not None and chunk.call.take(chunk, answer):
            self._conclude(chunk.call, now)
        else:
            # restart(accept_model=True) while the call was running: a part of it lies in another vector space.
            self.fail(chunk.call, ModelChangedError(generation.process.report(None, Cause.MODEL_CHANGED)))
        self.dispatch(now)

    def _refused(self, slot: WorkerSlot, generation: Generation, chunk: Chunk, failure: Failure, now: float) -> None:
        if failure.code == ErrorCode.SHUTTING_DOWN:
            # No answer about the request: it was not begun, and the worker is about to leave.
            generation.stop_at(now + _LONGEST_DRAIN_S, Cause.EXITED, "it said that it would end, and did not")
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
            self._deliveries.append(control)

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
        waiting: list[AnyCall | Control] = [chunk.call for chunk in slot.case.isolated]
        waiting.extend(slot.controls)
        slot.controls.clear()
        if everything:
            waiting.extend(chunk.call for chunk in (*self._short, *self._bulk))
            waiting.extend(self._outside)
        for promise in waiting:
            self.fail(promise, make_error())

    def fail(self, promise: AnyCall | Control, error: BridgeError) -> None:
        """End a call with an error, unless it has ended before."""
        if promise.settle(error):
            if isinstance(promise, Call):
                self.withdraw(promise)
            self._deliveries.append(promise)

    def mend(self) -> None:
        """Count anew what waits, and drop what nobody wants, after an error in the middle of a change."""
        for over in [each for each in self._outside if each.is_over]:
            del self._outside[over]
        self.queued_calls = self._queued_bytes = 0
        waiting: list[Chunk] = []
        for lane in (self._short, self._bulk, *(slot.case.isolated for slot in self._slots)):
            kept = [chunk for chunk in lane if not chunk.call.is_over]
            lane.clear()
            lane.extend(kept)
            waiting += kept
        for chunk in waiting:
            chunk.call.unsent = 0
        for chunk in waiting:
            self._count_unsent(chunk.call, chunk.weight)

    def withdraw(self, call: AnyCall) -> None:
        """Drop what is left of a call: unsent chunks here, sent ones in the worker. Their late answers are ignored."""
        self._outside.pop(call, None)
        if call.unsent:
            for lane in (self._short, self._bulk, *(slot.case.isolated for slot in self._slots)):
                kept = [chunk for chunk in lane if chunk.call is not call]
                lane.clear()
                lane.extend(kept)
            self._count_unsent(call, -call.unsent)
        for slot in self._slots:
            if (generation := slot.generation) is not None:
                for request_id in generation.ids_of(call):
                    self.send_control(generation, protocol.Cancel(target=request_id), Internal.CANCEL)
            slot.case.close_if_done()

    def _conclude(self, call: AnyCall, now: float) -> None:
        if call.conclude():
            self.latencies_ms.append((now - call.submitted_at) * 1e3)
            self._deliveries.append(call)

    # Time

    def next_deadline(self) -> float:
        """Return when the first time-out is due."""
        return min(map(_deadline, self._waiting()), default=math.inf)

    def expire(self, now: float) -> None:
        """Fail the calls whose time is over; the worker is told, and lives on."""
        for each in [each for each in self._waiting() if _deadline(each) <= now]:
            promise = each.call if isinstance(each, Chunk) else each
            if not promise.is_over:
                self.counts["timeouts"] += 1
                is_outside = isinstance(promise, Call) and promise in self._outside
                why = "the queue was full for" if is_outside else "no answer within"
                message = f"{why} {promise.timeout_s:g} s"
                self.fail(promise, RequestTimeoutError(message, timeout_s=promise.timeout_s))
        self.dispatch(now)

    def _waiting(self) -> Iterator[Chunk | Control | AnyCall]:
        """Everything that somebody waits for."""
        yield from self._outside
        yield from self._short
        yield from self._bulk
        for slot in self._slots:
            yield from slot.case.isolated
            in_flight = () if slot.generation is None else slot.generation.awaited.values()
            for each in (*slot.controls, *in_flight):
                if not isinstance(each, Internal) and not (each.call if isinstance(each, Chunk) else each).is_over:
                    yield each


def _deadline(waiting: Chunk | Control | AnyCall) -> float:
    """Return when its time is over; that of a call is its time for finding room."""
    if isinstance(waiting, Call) and waiting.deadline is None:
        return waiting.submitted_at + waiting.timeout_s
    assert waiting.deadline is not None
    return waiting.deadline
