"""Which rows run next: every row once, within the budget, one model at a time, nobody starves, nothing leaks."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embed_worker.serving.scheduler import Row, Scheduler

BUDGET = 64


@dataclass(eq=False)
class Job:
    """A job as a test sees it: what it has added and what came out."""

    name: str
    model: str = "m"
    is_small: bool = True
    added: int = 0
    left: list[int] = field(default_factory=list)


def submit(scheduler: Scheduler[Job], name: str, lengths: list[int], *, expected: int | None = None) -> Job:
    expected = sum(lengths) if expected is None else expected
    job = Job(name, is_small=expected <= BUDGET)
    scheduler.open(job, model="m", expected_tokens=expected)
    scheduler.add([Row(job, index, length) for index, length in enumerate(lengths)])
    return job


def names(batch: list[Row[Job]]) -> set[str]:
    return {row.job.name for row in batch}


def test_nothing_waits_in_an_empty_scheduler() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    assert scheduler.next_batch() == []
    scheduler.open(Job("empty"), model="m", expected_tokens=1)
    assert scheduler.next_batch() == []


def test_a_row_longer_than_the_budget_runs_alone() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "long", [BUDGET + 1, BUDGET + 1])
    assert [len(scheduler.next_batch()) for _ in range(3)] == [1, 1, 0]


def test_rows_of_similar_length_share_a_micro_batch_and_others_do_not() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=512)
    submit(scheduler, "mixed", [200, 10, 200, 12, 11], expected=1000)
    batches = [sorted(row.tokens for row in scheduler.next_batch()) for _ in range(2)]
    assert batches == [[200, 200], [10, 11, 12]]


def test_a_longer_row_joins_when_it_fits() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "shorter", [10])
    submit(scheduler, "longer", [20])
    assert sorted(row.tokens for row in scheduler.next_batch()) == [10, 20]


@pytest.mark.parametrize(("length", "together"), [(25, [25, 31]), (20, [31])])
def test_a_row_rides_along_while_its_padding_costs_less_than_a_run_of_its_own(length: int, together: list[int]) -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "two", [31, length])
    assert sorted(row.tokens for row in scheduler.next_batch()) == together


def test_a_micro_batch_has_no_more_rows_than_allowed() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET, max_rows=2)
    submit(scheduler, "many", [1] * 5)
    assert [len(scheduler.next_batch()) for _ in range(4)] == [2, 2, 1, 0]


def in_steps(rows: int, tokens: int) -> tuple[int, int]:
    return -(-rows // 4) * 4, -(-tokens // 16) * 16


def test_rows_take_the_place_of_padding_that_is_computed_anyway() -> None:
    lengths = [40, 31, 25, 20, 20, 20, 5]
    for padded_to, expected in (
        (lambda rows, tokens: (rows, tokens), [[40], [31, 25], [20, 20, 20], [5]]),
        (in_steps, [[40, 31, 25, 20], [20, 20, 5]]),
    ):
        scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
        job = Job("padded", is_small=False)
        scheduler.open(job, model="m", expected_tokens=1000, padded_to=padded_to)
        scheduler.add([Row(job, index, length) for index, length in enumerate(lengths)])
        batches = [[row.tokens for row in scheduler.next_batch()] for _ in range(5)]
        assert [batch for batch in batches if batch] == expected


def test_longer_rows_take_the_place_of_padding_first_and_never_more_rows_than_allowed() -> None:
    for max_rows, expected in ((None, [17, 20, 17, 5]), (2, [17, 20])):
        scheduler: Scheduler[Job] = Scheduler(batch_tokens=20, max_rows=max_rows)
        first, second = Job("first"), Job("second")
        for job, lengths in ((first, [17]), (second, [20, 17, 5])):
            scheduler.open(job, model="m", expected_tokens=1, padded_to=in_steps)
            scheduler.add([Row(job, index, length) for index, length in enumerate(lengths)])
        batch = [row.tokens for row in scheduler.next_batch()]
        assert sorted(batch) == sorted(expected), batch


def test_a_small_job_overtakes_a_bulk_job() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "bulk", [8] * 400)
    scheduler.next_batch()
    submit(scheduler, "small", [8])
    assert names(scheduler.next_batch()) == {"small"}


@pytest.mark.parametrize("expected", [BUDGET + 1, 400, 1600])
def test_a_small_job_overtakes_a_bulk_job_whose_work_was_guessed_too_low(expected: int) -> None:
    # Texts in Chinese have four times the tokens that four characters a token make of them.
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "bulk", [8] * 800, expected=expected)
    for _ in range(60):
        scheduler.next_batch()
    submit(scheduler, "small", [8])
    assert any("small" in names(scheduler.next_batch()) for _ in range(2))


def test_small_and_bulk_jobs_are_batched_apart() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "bulk", [8] * 100)
    submit(scheduler, "small", [8])
    while batch := scheduler.next_batch():
        assert len(names(batch)) == 1


def test_an_endless_stream_of_small_jobs_does_not_starve_a_bulk_job() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    bulk = submit(scheduler, "bulk", [8] * 80)
    for number in range(200):
        submit(scheduler, f"small {number}", [8] * 8)
        for row in scheduler.next_batch():
            row.job.left.append(row.index)
        if len(bulk.left) == 80:
            break
    assert len(bulk.left) == 80


def test_the_bulk_job_with_the_least_work_left_leads() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "longer", [60] * 10)
    submit(scheduler, "shorter", [60] * 3)
    order = [scheduler.next_batch()[0].job.name for _ in range(7)]
    assert order[:3] == ["shorter"] * 3


def test_closing_drops_the_rows_that_wait_and_no_others() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    gone = submit(scheduler, "gone", [8] * 20, expected=BUDGET)
    kept = submit(scheduler, "kept", [8] * 20, expected=BUDGET)
    scheduler.next_batch()
    scheduler.close(gone)
    scheduler.close(gone)
    scheduler.close(Job("never opened"))
    left = 0
    while batch := scheduler.next_batch():
        assert names(batch) == {"kept"}
        left += len(batch)
    assert left + scheduler.waiting_rows <= 20
    assert (scheduler.waiting_rows, scheduler.waiting_small_rows) == (0, 0)
    scheduler.close(kept)


def test_a_closed_job_is_forgotten_while_others_of_its_kind_go_on() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    submit(scheduler, "stays", [8, 9, 30, 31] * 20, expected=BUDGET)
    finished = []
    for number in range(50):
        job = submit(scheduler, f"comes and goes {number}", [8, 20, 30], expected=BUDGET)
        if number % 3:
            scheduler.next_batch()
        scheduler.close(job)
        finished.append(weakref.ref(job))
        del job
    while scheduler.next_batch():
        pass
    gc.collect()
    assert not any(ref() for ref in finished)


def test_a_model_that_comes_and_goes_leaves_nothing_behind() -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
    for model in range(100):
        job = Job("j")
        scheduler.open(job, model=model, expected_tokens=10)
        scheduler.add([Row(job, 0, 5), Row(job, 1, 6)])
        if model % 2:
            scheduler.next_batch()
        scheduler.close(job)
    assert len(scheduler._pools) == 0
    assert len(scheduler._jobs) == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(0, 200)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([None, 1, 3]),
)
def test_every_row_leaves_exactly_once_within_the_budget(
    jobs: list[tuple[str, list[int], int]], max_rows: int | None
) -> None:
    scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET, max_rows=max_rows)
    expected: Counter[tuple[Job, int]] = Counter()
    for number, (model, lengths, guess) in enumerate(jobs):
        job = Job(str(number), model)
        scheduler.open(job, model=model, expected_tokens=guess)
        scheduler.add([Row(job, index, length) for index, length in enumerate(lengths)])
        expected.update((job, index) for index in range(len(lengths)))
    seen: Counter[tuple[Job, int]] = Counter()
    while batch := scheduler.next_batch():
        check_batch(batch, max_rows)
        seen.update((row.job, row.index) for row in batch)
    assert seen == expected


def check_batch(batch: list[Row[Job]], max_rows: int | None = None) -> None:
    """Its first rows are within the budget, and the others cost nothing beside them."""
    longest = max(row.tokens for row in batch)
    firsts = [batch[:count] for count in range(1, len(batch) + 1)]
    assert any(
        (len(first) == 1 or len(first) * max(row.tokens for row in first) <= BUDGET)
        and (len(first) == len(batch) or covers(first, len(batch), longest))
        for first in firsts
    )
    assert max_rows is None or len(batch) <= max_rows
    assert len({row.job.model for row in batch}) == 1


def covers(first: list[Row[Job]], rows: int, tokens: int) -> bool:
    if first[0].job.model != "padded":
        return False
    most, longest = in_steps(len(first), max(row.tokens for row in first))
    return rows <= most and tokens <= longest


class SchedulerMachine(RuleBasedStateMachine):
    """Open, add in pieces, take and close in any order, beside a plain list of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[Job] = Scheduler(batch_tokens=BUDGET)
        self.waiting: dict[Job, dict[int, int]] = {}
        self.opened = 0

    @rule(model=st.sampled_from(["a", "b", "padded"]), expected=st.integers(0, 2 * BUDGET))
    def open(self, model: str, expected: int) -> None:
        self.opened += 1
        job = Job(str(self.opened), model, expected <= BUDGET)
        if model == "padded":
            self.scheduler.open(job, model=model, expected_tokens=expected, padded_to=in_steps)
        else:
            self.scheduler.open(job, model=model, expected_tokens=expected)
        self.waiting[job] = {}

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), lengths=st.lists(st.integers(1, 2 * BUDGET), max_size=20))
    def add(self, data: st.DataObject, lengths: list[int]) -> None:
        job = data.draw(st.sampled_from(list(self.waiting)))
        rows = {job.added + place: length for place, length in enumerate(lengths)}
        job.added += len(lengths)
        self.scheduler.add([Row(job, index, length) for index, length in rows.items()])
        self.waiting[job] |= rows

    @rule()
    def take(self) -> None:
        batch = self.scheduler.next_batch()
        oldest = next((job for job, rows in self.waiting.items() if rows), None)
        assert bool(batch) == (oldest is not None)
        if batch:
            check_batch(batch)
            assert len({row.job.is_small for row in batch}) == 1
        for row in batch:
            assert self.waiting[row.job].pop(row.index) == row.tokens

    @precondition(lambda self: any(self.waiting.values()))
    @rule()
    def the_oldest_is_served_within_a_bounded_number_of_batches(self) -> None:
        oldest = next(job for job, rows in self.waiting.items() if rows)
        before = len(self.waiting[oldest])
        for _ in range(8):
            self.take()
        assert len(self.waiting[oldest]) < before

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.waiting)))
        self.scheduler.close(job)
        del self.waiting[job]

    @invariant()
    def what_waits_is_counted(self) -> None:
        assert self.scheduler.waiting_rows == sum(map(len, self.waiting.values()))
        small = sum(len(rows) for job, rows in self.waiting.items() if job.is_small)
        assert self.scheduler.waiting_small_rows == small

    def teardown(self) -> None:
        for job in self.waiting:
            self.scheduler.close(job)
        self.waiting.clear()
        assert (self.scheduler.waiting_rows, self.scheduler.waiting_small_rows) == (0, 0)
        assert self.scheduler.next_batch() == []
        assert len(self.scheduler._pools) == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
