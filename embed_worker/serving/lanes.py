"""The threads of the worker: one of them reads, the others tokenise and run.

*Leader and followers*: the thread that has read a small request, when nothing else waits, does the work of it itself.
That spares the hand-over of the request to a thread that must be woken first. There is one thread more than may work at
once, so that there is always one to read: it is let read before a small request, and where a brief one takes longer
than it should. In a stream of brief ones nobody is woken at all.

The lock of the answers is never held while a thread works.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, assert_never

from embed_worker.errors import OutOfMemoryError, RequestFailed, brief
from embed_worker.machine import release_freed_memory
from embed_worker.protocol import ErrorCode
from embed_worker.serving.answers import Answers
from embed_worker.serving.lifecycle import On
from embed_worker.serving.metrics import WorkerMetrics
from embed_worker.serving.tasks import DEADLINE_PASSED, EmbedTask, Task, TokenizeTask
from embed_worker.serving.work import LONGEST_WAIT_S, Batch, Chunk, Expired, Work, WorkQueue, rows_of, tasks_of

if TYPE_CHECKING:
    from embed_worker.inference.tokenizer import TokenizedText

_log = logging.getLogger(__name__)

_LONG_CHARACTERS = 64 * 1024  # a text of 1 MiB takes the tokenizer 100 MB, which the C library would keep
_BRIEF_TOKENS = 64  # beyond, waking another thread is little of what the work takes
_WATCH_S = 0.02  # how often a thread looks whether a brief request is at its end; S16 allows 100 ms
_ACTIVE_S = 1.0  # how long it goes on after the last request, before it sleeps until it is woken

ReadLine = Callable[[], Task | None]


class Lanes:
    """The threads, and who of them does what."""

    def __init__(
        self,
        *,
        lanes: int,
        answers: Answers,
        queue: WorkQueue,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
        happens: Callable[[On], None],
    ) -> None:
        """Set up without starting.

        Args:
            lanes: How many may tokenise and run at once.
            answers: The table that tasks are settled in.
            queue: What waits.
            metrics: Where progress is counted.
            clock: Seconds, monotonic.
            happens: Told of what must end the worker.
        """
        self._lanes = lanes
        self._answers = answers
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._read_line: ReadLine = lambda: None
        self._happens = happens
        self._may_read = True
        self._is_reading = False
        self._kept: Task | None = None  # what the thread that reads does, without having let another one read
        self._is_watched = False  # a thread will look soon how long that takes
        self._active_s = -math.inf  # when a thread last did what it had read
        self._is_over = False
        self._busy = 0  # threads that tokenise or run
        self._threads = [threading.Thread(target=self._run, name=f"lane-{n}", daemon=True) for n in range(lanes + 1)]

    def start(self, read_line: ReadLine) -> None:
        """Start the threads.

        Args:
            read_line: Read a line and see to its answer; return the task that the calling thread is to do itself, where
                there is one. One thread at a time calls it.
        """
        self._read_line = read_line
        for thread in self._threads:
            thread.start()

    def stop_reading(self) -> None:
        """Read nothing more: the input is over, or nobody wants to know."""
        self._may_read = False

    def stop(self) -> None:
        """Let the threads end when they have done what they do."""
        with self._queue.changed:
            self._is_over = True
            self._queue.changed.notify_all()

    # Tasks

    def submit(self, task: Task, *, more_lines: bool) -> tuple[bool, Task | None]:
        """Take a task, once there is room for it, from the thread that reads.

        Args:
            task: One whose model is ready has met it.
            more_lines: Whether further lines have been read already: they are better batched.

        Returns:
            False where there is no more admission; and the task, where the calling thread is to do it itself.
        """
        with self._queue.changed:
            self._answers.add(task)
            if not self._answers.admit(task):
                return False, None
            is_alone = self._answers.in_flight == 1 and self._busy < self._lanes and not more_lines
            if is_alone and task.model is not None and self._queue.is_for(task):
                self._busy += 1
                self._active_s = self._clock()
                if self._is_watched and task.expected_tokens <= _BRIEF_TOKENS:
                    self._kept = task
                else:
                    self._is_reading = False
                    self._queue.changed.notify()
                return True, task
            self._queue.expect(task)
            if task.model is not None:
                self._queue.add(task)
            return True, None

    def begin(self, task: Task) -> None:
        """Start work on a task that has waited for its model, which it has met now."""
        with self._queue.changed:
            if not task.is_settled:
                self._queue.add(task)

    # The threads

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._do_next()
        except BaseException:  # noqa: BLE001 - a worker that lacks a thread must not pretend to live
            _log.exception("a thread ended")
            self._happens(On.THREAD_DIED)

    def _do_next(self) -> None:
        """Wait until there is something to do, and do it."""
        with self._queue.changed:
            while (work := self._choose()) is None:
                if self._is_over:
                    return
                if self._may_read and not self._is_reading:
                    self._is_reading = True
                    break
                self._wait()
        if work is not None:
            self._do(work)
            return
        while (task := self._read()) is not None:
            self._do(task)
            with self._queue.changed:
                if self._kept is not task:
                    return
                self._kept = None
                if not self._queue.is_empty:  # it was longer than it looked, and this thread reads on
                    self._queue.changed.notify()

    def _wait(self) -> None:
        """Wait for a change, and see to it that no line is left unread for long; the lock is held, and let go."""
        now = self._clock()
        # Where all lanes are busy nobody could do anything about a deadline that has passed: it is looked at next.
        wait_s = LONGEST_WAIT_S if self._busy == self._lanes else self._queue.seconds_to_deadline(now)
        # What is kept is watched also after a pause of the whole process, however long ago it was begun.
        if self._is_watched or (self._kept is None and now - self._active_s > _ACTIVE_S):
            self._queue.changed.wait(wait_s)
            return
        kept, self._is_watched = self._kept, True
        is_told = self._queue.changed.wait(min(wait_s, _WATCH_S))
        self._is_watched = False
        if not is_told and kept is not None and kept is self._kept:
            self._kept, self._is_reading = None, False

    def _choose(self) -> Work | None:
        if self._busy == self._lanes or (self._may_read and not self._is_reading):
            return None
        work = self._queue.take(self._clock(), others=self._busy)
        if work is not None:
            self._busy += 1
            if not self._queue.is_empty:
                self._queue.changed.notify()  # there may be work for another thread
        return work

    def _read(self) -> Task | None:
        """Read lines until there is a task for this thread, which does not read any more then, or no line any more."""
        try:
            while self._may_read:
                if (task := self._read_line()) is not None:
                    return task
        except (OutOfMemoryError, MemoryError):
            self._may_read = False
            _log.exception("out of memory")
            self._happens(On.OUT_OF_MEMORY)
        return None

    def _do(self, work: Work | Task) -> None:
        """Do what was taken, and answer what it concerns whatever happens."""
        finished: list[Task] = []
        try:
            match work:
                case EmbedTask():
                    finished = self._embed(work)
                case Task():
                    finished = self._prepare(Chunk(work, *work.next_chunk()))
                case Batch():
                    finished = self._run_batch(work)
                case Chunk():
                    finished = self._prepare(work)
                case Expired():
                    for task in work.tasks:
                        self._answers.fail(task, ErrorCode.DEADLINE_EXCEEDED, DEADLINE_PASSED)
                case _:
                    assert_never(work)
        except (OutOfMemoryError, MemoryError):
            _log.exception("out of memory")
            self._happens(On.OUT_OF_MEMORY)
        except BaseException:  # noqa: BLE001 - a thread must survive; Rust's panics are no Exception
            _log.exception("internal error")
            for task in tasks_of(work):
                self._answers.fail(task, ErrorCode.INTERNAL_ERROR, "internal error; the traceback is on standard error")
        with self._answers.lock:
            # A host in lock-step sends the next request as soon as it has its answer, and must find this core free.
            is_all = self._answers.in_flight <= len(finished)
            self._busy -= is_all
            if isinstance(work, Chunk) and work.is_bulk:
                self._queue.end_bulk_chunk()
        for task in finished:
            self._answers.write(task)
        if not is_all:
            with self._answers.lock:
                self._busy -= 1

    def _prepare(self, chunk: Chunk) -> list[Task]:
        """Tokenise texts of a task; return it where that was the last of its work, to be written."""
        task = chunk.task
        if (texts := self._tokenize(task, chunk.first, chunk.texts)) is None:
            return []
        with self._answers.lock:
            if isinstance(task, EmbedTask):
                self._queue.add_rows(task, chunk.first, texts)
            if isinstance(task, TokenizeTask):
                self._metrics.micro_batches += 1
                if not task.texts_missing and self._answers.claim(task, None):
                    return [task]
        return []

    def _embed(self, task: EmbedTask) -> list[Task]:
        """Do all of a task that this thread has read: nothing else waits, and it is small.

        Returns:
            The task, where it is settled and to be written.
        """
        model = task.model
        if model is None or (texts := self._tokenize(task, 0, list(task.texts))) is None:
            return []
        if len(texts) > 1 and not self._queue.is_one_batch(texts):  # longer than it looked
            with self._answers.lock:
                self._queue.add_rows(task, 0, texts)
            return []
        task.first_run_s = self._clock()
        # Looked at without the lock: it only decides how many cores are used.
        exclusive = self._answers.in_flight == 1
        try:
            vectors = model.engine.embed(texts, exclusive=exclusive)
        except (OutOfMemoryError, MemoryError):
            raise
        except BaseException as error:  # noqa: BLE001 - see `_run_batch`
            return self._run_apart(Batch(model.engine, rows_of(task, 0, texts), texts, exclusive=False), error)
        padded_tokens = len(texts) * max(len(text.ids) for text in texts)
        with self._answers.lock:
            self._metrics.count_batch(len(texts), padded_tokens)
            task.vectors, task.last_run_s = vectors, self._clock()
            return [task] if self._answers.claim(task, None) else []

    def _tokenize(self, task: Task, first: int, inputs: Sequence[str]) -> list[TokenizedText] | None:
        """Tokenise texts, of which `first` is the index of the first; None where their task is over."""
        model = task.model
        started_s = self._clock()
        if task.is_settled or model is None:
            return None
        if task.deadline_s is not None and task.deadline_s <= started_s:
            self._answers.fail(task, ErrorCode.DEADLINE_EXCEEDED, DEADLINE_PASSED)
            return None
        if not inputs:
            self._answers.settle(task, None)
            return None
        try:
            texts = task.tokenize(model, inputs)
        except RequestFailed as failed:
            index = first + (failed.index or 0)
            self._answers.fail(task, failed.code, f"input {index}: {failed}", index)
            return None
        except MemoryError:
            raise
        except BaseException:  # noqa: BLE001 - it concerns this request alone; Rust's panics are no Exception
            _log.exception("tokenising failed texts=%d", len(inputs))
            message = f"the tokenizer failed on one of the inputs {first} to {first + len(inputs) - 1}"
            self._answers.fail(task, ErrorCode.INTERNAL_ERROR, message)
            return None
        try:
            task.note_tokens(first, texts)
        except RequestFailed as failed:
            self._answers.fail(task, failed.code, str(failed), failed.index)
            return None
        if max(map(len, inputs)) > _LONG_CHARACTERS:
            release_freed_memory()
        task.tokenize_s += self._clock() - started_s
        return texts

    def _run_batch(self, batch: Batch) -> list[Task]:
        """Run rows and hand them to their tasks; return the tasks that have all of theirs now, to be written."""
        try:
            vectors = batch.engine.embed(batch.texts, exclusive=batch.exclusive)
        except (OutOfMemoryError, MemoryError):
            raise
        except BaseException as error:  # noqa: BLE001 - the runtime raises many types; the request to blame gets it
            return self._run_apart(batch, error)
        finished: list[Task] = []
        padded_tokens = len(batch.texts) * max(len(text.ids) for text in batch.texts)
        with self._answers.lock:
            now = self._clock()
            self._metrics.count_batch(len(batch.texts), padded_tokens)
            for lead, vector in zip(batch.rows, vectors, strict=True):
                for row in lead.all:
                    task = row.job
                    if not task.is_settled and task.put(row.index, vector, now) and self._answers.claim(task, None):
                        finished.append(task)
        return finished

    def _run_apart(self, batch: Batch, error: BaseException) -> list[Task]:
        """Run each row of a failed batch alone: one bad row must not fail its neighbours' requests."""
        if len(batch.rows) > 1:
            count = len(batch.rows)
            _log.warning("a micro-batch failed rows=%d reason=%s; each row is tried alone", count, brief(error))
            finished: list[Task] = []
            for row, text in zip(batch.rows, batch.texts, strict=True):
                if not all(each.job.is_settled for each in row.all):
                    finished += self._run_batch(Batch(batch.engine, [row], [text], exclusive=False))
            return finished
        (row,) = batch.rows
        _log.error("inference failed code=inference_failed tokens=%d reason=%s", row.tokens, brief(error))
        for each in row.all:
            message = f"the runtime failed on input {each.index}, also when it was alone"
            self._answers.fail(each.job, ErrorCode.INFERENCE_FAILED, message, each.index)
        return []
