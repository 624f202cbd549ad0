"""Exactly one answer a line, the unnumbered in input order, whoever finishes first."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.protocol import ErrorCode
from embed_worker.serving.answers import Answer, Answers
from embed_worker.serving.stdio import LineWriter

WAIT_S = 10.0


class Written:
    """Answers between a pipe's ends, and how often everything was settled."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.settled = 0
        self.answers = Answers(LineWriter(self.writing, lambda: None), self._count)

    def _count(self) -> None:
        self.settled += 1

    def close(self) -> list[dict[str, Any]]:
        os.close(self.writing)
        with os.fdopen(self.reading, "rb") as lines:
            return [json.loads(line) for line in lines]


@pytest.fixture
def written() -> Written:
    return Written()


def test_numbered_answers_leave_when_they_are_ready(written: Written) -> None:
    first, second = (written.answers.expect(name, line) for line, name in enumerate("ab", 1))
    assert written.answers.owed == 2
    second.succeed({"n": 2})
    assert first.fail(ErrorCode.CANCELLED, "cancelled", 3)
    assert (written.answers.owed, written.settled) == (0, 1)
    assert written.close() == [
        {"id": "b", "status": "ok", "n": 2},
        {"id": "a", "status": "error", "code": "cancelled", "message": "cancelled", "retryable": False, "index": 3},
    ]


def test_unnumbered_answers_wait_for_those_before_them(written: Written) -> None:
    answers = [written.answers.expect(None, line) for line in (1, 2, 3)]
    answers[2].succeed({})
    answers[1].succeed({})
    assert written.answers.owed == 3
    answers[0].succeed({})
    assert written.answers.owed == 0
    assert [answer["line"] for answer in written.close()] == [1, 2, 3]


def test_an_answer_is_pending_until_just_before_its_first_byte(written: Written) -> None:
    seen: list[tuple[int, int]] = []
    writer = written.answers._writer
    write = writer.write

    def look(line: bytes, before_first_byte: Callable[[], None] | None = None) -> None:
        write(line, before_first_byte)
        seen.append((written.answers.pending, written.answers.owed))

    writer.write = look  # type: ignore[method-assign]
    first, second = (written.answers.expect(name, line) for line, name in enumerate(("a", None), 1))
    assert written.answers.pending == 2
    first.succeed({})
    second.succeed({})
    assert seen == [(1, 2), (0, 1)]


def test_what_another_thread_has_settled_is_waited_for(written: Written) -> None:
    answer = written.answers.expect(1, 1)
    may_write, is_settling = threading.Event(), threading.Event()

    def make_line() -> bytes:
        is_settling.set()
        assert may_write.wait(10)
        return b'{"id":1}\n'

    thread = threading.Thread(target=answer.settle, args=(make_line,))
    thread.start()
    assert is_settling.wait(10)
    written.answers.fail_all(ErrorCode.OUT_OF_MEMORY, "too late")
    assert not written.answers.wait_until_written(0.01)
    may_write.set()
    assert written.answers.wait_until_written(10)
    thread.join(10)
    assert [line["id"] for line in written.close()] == [1]


def test_only_the_first_call_settles(written: Written) -> None:
    answer = written.answers.expect(1, 1)
    assert answer.succeed({})
    assert not answer.fail(ErrorCode.CANCELLED, "late")
    assert not answer.settle(lambda: b"never\n")
    assert len(written.close()) == 1


def test_an_id_is_outstanding_until_just_before_the_first_byte(written: Written) -> None:
    seen: list[bool] = []
    answer = written.answers.expect(0, 1)
    assert written.answers.is_outstanding(0)
    assert not written.answers.is_outstanding("0")
    assert not written.answers.is_outstanding(None)

    def make_line() -> bytes:
        seen.append(written.answers.is_outstanding(0))
        return b"{}\n"

    answer.settle(make_line)
    assert seen == [True]
    assert not written.answers.is_outstanding(0)
    written.close()


def test_what_cannot_be_written_is_an_internal_error_and_holds_nobody_back(
    written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (written.answers.expect(None, line) for line in (1, 2))
    second.succeed({"fine": 1})
    with caplog.at_level(logging.CRITICAL):
        first.succeed({"not JSON": object()})
    assert [answer.get("code", "ok") for answer in written.close()] == ["internal_error", "ok"]


def test_everything_unsettled_can_be_failed_at_once(written: Written) -> None:
    answers = [written.answers.expect(request_id, line) for line, request_id in enumerate([None, "a", None, 4], 1)]
    answers[2].succeed({})
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
    first, second = (written.answers.expect(None, line) for line in (1, 2))

    def make(number: int) -> bytes:
        made.append(number)
        return b"{}\n"

    second.settle(lambda: make(2))
    assert made == []
    first.settle(lambda: make(1))
    assert made == [1, 2]
    written.close()


def test_a_reader_waits_for_room_in_the_sequence(written: Written) -> None:
    answers = [written.answers.expect(None, line) for line in (1, 2)]
    written.answers.wait_for_room(3, lambda: False)
    written.answers.wait_for_room(2, lambda: True)
    has_room = threading.Event()

    def wait() -> None:
        written.answers.wait_for_room(2, lambda: False)
        has_room.set()

    thread = threading.Thread(target=wait)
    thread.start()
    answers[0].succeed({})
    assert has_room.wait(WAIT_S)
    thread.join(WAIT_S)
    answers[1].succeed({})
    written.close()


def test_an_answer_that_is_settled_while_it_is_written_settles_the_next(written: Written) -> None:
    first, second = (written.answers.expect(None, line) for line in (1, 2))

    def make_line() -> bytes:
        second.succeed({})  # as unloading a model does, whose last request is being answered
        return b'{"line": 1}\n'

    first.settle(make_line)
    assert [line["line"] for line in written.close()] == [1, 2]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 80))
def test_under_any_order_of_completion_every_line_is_answered_once(seed: int, threads: int, count: int) -> None:
    rng = random.Random(seed)
    written = Written()
    expected = [written.answers.expect(rng.choice([None, line]), line) for line in range(1, count + 1)]
    shares = [rng.sample(expected, len(expected)) for _ in range(threads)]  # everybody tries to settle everything
    start = threading.Barrier(threads)
    wins: list[int] = []

    def settle(share: list[Answer]) -> None:
        start.wait(WAIT_S)
        wins.extend(answer.line_number for answer in share if answer.succeed({}))

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
