"""What is done next: a few texts to tokenise, a micro-batch to run, or requests whose time is over.

No threads and no clock; whoever calls holds the lock of the answers. Small tasks come before bulk, and tokenising
before running: known lengths make good micro-batches. Of the bulk tasks one thread at a time tokenises, while the
others run what is known already; now and then it comes first, so that an endless stream of small tasks does not starve
it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from embed_worker.serving.scheduler import Row, Scheduler
from embed_worker.serving.tasks import EmbedTask, Task, TokenizeTask

if TYPE_CHECKING:
    from embed_worker.inference.engine import Engine
    from embed_worker.inference.tokenizer import TokenizedText

_MAX_WAITING_ROWS = 8192  # enough to find rows of similar length; more would only take memory
_MAX_HELD_BYTES = 64 * 2**20  # of vectors and ranges of requests that have begun and are not answered
_PATIENCE = 8  # one choice in so many favours bulk over small
LONGEST_WAIT_S = 60.0


@dataclass(slots=True, eq=False)
class Chunk:
    """Texts of one task to tokenise; `first` is the index of the first of them."""

    task: Task
    first: int
    texts: list[str]
    is_bulk: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Rows of one model to run; `exclusive` when nothing else runs."""

    engine: Engine
    rows: list[Row[EmbedTask]]
    texts: list[TokenizedText]
    exclusive: bool


@dataclass(slots=True, eq=False)
class Expired:
    """Tasks whose deadline has passed."""

    tasks: list[Task]


Work: TypeAlias = Chunk | Batch | Expired


