"""Replay, suspects, halving and conviction without a process: a worker here is a function that dies or does not."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client.exits import Cause, ExitReport
from bridge_client.investigation import Investigation, Quarantine, most_lone_deaths
from bridge_client.requests import Job, Parameters, Piece

SEGV = ExitReport(cause=Cause.CRASHED, status=-11)
KILLED = ExitReport(cause=Cause.KILLED, status=-9)
TERMINATED = ExitReport(cause=Cause.KILLED, status=-15)
EXIT_75 = ExitReport(cause=Cause.OUT_OF_MEMORY, status=75)


def job_of(*texts: str) -> Job:
    return Job(texts, Parameters(), timeout_s=120.0)


def pieces_of(*sizes: int) -> list[Piece]:
    return [next(job_of(*(f"{number}.{index}" for index in range(size))).pieces()) for number, size in enumerate(sizes)]


@dataclass
class Story:
    """What became of everything."""

    answered: set[str] = field(default_factory=set)
    convicted: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    deaths: int = 0
    charged: int = 0
    lone_sizes: list[int] = field(default_factory=list)


def investigate(jobs: list[Job], guilty: set[str], report: ExitReport = SEGV) -> Story:
    """Send everything at once to a worker that dies on the guilty texts, and go on until nothing is left."""
    case, story = Investigation(replay=True), Story()
    in_flight = [piece for job in jobs for piece in job.pieces()]
    while in_flight:
        if any(guilty.intersection(piece.texts) for piece in in_flight):
            story.deaths += 1
            if len(in_flight) == 1:
                story.lone_sizes.append(len(in_flight[0]))
            verdict = case.judge(in_flight, report, 0.0)
            story.charged += verdict.is_charged
            for piece in verdict.convicted:
                story.convicted.update(piece.texts)
            for piece in verdict.failed:
                story.failed.update(piece.job.inputs)
                kept = [suspect for suspect in case.suspects if suspect.job is not piece.job]
                case.suspects = deque(kept)
        else:
            for piece in in_flight:
                story.answered.update(piece.texts)
                case.answered(piece)
        in_flight = []
        if case.suspects:
            in_flight = [case.suspects.popleft()]
            case.on_trial(in_flight[0])
    assert not case.is_open
    return story


def test_one_guilty_input_among_256_is_found_in_about_ten_deaths() -> None:
    texts = [f"text {number}" for number in range(256)]
    story = investigate([job_of(*texts)], {"text 100"})
    assert story.convicted == {"text 100"}
    assert story.answered == set(texts) - {"text 100"}
    assert story.deaths <= 10
    assert story.charged == 1


def test_innocents_in_other_requests_are_cleared_one_by_one() -> None:
    jobs = [job_of(f"a{number}") for number in range(20)] + [job_of("x", "bad", "y")] + [job_of("b")]
    story = investigate(jobs, {"bad"})
    assert story.convicted == {"bad"}
    assert story.answered == {f"a{number}" for number in range(20)} | {"x", "y", "b"}
    assert story.charged == 2, "the death with all of them, and the investigation"


@given(st.integers(2, 300), st.data())
def test_two_guilty_inputs_are_both_found_within_the_bound(count: int, data: st.DataObject) -> None:
    texts = [str(number) for number in range(count)]
    guilty = set(data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=2, unique=True)))
    companions = [job_of(f"other {number}") for number in range(data.draw(st.integers(0, 3)))]
    story = investigate([*companions, job_of(*texts)], guilty)
    assert story.convicted == guilty
    assert story.failed == set()
    assert story.answered >= set(texts) - guilty
    assert len(story.lone_sizes) <= 2 + 2 * math.ceil(math.log2(count))
    assert story.charged <= 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_every_input_has_exactly_one_fate(sizes: list[int], data: st.DataObject) -> None:
    jobs = [job_of(*(f"{number}.{index}" for index in range(size))) for number, size in enumerate(sizes)]
    texts = [text for job in jobs for text in job.inputs]
    guilty = set(data.draw(st.lists(st.sampled_from(texts), max_size=8, unique=True)))
    story = investigate(jobs, guilty)
    assert story.convicted <= guilty
    assert story.answered.isdisjoint(story.convicted)
    assert story.answered | story.convicted | story.failed == set(texts)
    for job in jobs:
        assert job.lone_deaths <= most_lone_deaths(job)


def test_a_text_that_dies_alone_once_is_tried_once_more() -> None:
    case = Investigation(replay=True)
    [piece] = pieces_of(1)
    assert case.judge([piece], SEGV, 0.0).suspects == [piece]
    verdict = case.judge([piece], SEGV, 0.0)
    assert (verdict.convicted, verdict.suspects) == ([piece], [])


@pytest.mark.parametrize("report", [KILLED, TERMINATED])
def test_a_signal_from_outside_convicts_nobody_however_often(report: ExitReport) -> None:
    case = Investigation(replay=True)
    [piece] = pieces_of(1)
    for _ in range(50):
        verdict = case.judge([piece], report, 0.0)
        assert (verdict.suspects, verdict.convicted, verdict.failed) == ([piece], [], [])
        assert verdict.is_charged, "it brings nothing further, so the budget bounds it"
    assert case.judge([piece], SEGV, 0.0).suspects == [piece]


def test_suspects_go_back_in_order_and_before_earlier_ones() -> None:
    case = Investigation(replay=True)
    first, second, third = pieces_of(2, 1, 1)
    case.judge([first, second, third], SEGV, 0.0)
    assert list(case.suspects) == [first, second, third]
    assert case.suspects.popleft() is first
    case.on_trial(first)
    case.judge([first], SEGV, 0.0)
    assert [(piece.job, len(piece)) for piece in case.suspects] == [
        (first.job, 1),
        (first.job, 1),
        (second.job, 1),
        (third.job, 1),
    ]


def test_what_was_in_flight_at_a_recycle_is_not_suspected() -> None:
    case = Investigation(replay=True)
    pieces = pieces_of(1, 1)
    verdict = case.judge(pieces, ExitReport(cause=Cause.RECYCLED, status=79), 0.0)
    assert verdict.again == pieces
    assert not case.is_open


def test_without_replay_what_was_in_flight_fails() -> None:
    pieces = pieces_of(1, 3)
    verdict = Investigation(replay=False).judge(pieces, SEGV, 0.0)
    assert verdict.failed == pieces
    assert verdict.is_charged


def test_requests_that_nobody_waits_for_are_not_sent_again() -> None:
    case = Investigation(replay=True)
    wanted, cancelled = pieces_of(1, 1)
    cancelled.job.future.cancel()
    verdict = case.judge([cancelled, wanted], SEGV, 0.0)
    assert verdict.suspects == [wanted]
    assert wanted.lone_deaths == 0, "it was not alone with the worker"


@pytest.mark.parametrize("report", [KILLED, EXIT_75])
def test_a_suspected_lack_of_memory_quarters_the_pieces_for_a_while(report: ExitReport) -> None:
    case = Investigation(replay=True)
    assert case.ceiling(0.0) is None
    case.judge(pieces_of(64), report, 0.0)
    assert case.ceiling(0.0) == 16
    case.judge(pieces_of(16), report, 1.0)
    assert case.ceiling(1.0) == 4
    for _ in range(3):
        case.judge(pieces_of(1), report, 2.0)
    assert case.ceiling(2.0) == 1
    assert case.ceiling(602.5) is None


def test_a_crash_teaches_no_ceiling() -> None:
    case = Investigation(replay=True)
    case.judge(pieces_of(64), SEGV, 0.0)
    assert case.ceiling(0.0) is None


def test_the_quarantine_is_bounded_and_forgets_after_an_hour() -> None:
    quarantine = Quarantine()
    for number in range(3000):
        quarantine.add(f"bad {number}", 0.0)
    assert len(quarantine) == 1024
    assert quarantine.find(["bad 0", "good", "bad 2999"], 3599.0) == [2]
    assert quarantine.find(["bad 2999"], 3600.0) == []


def test_the_quarantine_keeps_no_text() -> None:
    quarantine = Quarantine()
    quarantine.add("a secret", 0.0)
    assert "a secret" not in repr(vars(quarantine))
