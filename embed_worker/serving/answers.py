"""Exactly one answer a request line, in the order that the protocol promises.

Numbered answers leave when they are ready. Everything under `id: null` leaves in input order. An answer is made at the
moment it is written, so that what waits for its turn is small, and a deadline is looked at last.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from embed_worker.protocol import ErrorCode, RequestId, encode_error, encode_success
from embed_worker.serving.stdio import LineWriter

_log = logging.getLogger(__name__)


class Answers:
    """The answers that are still owed."""

    def __init__(self, writer: LineWriter, on_settled: Callable[[], None]) -> None:
        """Start with nothing owed.

        Args:
            writer: Takes finished lines.
            on_settled: Called, from any thread, whenever nothing is owed any more.
        """
        self._writer = writer
        self._on_settled = on_settled
        self._lock = threading.Lock()
        self._outstanding: set[str | int] = set()
        self._sequence: deque[Answer] = deque()  # unnumbered, in input order
        self._is_flushing = False
        self._unsettled: set[Answer] = set()
        self._owed = 0  # their answers are not written whole
        self._pending = 0  # not begun to be written
        self._sequence_moved = threading.Condition(self._lock)
        self._all_written = threading.Condition(self._lock)

    @property
    def owed(self) -> int:
        """How many request lines have an answer that is not written whole."""
        return self._owed

    @property
    def pending(self) -> int:
        """How many request lines have an answer that has not begun to be written."""
        return self._pending

    def is_outstanding(self, request_id: RequestId) -> bool:
        """Whether this id's answer has not begun to be written."""
        return request_id is not None and request_id in self._outstanding

    def expect(self, request_id: RequestId, line_number: int) -> Answer:
        """Owe an answer from now on; the id must not be outstanding."""
        answer = Answer(self, request_id, line_number)
        with self._lock:
            self._owed += 1
            self._pending += 1
            self._unsettled.add(answer)
            if request_id is None:
                self._sequence.append(answer)
            else:
                self._outstanding.add(request_id)
        return answer

    def wait_for_room(self, limit: int, give_up: Callable[[], bool]) -> None:
        """Wait until fewer than `limit` unnumbered answers are held back, or until `give_up`, asked now and then."""
        with self._lock:
            while len(self._sequence) >= limit and not give_up():
                self._sequence_moved.wait(0.1)

    def fail_all(self, code: ErrorCode, message: str) -> None:
        """Settle everything that is not settled with the same error."""
        with self._lock:
            unsettled = sorted(self._unsettled, key=lambda answer: answer.line_number)
        for answer in unsettled:
            answer.fail(code, message)

    def wait_until_written(self, timeout_s: float) -> bool:
        """Wait until nothing is owed: what another thread has settled may not be written yet."""
        with self._lock:
            return self._all_written.wait_for(lambda: self._owed == 0, timeout_s)

    def ready(self, answer: Answer) -> None:
        """Write an answer that has its line now, and what it held back."""
        with self._lock:
            self._unsettled.discard(answer)
        if answer.request_id is not None:
            self._write(answer)
            return
        # One thread at a time writes the sequence, outside the lock: the others leave their answers and go on.
        with self._lock:
            if self._is_flushing:
                return
            self._is_flushing = True
        while (head := self._next_in_sequence()) is not None:
            self._write(head)

    def _next_in_sequence(self) -> Answer | None:
        with self._lock:
            if self._sequence and self._sequence[0].make_line is not None:
                self._sequence_moved.notify_all()
                return self._sequence.popleft()
            self._is_flushing = False
            return None

    def _write(self, answer: Answer) -> None:
        assert answer.make_line is not None
        try:
            line = answer.make_line()
        except Exception:  # noqa: BLE001 - the request must still be answered, and those behind it
            _log.exception("an answer could not be written")
            line = answer.error_line(ErrorCode.INTERNAL_ERROR, "the answer could not be written")
        answer.make_line = None  # it may hold a matrix
        self._writer.write(line, lambda: self._release(answer.request_id))
        with self._lock:
            self._owed -= 1
            is_settled = self._owed == 0
            if is_settled:
                self._all_written.notify_all()
        if is_settled:
            self._on_settled()

    def _release(self, request_id: RequestId) -> None:
        with self._lock:
            self._pending -= 1
            if request_id is not None:
                self._outstanding.discard(request_id)


class Answer:
    """What is owed to one request line. The first call settles it; later ones do nothing and return False."""

    __slots__ = ("_answers", "_claim", "line_number", "make_line", "request_id")

    def __init__(self, answers: Answers, request_id: RequestId, line_number: int) -> None:
        self._answers = answers
        self._claim = threading.Lock()
        self.request_id = request_id
        self.line_number = line_number
        self.make_line: Callable[[], bytes] | None = None

    def succeed(self, members: Mapping[str, Any]) -> bool:
        """Answer with the members of a method."""
        return self.settle(lambda: encode_success(self.request_id, self.line_number, members))

    def fail(self, code: ErrorCode, message: str, index: int | None = None) -> bool:
        """Answer with an error."""
        return self.settle(lambda: self.error_line(code, message, index))

    def error_line(self, code: ErrorCode, message: str, index: int | None = None) -> bytes:
        """Write an error of this request, for a `settle` that decides late."""
        return encode_error(self.request_id, self.line_number, code, message, index)

    def settle(self, make_line: Callable[[], bytes]) -> bool:
        """Answer with what `make_line` returns when the turn has come."""
        if not self._claim.acquire(blocking=False):
            return False
        self.make_line = make_line
        self._answers.ready(self)
        return True