class WorkQueue:
    """The tasks that are not settled, and what waits of them.

    Attributes:
        changed: Over the lock; notified when there may be work for one more thread.
    """

    def __init__(self, lock: threading.RLock, *, lanes: int, batch_tokens: int, max_rows: int | None) -> None:
        """Start empty.

        Args:
            lock: The lock of the answers.
            lanes: Threads that will ask for work.
            batch_tokens: Budget of a micro-batch.
            max_rows: Most rows of a micro-batch, where there is such a limit.
        """
        self.changed = threading.Condition(lock)
        self._lanes = lanes
        self._batch_tokens = batch_tokens
        self._max_rows = max_rows or batch_tokens
        self._scheduler: Scheduler[EmbedTask] = Scheduler(batch_tokens=batch_tokens, max_rows=max_rows)
        self._tasks: dict[Task, None] = {}  # in the order of arrival
        self._small: deque[Task] = deque()  # to tokenise; each fits in one micro-batch
        self._bulk: list[Task] = []  # the others
        self._is_tokenizing_bulk = False
        self._deadlines: list[tuple[float, int, Task]] = []
        self._ticket = itertools.count()
        self._turns = 0
        self._held_bytes = 0
        self._leads: dict[tuple[int, bool, int, bytes], Row[EmbedTask]] = {}  # waiting rows that others may share

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be tokenised or run."""
        return not (self._small or self._bulk or self._scheduler.waiting_rows)

    @property
    def not_begun(self) -> int:
        """How many tasks there are of which nothing has run yet."""
        return sum(task.first_run_s is None for task in self._tasks)

    # Tasks come and go

    def expect(self, task: Task) -> None:
        """Take a task whose model may not be ready yet, and watch its deadline."""
        task.queue = self
        self._tasks[task] = None
        if task.deadline_s is not None:
            heapq.heappush(self._deadlines, (task.deadline_s, next(self._ticket), task))
            self.changed.notify()  # somebody must wait for it

    def is_for(self, task: Task) -> bool:
        """Whether nothing waits, and a task is so small that one thread may do all of it at once."""
        return self.is_empty and self._is_small(task)

    def _is_small(self, task: Task) -> bool:
        return task.expected_tokens <= self._batch_tokens and task.is_one_chunk

    def add(self, task: Task) -> None:
        """Begin with an expected task that has texts, and has met its model."""
        if isinstance(task, EmbedTask):
            self._open(task)
        if self._is_small(task):
            self._small.append(task)
        else:
            self._bulk.append(task)
        self.changed.notify()

    def _open(self, task: EmbedTask) -> None:
        assert task.model is not None
        self._scheduler.open(
            task,
            model=task.entry.uid,
            expected_tokens=task.expected_tokens,
            padded_to=task.model.engine.padded_to,
        )

    def forget(self, task: Task) -> None:
        """Take a task out of everything: it is settled."""
        self._tasks.pop(task, None)
        if isinstance(task, EmbedTask):
            self._scheduler.close(task)
            for index, text in task.waiting.items():
                self._pass_on(task, index, text)
        if len(self._deadlines) > 2 * len(self._tasks):  # most are met long before they pass
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_settled]
            heapq.heapify(self._deadlines)

    def _pass_on(self, task: EmbedTask, index: int, text: TokenizedText) -> None:
        """Let a twin wait in the place of a row whose task is settled."""
        key = _sameness(task, text)
        lead = self._leads.get(key)
        if lead is None or lead.job is not task or lead.index != index:
            return
        del self._leads[key]
        twins = [row for row in lead.twins or () if not row.job.is_settled]
        if twins:
            heir = twins[0]
            heir.twins = twins[1:]
            heir.job.waiting[heir.index] = text
            self._leads[key] = heir
            self._scheduler.add([heir])
            self.changed.notify()

    def give_back(self, held_bytes: int) -> None:
        """Take back what the vectors of a task were allowed to hold."""
        self._held_bytes -= held_bytes
        if self._bulk:
            self.changed.notify()  # one may have waited for it

    def add_rows(self, task: EmbedTask, first: int, texts: list[TokenizedText]) -> None:
        """Take texts that are tokenised. Nobody is told: the thread comes back, and tells others if there is more."""
        if task.is_settled:
            return
        if task.queue is None:
            self.expect(task)
            self._open(task)
        rows = []
        for row, text in zip(rows_of(task, first, texts), texts, strict=True):
            lead = self._leads.setdefault(_sameness(task, text), row) if may_share(task) else row
            if lead is row:
                task.waiting[row.index] = text
                rows.append(row)
            elif lead.twins is None:
                lead.twins = [row]
            else:
                lead.twins.append(row)
        self._scheduler.add(rows)

    def end_bulk_chunk(self) -> None:
        """Let the next chunk of a bulk task be tokenised."""
        self._is_tokenizing_bulk = False

    # The choice

    def take(self, now: float, *, others: int) -> Work | None:
        """Take the next piece of work; `others` threads work already."""
        if not self._tasks:
            return None
        if self._deadlines and self._deadlines[0][0] <= now:
            return Expired(list(self._take_expired(now)))
        self._turns += 1
        if self._turns % _PATIENCE == 0 and (chunk := self._bulk_chunk()) is not None:
            return chunk
        if self._small:
            task = self._small.popleft()
            return Chunk(task, *task.next_chunk())
        if self._scheduler.waiting_small_rows:
            return self._batch(now, others)
        if self._turns % 2 and any(isinstance(task, TokenizeTask) for task in self._bulk):
            return self._batch(now, others) or self._bulk_chunk()  # nothing of it ever waits, so it would not pause
        return self._bulk_chunk() or self._batch(now, others)

    def seconds_to_deadline(self, now: float) -> float:
        """Return how long to wait at most: no system takes a wait of any length."""
        left = self._deadlines[0][0] - now if self._deadlines else LONGEST_WAIT_S
        return min(max(0.0, left), LONGEST_WAIT_S)

    def is_one_batch(self, texts: list[TokenizedText]) -> bool:
        """Whether texts make one micro-batch by themselves."""
        longest = max(len(text.ids) for text in texts)
        return len(texts) <= self._max_rows and len(texts) * longest <= self._batch_tokens

    def _take_expired(self, now: float) -> Iterable[Task]:
        while self._deadlines and self._deadlines[0][0] <= now:
            yield heapq.heappop(self._deadlines)[2]

    def _bulk_chunk(self) -> Chunk | None:
        if self._is_tokenizing_bulk:
            return None
        self._bulk = [task for task in self._bulk if not task.is_settled]
        ready = [task for task in self._bulk if self._has_place(task) and self._may_begin(task)]
        if not ready:
            return None
        task = ready[0] if self._turns % _PATIENCE == 0 else min(ready, key=lambda task: task.characters_left)
        if not task.has_begun:
            task.has_begun = True
            task.held_bytes = task.result_bytes
            self._held_bytes += task.held_bytes
        self._is_tokenizing_bulk = True
        chunk = Chunk(task, *task.next_chunk(), is_bulk=True)
        if task.next_text == len(task.texts):
            self._bulk.remove(task)
        return chunk

    def _has_place(self, task: Task) -> bool:
        """Whether there is place for what is tokenised of it; for a `tokenize` there always is."""
        return self._scheduler.waiting_rows < _MAX_WAITING_ROWS or isinstance(task, TokenizeTask)

    def _may_begin(self, task: Task) -> bool:
        """Whether there is memory for its results. The oldest task always may, so that something always ends."""
        if task.has_begun or self._held_bytes + task.result_bytes <= _MAX_HELD_BYTES:
            return True
        return self._held_bytes == 0 or task is next(iter(self._tasks), None)

    def _batch(self, now: float, others: int) -> Batch | None:
        rows = self._scheduler.next_batch(self._lanes)
        if not rows:
            return None
        texts = []
        for row in rows:
            text = row.job.waiting.pop(row.index)
            texts.append(text)
            self._leads.pop(_sameness(row.job, text), None)
            for each in row.all:
                if each.job.first_run_s is None:
                    each.job.first_run_s = now
        model = rows[0].job.model
        assert model is not None
        return Batch(model.engine, rows, texts, exclusive=not (others or self._scheduler.waiting_rows))


def rows_of(task: EmbedTask, first: int, texts: list[TokenizedText]) -> list[Row[EmbedTask]]:
    """Return the rows of texts, of which `first` is the index of the first."""
    return [Row(task, index, len(text.ids)) for index, text in enumerate(texts, first)]


def may_share(task: EmbedTask) -> bool:
    """Whether a text's vector is the same in any company, so that it is computed once for all who wait for it."""
    return task.model is not None and task.model.engine.is_batch_invariant


def _sameness(task: EmbedTask, text: TokenizedText) -> tuple[int, bool, int, bytes]:
    """Return what two texts have in common that share a run; a query never waits for the turn of an import."""
    return task.entry.uid, task.is_one_chunk, text.skipped, text.ids.tobytes()


def tasks_of(work: Work | Task) -> list[Task]:
    """Return whom a piece of work concerns."""
    match work:
        case Task():
            return [work]
        case Chunk():
            return [work.task]
        case Batch():
            return list(dict.fromkeys(each.job for row in work.rows for each in row.all))
        case Expired():
            return work.tasks
        case _:
            assert_never(work)
