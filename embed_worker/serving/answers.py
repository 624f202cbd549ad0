"""What is owed to every request line, from its acceptance to its last byte: one object a line, one table, one lock.

Numbered answers leave when they are ready. Everything under `id: null` leaves in input order. An answer with vectors is
encoded at the moment it is written, so that what waits for its turn is small, and a deadline is looked at last.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from embed_worker.protocol import ErrorCode, Limits, RequestId, encode_error, encode_success
from embed_worker.serving.metrics import WorkerMetrics
from embed_worker.serving.stdio import LineWriter

_log = logging.getLogger(__name__)

_MAX_HELD = 32_768  # unnumbered answers behind a slow one; reading pauses above
_NOT_WRITTEN = "the answer could not be written"


class Queue(Protocol):
    """Where the work for an answer waits for its turns; the lock of the answers is held at every call."""

    def forget(self, task: Any) -> None:
        """Take a task out of everything: it is settled."""

    def give_back(self, held_bytes: int) -> None:
        """Take back what a task was allowed to hold."""


@dataclass(slots=True, eq=False, kw_only=True)
class Answer:
    """What is owed to one request line. Its fields belong to the lock of `Answers`.

    Attributes:
        size_bytes: What it counts towards the bytes in flight, where it counts.
        is_accepted: It is in the table, or was.
        is_admitted: It is one of the requests in flight.
        is_settled: What the answer is has been decided; the first who does so decides it.
        code: Of an error.
        line: The answer written out; None before, and for vectors.
        queue: Where work waits for it.
        held_bytes: What it was allowed to hold there.
    """

    request_id: RequestId
    line_number: int
    size_bytes: int = 0
    is_accepted: bool = False
    is_admitted: bool = False
    is_settled: bool = False
    code: ErrorCode | None = None
    line: bytes | None = None
    queue: Queue | None = None
    held_bytes: int = 0

    def write_out(self) -> bytes:
        """Return the line, its newline included. Called once, with no lock held, when its turn has come."""
        assert self.line is not None
        return self.line

    def let_go(self) -> None:
        """Let go of what it needed of others, before it is written; no lock is held."""

    def count(self, metrics: WorkerMetrics) -> None:
        """Be counted where it was not when it was settled, just before the first byte; the lock is held."""


class Answers:
    """The answers that are owed: the one table of requests, and how each leaves it.

    Attributes:
        lock: Guards the answers, and whatever works on them.
        owed: How many request lines have an answer that is not written whole.
        pending: How many have one that has not begun to be written.
        in_flight, in_flight_bytes: The admitted ones among the pending, and their size.
        outstanding: Those with an id, until just before their first byte is written.
        on_nothing_owed: Called, from any thread, whenever nothing is owed any more.
        refusal: What new work is answered with, once none is taken any more; set by `refuse_work`.
    """

    def __init__(self, writer: LineWriter, metrics: WorkerMetrics, limits: Limits, max_held: int = _MAX_HELD) -> None:
        self.lock = threading.RLock()  # a condition over one that is not re-entrant takes it to see whose it is
        self.owed = 0
        self.pending = 0
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.outstanding: dict[RequestId, Answer] = {}
        self.refusal: ErrorCode | None = None
        self.on_nothing_owed: Callable[[], None] | None = None
        self._writer = writer
        self._metrics = metrics
        self._limits = limits
        self._max_held = max_held
        self._sequence: deque[Answer] = deque()  # unnumbered, in input order
        self._is_flushing = False
        self._is_over = False
        self._moved = threading.Condition(self.lock)  # something has left

    # Into the table

    def accept(self, answer: Answer) -> None:
        """Owe an answer from now on; its id must not be outstanding.

        Waits while too many unnumbered ones are held back, also in a drain: control requests have no other bound.
        """
        with self.lock:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        """Do what `accept` does; the lock is held, and let go while it waits."""
        while answer.request_id is None and len(self._sequence) >= self._max_held and not self._is_over:
            self._moved.wait(1.0)
        answer.is_accepted = True
        self.owed += 1
        self.pending += 1
        if answer.request_id is None:
            self._sequence.append(answer)
        else:
            self.outstanding[answer.request_id] = answer

    def admit(self, answer: Answer) -> bool:
        """Wait until a request of this size may be in flight; False once there is no more admission.

        The lock is held, and let go while it waits. One that is larger than the limit is admitted alone.
        """
        limits = self._limits
        while self.in_flight and (
            self.in_flight >= limits.max_in_flight
            or self.in_flight_bytes + answer.size_bytes > limits.max_in_flight_bytes
        ):
            if self.refusal is not None:
                return False
            self._moved.wait(1.0)
        answer.is_admitted = True
        self.in_flight += 1
        self.in_flight_bytes += answer.size_bytes
        return True

    def refuse_work(self, code: ErrorCode) -> None:
        """Let nobody wait for admission any more; the lock is held."""
        self.refusal = code
        self._moved.notify_all()

    def end(self) -> None:
        """Let nobody wait for anything any more: the process ends."""
        with self.lock:
            self._is_over = True
            self._moved.notify_all()

    # To a decision

    def succeed(self, answer: Answer, members: Mapping[str, Any]) -> bool:
        """Answer with the members of a method; False if it was settled already."""
        try:
            line = encode_success(answer.request_id, answer.line_number, members)
        except Exception:  # noqa: BLE001 - the request must still be answered, and those behind it
            _log.exception("an answer could not be written")
            return self.fail(answer, ErrorCode.INTERNAL_ERROR, _NOT_WRITTEN)
        return self.settle(answer, line)

    def fail(self, answer: Answer, code: ErrorCode, message: str, index: int | None = None) -> bool:
        """Answer with an error; False if it was settled already."""
        return self.settle(answer, encode_error(answer.request_id, answer.line_number, code, message, index), code)

    def fail_all(self, code: ErrorCode, message: str) -> None:
        """Answer everything that is not settled with the same error."""
        with self.lock:
            unsettled = [each for each in (*self.outstanding.values(), *self._sequence) if not each.is_settled]
        for answer in sorted(unsettled, key=lambda answer: answer.line_number):
            self.fail(answer, code, message)

    def settle(self, answer: Answer, line: bytes | None, code: ErrorCode | None = None) -> bool:
        """Answer with a line, or with None where the answer writes itself out; False if it was settled already."""
        with self.lock:
            if not self.claim(answer, line, code):
                return False
        self.write(answer)
        return True

    def claim(self, answer: Answer, line: bytes | None, code: ErrorCode | None = None) -> bool:
        """Do what `settle` does up to the writing, which is the caller's then; the lock is held."""
        if answer.is_settled:
            return False
        answer.is_settled = True
        answer.line = line
        answer.code = code
        if code is not None:
            self._metrics.count_error(code)
        if answer.queue is not None:
            answer.queue.forget(answer)
        return True

    # To the wire

    def write(self, answer: Answer) -> None:
        """Write a settled answer when its turn has come, and what it held back."""
        if answer.request_id is not None:
            self._write(answer)
            return
        # One thread at a time writes the sequence, outside the lock: the others leave their answers and go on.
        with self.lock:
            if self._is_flushing:
                return
            self._is_flushing = True
        while (head := self._next_in_sequence()) is not None:
            self._write(head)

    def _next_in_sequence(self) -> Answer | None:
        with self.lock:
            if self._sequence and self._sequence[0].is_settled:
                self._moved.notify_all()
                return self._sequence.popleft()
            self._is_flushing = False
            return None

    def _write(self, answer: Answer) -> None:
        try:
            line = answer.write_out()
        except BaseException as error:  # noqa: BLE001 - the request must still be answered, and those behind it
            _log.exception("an answer could not be written")
            answer.code = ErrorCode.OUT_OF_MEMORY if isinstance(error, MemoryError) else ErrorCode.INTERNAL_ERROR
            line = encode_error(answer.request_id, answer.line_number, answer.code, _NOT_WRITTEN)
        answer.let_go()
        with self._writer.turn:
            self._leave(answer)
            self._writer.write(line)
        with self.lock:
            self.owed -= 1
            if self.owed:
                return
            self._moved.notify_all()
        if self.on_nothing_owed is not None:
            self.on_nothing_owed()

    def _leave(self, answer: Answer) -> None:
        with self.lock:
            self.pending -= 1
            if answer.request_id is not None:
                del self.outstanding[answer.request_id]
            if answer.is_admitted:
                self.in_flight -= 1
                self.in_flight_bytes -= answer.size_bytes
                self._moved.notify_all()
            if answer.held_bytes and answer.queue is not None:
                answer.queue.give_back(answer.held_bytes)
            answer.count(self._metrics)

    def wait_until_written(self, timeout_s: float) -> bool:
        """Wait until nothing is owed: what another thread has settled may not be written yet."""
        with self.lock:
            return self._moved.wait_for(lambda: self.owed == 0, timeout_s)
