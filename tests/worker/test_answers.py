"""Exactly one answer a line, the unnumbered in input order, whoever finishes first."""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.protocol import ErrorCode, Limits, RequestId
from embed_worker.serving.answers import Answer, Answers
from embed_worker.serving.metrics import WorkerMetrics
from embed_worker.serving.stdio import LineWriter
from tests.patience import WAIT_S


@dataclass(slots=True, eq=False, kw_only=True)
class Late(Answer):
    """An answer that is made when its turn has come."""

    make_line: Callable[[], bytes]

    def write_out(self) -> bytes:
        return self.make_line()


class Written:
    """Answers between a pipe's ends, and how often everything was settled."""

    def __init__(self, max_held: int = 100) -> None:
        self.reading, self.writing = os.pipe()
        self.settled = 0
        self.answers = Answers(LineWriter(self.writing, lambda: None), WorkerMetrics(), Limits(), max_held)
        self.answers.on_nothing_owed = self._count

    def _count(self) -> None:
        self.settled += 1

    def expect(self, request_id: RequestId, line_number: int, make_line: Callable[[], bytes] | None = None) -> Answer:
        answer = Answer(request_id=request_id, line_number=line_number)
        if make_line is not None:
            answer = Late(request_id=request_id, line_number=line_number, make_line=make_line)
        self.answers.accept(answer)
        return answer

    def succeed(self, answer: Answer, members: dict[str, Any]) -> bool:
        return self.answers.succeed(answer, members)

    def settle(self, answer: Answer) -> bool:
        return self.answers.settle(answer, None)

    def close(self) -> list[dict[str, Any]]:
        os.close(self.writing)
        with os.fdopen(self.reading, "rb") as lines:
            return [json.loads(line) for line in lines]


@pytest.fixture
def written() -> Written:
    return Written()


def test_numbered_answers_leave_when_they_are_ready(written: Written) -> None:
    first, second = (written.expect(name, line) for line, name in enumerate("ab", 1))
    assert written.answers.owed == 2
    written.succeed(second, {"n": 2})
    assert written.answers.fail(first, ErrorCode.CANCELLED, "cancelled", 3)
    assert (written.answers.owed, written.settled) == (0, 1)
    assert written.close() == [
        {"id": "b", "status": "ok", "n": 2},
        {"id": "a", "status": "error", "code": "cancelled", "message": "cancelled", "retryable": False, "index": 3},
    ]


def test_unnumbered_answers_wait_for_those_before_them(written: Written) -> None:
    answers = [written.expect(None, line) for line in (1, 2, 3)]
    written.succeed(answers[2], {})
    written.succeed(answers[1], {})
    assert written.answers.owed == 3
    written.succeed(answers[0], {})
    assert written.answers.owed == 0
    assert [answer["line"] for answer in written.close()] == [1, 2, 3]


def test_an_answer_is_pending_until_just_before_its_first_byte(written: Written) -> None:
    seen: list[tuple[int, int]] = []
    writer = written.answers._writer
    write = writer.write

    def look(line: bytes) -> None:
        write(line)
        seen.append((written.answers.pending, written.answers.owed))

    writer.write = look  # type: ignore[method-assign]
    first, second = (written.expect(name, line) for line, name in enumerate(("a", None), 1))
    assert written.answers.pending == 2
    written.succeed(first, {})
    written.succeed(second, {})
    assert seen == [(1, 2), (0, 1)]


def test_what_another_thread_has_settled_is_waited_for(written: Written) -> None:
    may_write, is_settling = threading.Event(), threading.Event()

    def make_line() -> bytes:
        is_settling.set()
        assert may_write.wait(10)
        return b'{"id":1}\n'

    answer = written.expect(1, 1, make_line)
    thread = threading.Thread(target=written.settle, args=(answer,))
    thread.start()
    assert is_settling.wait(10)
    written.answers.fail_all(ErrorCode.OUT_OF_MEMORY, "too late")
    assert not written.answers.wait_until_written(0.01)
    may_write.set()
    assert written.answers.wait_until_written(10)
    thread.join(10)
    assert [line["id"] for line in written.close()] == [1]


def test_only_the_first_call_settles(written: Written) -> None:
    answer = written.expect(1, 1)
    assert written.succeed(answer, {})
    assert not written.answers.fail(answer, ErrorCode.CANCELLED, "late")
    assert not written.settle(answer)
    assert len(written.close()) == 1


