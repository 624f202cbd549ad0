"""Replay, isolated, halving and blame without a process: a worker here is a function that dies or does not."""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client.calls import EmbedCall, Parameters
from bridge_client.chunks import Chunk
from bridge_client.exits import Cause, ExitReport
from bridge_client.investigation import Investigation, Quarantine, most_lone_deaths

SEGV = ExitReport(cause=Cause.CRASHED, status=-11)
KILLED = ExitReport(cause=Cause.KILLED, status=-9)
TERMINATED = ExitReport(cause=Cause.KILLED, status=-15)
EXIT_75 = ExitReport(cause=Cause.OUT_OF_MEMORY, status=75)


def job_of(*texts: str) -> EmbedCall:
    return EmbedCall(texts, Parameters(), timeout_s=120.0)


def chunks_of(*sizes: int) -> list[Chunk]:
    return [next(job_of(*(f"{number}.{index}" for index in range(size))).chunks()) for number, size in enumerate(sizes)]


@dataclass
class Story:
    """What became of everything."""

    answered: set[str] = field(default_factory=set)
    blamed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    deaths: int = 0
    charged: int = 0
    lone_sizes: list[int] = field(default_factory=list)


def investigate(calls: list[EmbedCall], blamed: set[str], report: ExitReport = SEGV) -> Story:
    """Send everything at once to a worker that dies on the blamed texts, and go on until nothing is left."""
    case, story = Investigation(replay=True), Story()
    in_flight = [chunk for call in calls for chunk in call.chunks()]
    while in_flight:
        if any(blamed.intersection(chunk.texts) for chunk in in_flight):
            story.deaths += 1
            if len(in_flight) == 1:
                story.lone_sizes.append(len(in_flight[0]))
            verdict = case.judge(in_flight, report, 0.0)
            story.charged += verdict.is_charged
            for chunk in verdict.blamed:
                story.blamed.update(chunk.texts)
            for chunk in verdict.failed:
                story.failed.update(chunk.call.inputs)
                kept = [isolated for isolated in case.isolated if isolated.call is not chunk.call]
                case.isolated = deque(kept)
        else:
            for chunk in in_flight:
                story.answered.update(chunk.texts)
                case.answered(chunk)
        in_flight = []
        if case.isolated:
            in_flight = [case.isolated.popleft()]
            case.probe(in_flight[0])
    assert not case.is_open
    return story


def test_one_input_to_blame_among_256_is_found_in_about_ten_deaths() -> None:
    texts = [f"text {number}" for number in range(256)]
    story = investigate([job_of(*texts)], {"text 100"})
    assert story.blamed == {"text 100"}
    assert story.answered == set(texts) - {"text 100"}
    assert story.deaths <= 10
    assert story.charged == 1


def test_innocents_in_other_requests_are_cleared_one_by_one() -> None:
    calls = [job_of(f"a{number}") for number in range(20)] + [job_of("x", "bad", "y")] + [job_of("b")]
    story = investigate(calls, {"bad"})
    assert story.blamed == {"bad"}
    assert story.answered == {f"a{number}" for number in range(20)} | {"x", "y", "b"}
    assert story.charged == 2, "the death with all of them, and the investigation"


@given(st.integers(2, 300), st.data())
def test_two_inputs_to_blame_are_both_found_within_the_bound(count: int, data: st.DataObject) -> None:
    texts = [str(number) for number in range(count)]
    blamed = set(data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=2, unique=True)))
    companions = [job_of(f"other {number}") for number in range(data.draw(st.integers(0, 3)))]
    story = investigate([*companions, job_of(*texts)], blamed)
    assert story.blamed == blamed
    assert story.failed == set()
    assert story.answered >= set(texts) - blamed
    assert len(story.lone_sizes) <= 2 + 2 * math.ceil(math.log2(count))
    assert story.charged <= 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_every_input_has_exactly_one_fate(sizes: list[int], data: st.DataObject) -> None:
    calls = [job_of(*(f"{number}.{index}" for index in range(size))) for number, size in enumerate(sizes)]
    texts = [text for call in calls for text in call.inputs]
    blamed = set(data.draw(st.lists(st.sampled_from(texts), max_size=8, unique=True)))
    story = investigate(calls, blamed)
    assert story.blamed <= blamed
    assert story.answered.isdisjoint(story.blamed)
    assert story.answered | story.blamed | story.failed == set(texts)
    for call in calls:
        assert call.lone_deaths <= most_lone_deaths(call)


