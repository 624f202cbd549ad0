"""The life of an `embed` request between its line and its answer: tokenise, queue, run, collect.

Lanes are threads that take the next piece of work: a few texts to tokenise, or a micro-batch to run. One lock guards
the jobs and the scheduler and is never held while a lane works. What comes first is decided in `_next_work`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embed_worker.errors import OutOfMemoryError, RequestFailed
from embed_worker.machine import release_freed_memory
from embed_worker.protocol import Embed, ErrorCode, encode_vectors
from embed_worker.serving.answers import Answer
from embed_worker.serving.metrics import Metrics
from embed_worker.serving.model_store import ModelSlot
from embed_worker.serving.scheduler import Row, Scheduler

if TYPE_CHECKING:  # the loader imports what is heavy, in its own time
    from embed_worker.inference.engine import Engine, LoadedModel
    from embed_worker.inference.pooling import Float32
    from embed_worker.inference.tokenizer import TokenizedText

_log = logging.getLogger(__name__)

_CHUNK_TEXTS = 128
_CHUNK_CHARACTERS = 16 * 1024  # tokenising them takes a few milliseconds, so that a short request soon gets its turn
_LONG_CHARACTERS = 64 * 1024  # a text of 1 MiB takes the tokenizer 100 MB, which the C library would keep
_MAX_WAITING_ROWS = 8192  # enough to find rows of similar length; more would only take memory
_LONGEST_WAIT_S = 60.0
_PATIENCE = 8  # one choice in so many favours bulk over small
_MAX_HELD_BYTES = 64 * 2**20  # of vectors of requests that have begun and are not answered


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One `embed` request. Its fields belong to the lock of `Lanes`, but for those that one lane at a time touches.

    Attributes:
        arrived_s, deadline_s: On the lanes' clock.
        size_bytes: Of its line.
        next_text: How many of its texts are tokenised.
        vectors: (inputs, dimension) float32 as pooled, filled row by row.
    """

    answer: Answer
    request: Embed
    slot: ModelSlot
    arrived_s: float
    size_bytes: int
    deadline_s: float | None = None
    prompt: str = ""
    has_begun: bool = False
    is_over: bool = False
    next_text: int = 0
    characters_left: int = 0
    held_bytes: int = 0
    rows_missing: int = 0
    tokens: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    waiting: dict[int, TokenizedText] = field(default_factory=dict)
    vectors: Float32 | None = None
    tokenize_s: float = 0.0
    first_run_s: float | None = None
    last_run_s: float = 0.0