def test_an_id_is_outstanding_until_just_before_the_first_byte(written: Written) -> None:
    seen: list[bool] = []

    def make_line() -> bytes:
        seen.append(written.answers.outstanding.get(0) is not None)
        return b"{}\n"

    answer = written.expect(0, 1, make_line)
    assert written.answers.outstanding.get(0) is answer
    assert written.answers.outstanding.get("0") is None
    assert written.answers.outstanding.get(None) is None
    written.settle(answer)
    assert seen == [True]
    assert written.answers.outstanding.get(0) is None
    written.close()


def test_what_cannot_be_written_is_an_internal_error_and_holds_nobody_back(
    written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (written.expect(None, line) for line in (1, 2))
    written.succeed(second, {"fine": 1})
    with caplog.at_level(logging.CRITICAL):
        written.succeed(first, {"not JSON": object()})
    assert [answer.get("code", "ok") for answer in written.close()] == ["internal_error", "ok"]


def test_everything_unsettled_can_be_failed_at_once(written: Written) -> None:
    answers = [written.expect(request_id, line) for line, request_id in enumerate([None, "a", None, 4], 1)]
    written.succeed(answers[2], {})
    written.answers.fail_all(ErrorCode.SHUTTING_DOWN, "too late")
    written.answers.fail_all(ErrorCode.SHUTTING_DOWN, "nobody is left")
    lines = written.close()
    assert {(line["id"], line.get("line"), line["status"]) for line in lines} == {
        (None, 1, "error"),
        ("a", None, "error"),
        (None, 3, "ok"),
        (4, None, "error"),
    }
    assert [line["line"] for line in lines if line["id"] is None] == [1, 3]


def test_an_answer_is_made_when_its_turn_has_come(written: Written) -> None:
    made: list[int] = []

    def make(number: int) -> bytes:
        made.append(number)
        return b"{}\n"

    first, second = (written.expect(None, line, functools.partial(make, line)) for line in (1, 2))
    written.settle(second)
    assert made == []
    written.settle(first)
    assert made == [1, 2]
    written.close()


def test_whoever_accepts_waits_while_too_many_are_held_back_also_in_a_drain() -> None:
    written = Written(max_held=2)
    answers = [written.expect(None, line) for line in (1, 2)]
    with written.answers.lock:
        written.answers.refuse_work(ErrorCode.SHUTTING_DOWN)
    written.succeed(written.expect("numbered", 3), {})
    accepted: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: accepted.put(written.expect(None, 4)))
    thread.start()
    written.succeed(answers[1], {})
    assert written.answers.owed == 2
    written.succeed(answers[0], {})
    written.succeed(accepted.get(timeout=WAIT_S), {})
    thread.join(WAIT_S)
    assert [line["line"] for line in written.close() if line["id"] is None] == [1, 2, 4]


def test_an_answer_that_is_settled_while_it_is_written_settles_the_next(written: Written) -> None:

    def make_line() -> bytes:
        written.succeed(second, {})  # as unloading a model does, whose last request is being answered
        return b'{"line": 1}\n'

    first, second = written.expect(None, 1, make_line), written.expect(None, 2)
    written.settle(first)
    assert [line["line"] for line in written.close()] == [1, 2]


def test_nobody_waits_for_room_any_more_when_the_process_ends() -> None:
    written = Written(max_held=1)
    written.expect(None, 1)
    written.answers.end()
    written.expect(None, 2)
    written.close()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 80))
def test_under_any_order_of_completion_every_line_is_answered_once(seed: int, threads: int, count: int) -> None:
    rng = random.Random(seed)
    written = Written()
    expected = [written.expect(rng.choice([None, line]), line) for line in range(1, count + 1)]
    shares = [rng.sample(expected, len(expected)) for _ in range(threads)]  # everybody tries to settle everything
    start = threading.Barrier(threads)
    wins: list[int] = []

    def settle(share: list[Answer]) -> None:
        start.wait(WAIT_S)
        wins.extend(answer.line_number for answer in share if written.succeed(answer, {}))

    workers = [threading.Thread(target=settle, args=(share,)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT_S)
    assert sorted(wins) == list(range(1, count + 1))
    assert (written.answers.owed, written.settled >= 1) == (0, True)
    lines = written.close()
    assert sorted(line["id"] or line["line"] for line in lines) == list(range(1, count + 1))
    unnumbered = [line["line"] for line in lines if line["id"] is None]
    assert unnumbered == sorted(unnumbered)