def test_a_text_that_dies_alone_once_is_tried_once_more() -> None:
    case = Investigation(replay=True)
    [chunk] = chunks_of(1)
    assert case.judge([chunk], SEGV, 0.0).isolated == [chunk]
    verdict = case.judge([chunk], SEGV, 0.0)
    assert (verdict.blamed, verdict.isolated) == ([chunk], [])


@pytest.mark.parametrize("report", [KILLED, TERMINATED])
def test_a_signal_from_outside_blames_nobody_however_often(report: ExitReport) -> None:
    case = Investigation(replay=True)
    [chunk] = chunks_of(1)
    for _ in range(50):
        verdict = case.judge([chunk], report, 0.0)
        assert (verdict.isolated, verdict.blamed, verdict.failed) == ([chunk], [], [])
        assert verdict.is_charged, "it brings nothing further, so the budget bounds it"
    assert case.judge([chunk], SEGV, 0.0).isolated == [chunk]


def test_isolated_chunks_go_back_in_order_and_before_earlier_ones() -> None:
    case = Investigation(replay=True)
    first, second, third = chunks_of(2, 1, 1)
    case.judge([first, second, third], SEGV, 0.0)
    assert list(case.isolated) == [first, second, third]
    assert case.isolated.popleft() is first
    case.probe(first)
    case.judge([first], SEGV, 0.0)
    assert [(chunk.call, len(chunk)) for chunk in case.isolated] == [
        (first.call, 1),
        (first.call, 1),
        (second.call, 1),
        (third.call, 1),
    ]


def test_what_was_in_flight_at_a_recycle_is_not_isolated() -> None:
    case = Investigation(replay=True)
    chunks = chunks_of(1, 1)
    verdict = case.judge(chunks, ExitReport(cause=Cause.RECYCLED, status=79), 0.0)
    assert verdict.again == chunks
    assert not case.is_open


def test_without_replay_what_was_in_flight_fails() -> None:
    chunks = chunks_of(1, 3)
    verdict = Investigation(replay=False).judge(chunks, SEGV, 0.0)
    assert verdict.failed == chunks
    assert verdict.is_charged


def test_requests_that_nobody_waits_for_are_not_sent_again() -> None:
    case = Investigation(replay=True)
    wanted, cancelled = chunks_of(1, 1)
    cancelled.call.outlet.is_cancelled = True
    verdict = case.judge([cancelled, wanted], SEGV, 0.0)
    assert verdict.isolated == [wanted]
    assert wanted.lone_deaths == 0, "it was not alone with the worker"


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(
            KILLED, marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows kills nobody for memory")
        ),
        EXIT_75,
    ],
)
def test_a_suspected_lack_of_memory_quarters_the_chunks_for_a_while(report: ExitReport) -> None:
    case = Investigation(replay=True)
    assert case.ceiling(0.0) is None
    case.judge(chunks_of(64), report, 0.0)
    assert case.ceiling(0.0) == 16
    case.judge(chunks_of(16), report, 1.0)
    assert case.ceiling(1.0) == 4
    for _ in range(3):
        case.judge(chunks_of(1), report, 2.0)
    assert case.ceiling(2.0) == 1
    assert case.ceiling(602.5) is None


def test_a_crash_teaches_no_ceiling() -> None:
    case = Investigation(replay=True)
    case.judge(chunks_of(64), SEGV, 0.0)
    assert case.ceiling(0.0) is None


def test_the_quarantine_is_bounded_and_forgets_after_an_hour() -> None:
    quarantine = Quarantine()
    for number in range(3000):
        quarantine.add(f"bad {number}", 0.0)
    assert len(quarantine.until) == 1024
    assert quarantine.find(["bad 0", "good", "bad 2999"], 3599.0) == [2]
    assert quarantine.find(["bad 2999"], 3600.0) == []


def test_the_quarantine_keeps_no_text() -> None:
    quarantine = Quarantine()
    quarantine.add("a secret", 0.0)
    assert "a secret" not in repr(vars(quarantine))