class Lanes:
    """The jobs of one worker and the threads that work on them."""

    def __init__(
        self,
        *,
        lanes: int,
        batch_tokens: int,
        max_rows: int | None,
        metrics: Metrics,
        clock: Callable[[], float],
        on_over: Callable[[Job], None],
        on_out_of_memory: Callable[[], None],
    ) -> None:
        """Set up without starting.

        Args:
            lanes: Threads that tokenise and run.
            batch_tokens: Budget of a micro-batch.
            max_rows: Most rows of a micro-batch, where there is such a limit.
            metrics: Where progress is counted.
            clock: Seconds, monotonic.
            on_over: Called once for each job, just before its answer is written.
            on_out_of_memory: Called when the runtime could not allocate: the worker must end.
        """
        self._metrics = metrics
        self._clock = clock
        self._on_over = on_over
        self._on_out_of_memory = on_out_of_memory
        self._lock = threading.Condition()
        self._scheduler: Scheduler[Job] = Scheduler(batch_tokens=batch_tokens, max_rows=max_rows)
        self._small: deque[Job] = deque()  # jobs to tokenise that fit in one micro-batch
        self._bulk: list[Job] = []  # the others
        self._is_tokenizing_bulk = False
        self._turns = 0
        self._jobs: dict[Job, None] = {}  # all that are not over, in the order of arrival
        self._deadlines: list[tuple[float, int, Job]] = []
        self._ticket = itertools.count()
        self._batch_tokens = batch_tokens
        self._held_bytes = 0
        self._busy = 0
        self._threads = [threading.Thread(target=self._run, name=f"lane-{n}", daemon=True) for n in range(lanes)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Jobs of which nothing has run yet."""
        with self._lock:
            return sum(job.first_run_s is None for job in self._jobs)

    def submit(self, job: Job) -> None:
        """Take a job whose model is ready or being loaded."""
        with self._lock:
            self._jobs[job] = None
            if job.deadline_s is not None:
                heapq.heappush(self._deadlines, (job.deadline_s, next(self._ticket), job))
                self._lock.notify()  # somebody must wait for it

    def begin(self, job: Job) -> None:
        """Start work on a submitted job: its model is ready now."""
        model = job.slot.model
        assert model is not None
        try:
            job.prompt = _prompt(job.request, model.plan.prompts, model.plan.default_prompt_name)
            _check_against_model(job.request, model)
        except RequestFailed as failure:
            self.fail(job, failure.code, str(failure), failure.index)
            return
        inputs = job.request.inputs
        count = len(inputs)
        job.tokens = [0] * count
        job.rows_missing = count
        job.characters_left = sum(map(len, inputs)) + count * len(job.prompt)
        # A rough guess is enough to tell a query from an import: four characters a token, and some for each text.
        expected_tokens = job.characters_left // 4 + 4 * count
        with self._lock:
            if job.is_over:
                return
            if count:
                self._scheduler.open(job, model=job.slot.uid, expected_tokens=expected_tokens)
                is_one_piece = count <= _CHUNK_TEXTS and job.characters_left <= _CHUNK_CHARACTERS
                if expected_tokens <= self._batch_tokens and is_one_piece:
                    self._small.append(job)
                else:
                    self._bulk.append(job)
                self._lock.notify()
        if not count:
            job.vectors = model.engine.new_matrix(0)
            self._finish(job)

    def fail(self, job: Job, code: ErrorCode, message: str, index: int | None = None) -> bool:
        """End a job with an error; False if it was over already."""
        if not self._end(job):
            return False
        self._answer(job, lambda: self._error_line(job, code, message, index))
        return True

    def fail_all(self, code: ErrorCode, message: str) -> None:
        """End every job with the same error."""
        for job in self._all():
            self.fail(job, code, message)

    def expire(self) -> None:
        """End the jobs whose deadline has passed."""
        for job in self._take_expired():
            self.fail(job, ErrorCode.DEADLINE_EXCEEDED, _DEADLINE_PASSED)

    def _all(self) -> list[Job]:
        with self._lock:
            return list(self._jobs)

    def _take_expired(self) -> list[Job]:
        expired = []
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= self._clock():
                expired.append(heapq.heappop(self._deadlines)[2])
        return expired

    def _end(self, job: Job) -> bool:
        """Take a job out of everything but the answers; False if that has happened already."""
        with self._lock:
            if job.is_over:
                return False
            job.is_over = True
            self._jobs.pop(job, None)
            self._scheduler.close(job)
            job.waiting.clear()
            if len(self._deadlines) > 2 * len(self._jobs):  # most are met long before they pass
                self._deadlines = [entry for entry in self._deadlines if not entry[2].is_over]
                heapq.heapify(self._deadlines)
            return True

    def _answer(self, job: Job, make_line: Callable[[], bytes]) -> None:
        """Settle a job that has ended; what it holds is free once its turn to be written has come."""

        def make_and_release() -> bytes:
            try:
                return make_line()
            finally:
                job.vectors = None
                with self._lock:
                    self._held_bytes -= job.held_bytes
                    if self._bulk:
                        self._lock.notify()  # one may have waited for the memory
                self._on_over(job)

        job.answer.settle(make_and_release)

    def _error_line(self, job: Job, code: ErrorCode, message: str, index: int | None = None) -> bytes:
        self._metrics.count_error(code)
        return job.answer.error_line(code, message, index)

    # What the threads do

    def _run(self) -> None:
        while True:
            work = self._next_work()
            try:
                work()
            except (OutOfMemoryError, MemoryError):
                _log.exception("out of memory")
                self._on_out_of_memory()
            except BaseException:  # noqa: BLE001 - a lane must survive; Rust's panics are no Exception
                _log.exception("a lane met a bug")
                self.fail_all(ErrorCode.INTERNAL_ERROR, "the worker met a bug; its traceback is on standard error")
            finally:
                del work  # it holds texts and a model, and the next may be long in coming
                with self._lock:
                    self._busy -= 1

    def _next_work(self) -> Callable[[], None]:
        """Wait for the next piece of work and take it."""
        with self._lock:
            while True:
                work = self._choose()
                if work is not None:
                    self._busy += 1
                    if self._small or self._bulk or self._scheduler.waiting_rows:
                        self._lock.notify()  # there may be work for another lane
                    return work
                self._lock.wait(self._seconds_to_deadline())

    def _choose(self) -> Callable[[], None] | None:
        """Small jobs before bulk, and tokenising before running: known lengths make good micro-batches.

        Of the bulk jobs one lane at a time tokenises, while the others run what is known already; now and then it comes
        first, so that an endless stream of small jobs does not starve it.
        """
        if self._deadlines and self._deadlines[0][0] <= self._clock():
            return self.expire
        self._turns += 1
        if self._turns % _PATIENCE == 0 and (work := self._bulk_to_tokenize()) is not None:
            return work
        if self._small:
            return self._chunk_of(self._small.popleft())
        if self._scheduler.waiting_small_rows:
            return self._batch_to_run()
        return self._bulk_to_tokenize() or self._batch_to_run()

    def _seconds_to_deadline(self) -> float:
        """Return how long to wait at most: a lane looks again then, and no system takes a wait of any length."""
        left = self._deadlines[0][0] - self._clock() if self._deadlines else _LONGEST_WAIT_S
        return min(max(0.0, left), _LONGEST_WAIT_S)

    # Tokenising

    def _bulk_to_tokenize(self) -> Callable[[], None] | None:
        if self._is_tokenizing_bulk or self._scheduler.waiting_rows >= _MAX_WAITING_ROWS:
            return None
        self._bulk = [job for job in self._bulk if not job.is_over]
        ready = [job for job in self._bulk if self._may_begin(job)]
        if not ready:
            return None
        job = ready[0] if self._turns % _PATIENCE == 0 else min(ready, key=lambda job: job.characters_left)
        if not job.has_begun:
            job.has_begun = True
            job.held_bytes = self._bytes_of_vectors(job)
            self._held_bytes += job.held_bytes
        self._is_tokenizing_bulk = True
        chunk = self._chunk_of(job)
        if job.next_text == len(job.request.inputs):
            self._bulk.remove(job)

        def tokenize() -> None:
            try:
                chunk()
            finally:
                with self._lock:
                    self._is_tokenizing_bulk = False

        return tokenize

    def _may_begin(self, job: Job) -> bool:
        """Whether there is memory for its vectors. The oldest job always may, so that something always ends."""
        if job.has_begun or self._held_bytes + self._bytes_of_vectors(job) <= _MAX_HELD_BYTES:
            return True
        return self._held_bytes == 0 or job is next(iter(self._jobs), None)

    def _bytes_of_vectors(self, job: Job) -> int:
        assert job.slot.model is not None
        return len(job.request.inputs) * job.slot.model.engine.dimension * 4

    def _chunk_of(self, job: Job) -> Callable[[], None]:
        """Take the next texts of a job, at least one."""
        inputs = job.request.inputs
        first = last = job.next_text
        characters = 0
        while last < len(inputs) and last - first < _CHUNK_TEXTS:
            characters += len(job.prompt) + len(inputs[last])
            if characters > _CHUNK_CHARACTERS and last > first:
                break
            last += 1
        job.next_text = last
        return lambda: self._tokenize(job, first, last)

    def _tokenize(self, job: Job, first: int, last: int) -> None:
        model = job.slot.model
        if job.is_over or model is None:
            return
        started = self._clock()
        try:
            texts = model.engine.tokenizer.encode(job.request.inputs[first:last], job.prompt)
        except RequestFailed as failure:
            index = first + (failure.index or 0)
            self.fail(job, failure.code, f"input {index}: {failure}", index)
            return
        except MemoryError:
            raise
        except BaseException:  # noqa: BLE001 - it concerns this request alone; Rust's panics are no Exception
            _log.exception("tokenising failed texts=%d", last - first)
            self.fail(job, ErrorCode.INTERNAL_ERROR, f"the tokenizer failed on one of the inputs {first} to {last - 1}")
            return
        rows = []
        for index, text in enumerate(texts, first):
            job.tokens[index] = text.count
            if text.is_truncated:
                job.truncated.append(index)
            if not len(text.ids):
                self.fail(job, ErrorCode.NON_FINITE_EMBEDDING, f"input {index} has no tokens", index)
                return
            rows.append(Row(job, index, len(text.ids)))
        if job.truncated and not job.request.truncate:
            index = job.truncated[0]
            limit = model.plan.max_tokens
            message = f"input {index} has {job.tokens[index]} tokens, the limit is {limit}"
            self.fail(job, ErrorCode.INPUT_TOO_LONG, message, index)
            return
        if max(map(len, job.request.inputs[first:last])) > _LONG_CHARACTERS:
            release_freed_memory()
        with self._lock:
            job.tokenize_s += self._clock() - started
            job.characters_left -= sum(map(len, job.request.inputs[first:last])) + len(job.prompt) * (last - first)
            if not job.is_over:
                # Nobody is woken: this lane comes back for them, and wakes others if there is more than it takes.
                job.waiting.update(enumerate(texts, first))
                self._scheduler.add(rows)

    # Running

    def _batch_to_run(self) -> Callable[[], None] | None:
        rows = self._scheduler.next_batch(len(self._threads))
        if not rows:
            return None
        now = self._clock()
        texts = []
        for row in rows:
            texts.append(row.job.waiting.pop(row.index))
            if row.job.first_run_s is None:
                row.job.first_run_s = now
        model = rows[0].job.slot.model
        assert model is not None
        exclusive = not (self._busy or self._scheduler.waiting_rows)
        return lambda: self._run_batch(model.engine, rows, texts, exclusive=exclusive)

    def _run_batch(self, engine: Engine, rows: list[Row[Job]], texts: list[TokenizedText], *, exclusive: bool) -> None:
        try:
            vectors = engine.embed(texts, exclusive=exclusive)
        except (OutOfMemoryError, MemoryError):
            raise
        except BaseException as error:  # noqa: BLE001 - the runtime raises many types; the guilty request gets the answer
            if len(rows) == 1:
                self._blame(rows[0], error)
                return
            # One bad row must not fail its neighbours' requests.
            _log.warning("a micro-batch failed rows=%d reason=%s; each row is tried alone", len(rows), _brief(error))
            for row, text in zip(rows, texts, strict=True):
                if not row.job.is_over:
                    self._run_batch(engine, [row], [text], exclusive=False)
            return
        self._metrics.count_batch(len(rows), max(row.tokens for row in rows))
        self._collect(rows, vectors, engine)

    def _blame(self, row: Row[Job], error: BaseException) -> None:
        _log.error("inference failed tokens=%d reason=%s", row.tokens, _brief(error))
        message = f"the runtime failed on input {row.index}, also when it was alone"
        self.fail(row.job, ErrorCode.INFERENCE_FAILED, message, row.index)

    def _collect(self, rows: list[Row[Job]], vectors: Float32, engine: Engine) -> None:
        """Hand rows back to their jobs; finish the jobs that have all of theirs."""
        good = engine.are_usable(vectors)
        finished = []
        with self._lock:
            now = self._clock()
            for row, vector in zip(rows, vectors, strict=True):
                job = row.job
                if job.is_over:
                    continue
                if job.vectors is None:
                    job.vectors = engine.new_matrix(len(job.request.inputs))
                job.vectors[row.index] = vector
                job.last_run_s = now
                job.rows_missing -= 1
                if not job.rows_missing:
                    finished.append(job)
        for row in itertools.compress(rows, ~good):
            self.fail(row.job, ErrorCode.NON_FINITE_EMBEDDING, _no_length(row.index), row.index)
        for job in finished:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        if self._end(job):
            self._answer(job, lambda: self._success_line(job))

    def _success_line(self, job: Job) -> bytes:
        """Write the vectors of a job, unless it is too late or a cut leaves one of them without a length."""
        model = job.slot.model
        assert model is not None
        assert job.vectors is not None
        now = self._clock()
        if job.deadline_s is not None and job.deadline_s <= now:
            return self._error_line(job, ErrorCode.DEADLINE_EXCEEDED, _DEADLINE_PASSED)
        request = job.request
        vectors = model.finish(job.vectors, request.dimensions, request.normalize)
        if request.dimensions is not None and not (good := model.engine.are_usable(vectors)).all():
            index = int(good.argmin())
            return self._error_line(job, ErrorCode.NON_FINITE_EMBEDDING, _no_length(index), index)
        self._metrics.count_embedded(job.tokens, (now - job.arrived_s) * 1e3)
        before = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "dimension": vectors.shape[1],
            "count": len(vectors),
        }
        after = {"tokens": job.tokens, "truncated": job.truncated, "timing_ms": _timing_ms(job, now)}
        answer = job.answer
        return encode_vectors(answer.request_id, answer.line_number, before, vectors, request.encoding_format, after)


_DEADLINE_PASSED = "the deadline passed before the answer was ready"


def _no_length(index: int) -> str:
    return f"the model gave input {index} a vector that is not finite or has no length"


def _brief(error: BaseException) -> str:
    """The runtime's own words, which name nodes and shapes and never hold a text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _prompt(request: Embed, prompts: Mapping[str, str], default_name: str | None) -> str:
    if request.prompt is not None:
        return request.prompt
    name = default_name if request.prompt_name is None else request.prompt_name
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(sorted(prompts))
        raise RequestFailed(ErrorCode.INVALID_REQUEST, f"unknown prompt_name {name[:64]!a}; the model has: {known}")
    return prompts[name]


def _check_against_model(request: Embed, model: LoadedModel) -> None:
    dimension = model.engine.dimension
    if request.dimensions is not None and request.dimensions > dimension:
        message = f"`dimensions` is {request.dimensions}, the model has {dimension}"
        raise RequestFailed(ErrorCode.INVALID_REQUEST, message)
    if request.normalize is False and model.engine.normalizes_itself:
        message = "`normalize` cannot be false: the model's graph normalises by itself"
        raise RequestFailed(ErrorCode.INVALID_REQUEST, message)


def _timing_ms(job: Job, now: float) -> dict[str, float]:
    """Split the time of a request, in milliseconds: `queue` is what neither of the others took."""
    total = now - job.arrived_s
    inference = 0.0 if job.first_run_s is None else job.last_run_s - job.first_run_s
    queue = max(0.0, total - inference - job.tokenize_s)
    parts = {"queue": queue, "tokenize": job.tokenize_s, "inference": inference, "total": total}
    return {name: round(seconds * 1e3, 3) for name, seconds in parts.items()}
