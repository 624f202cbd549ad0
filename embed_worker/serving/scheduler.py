"""Which rows run next: pure, without I/O, threads or a clock. Whoever calls holds the lock of the answers.

A *job* is the work of one request, a *row* is one of its texts. A micro-batch is cut by a token budget (rows times what
the longest row costs) from rows of similar length, across all jobs of one model.

Small jobs lead, the oldest first, and then the bulk job with the least work left, so that a short request overtakes a
long one. The two kinds are batched apart: a query never pays for riding along with a full micro-batch of somebody's
import. Every so many micro-batches the oldest job of all leads instead, so that nobody starves.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar
from weakref import WeakValueDictionary

J = TypeVar("J", bound=Hashable)
# From the rows and tokens of a batch to those that are run for it.
PaddedTo: TypeAlias = Callable[[int, int], tuple[int, int]]

_PATIENCE = 8  # one micro-batch in so many is led by the oldest job
# What a run costs whatever is in it, in tokens. Measured: docs/decisions.md.
_FIXED_TOKENS = 10
# Matrix products cost 24·D² a token and layer, attention 4·D·T: together T·(1 + T / 6D). Here for D = 384; a larger
# model's attention is then counted for more than it is.
_QUADRATIC_TOKENS = 2304
_MIN_SHARE_TOKENS = 64  # a micro-batch smaller than this is mostly fixed cost


@dataclass(slots=True, eq=False)
class Row(Generic[J]):
    """One text that waits to be run.

    Attributes:
        job: Whose text it is.
        index: Its place among the inputs of the request.
        tokens: Its length, special tokens included, after truncation.
        twins: Rows of the same text, which need not be run.
    """

    job: J
    index: int
    tokens: int
    is_waiting: bool = True
    twins: list[Row[J]] | None = None

    @property
    def all(self) -> list[Row[J]]:
        """It and its twins."""
        return [self, *(self.twins or ())]


@dataclass(slots=True)
class _Job(Generic[J]):
    pool: _Pool[J]
    tokens_left: int  # an estimate: the tokens of the texts that are not tokenised yet are not known
    longest_first: list[tuple[int, int, Row[J]]] = field(default_factory=list)  # heap; rows already taken linger in it
    waiting: int = 0


def cost_of(tokens: int) -> float:
    """Return what a row of so many tokens costs, in tokens of a short row: attention grows with the square."""
    return tokens * (1 + tokens / _QUADRATIC_TOKENS)


class Scheduler(Generic[J]):
    """Rows in, micro-batches out. Every row that is added leaves in exactly one batch, unless its job is closed."""

    def __init__(self, *, batch_tokens: int, max_rows: int | None = None) -> None:
        """Start empty.

        Args:
            batch_tokens: The budget of a micro-batch.
            max_rows: Most rows of a micro-batch; None: as many as the budget takes.
        """
        self._batch_tokens = batch_tokens
        self._max_rows = max_rows or batch_tokens
        self._jobs: dict[J, _Job[J]] = {}  # in the order of arrival
        # A pool lives as long as a job of its kind: models come and go.
        self._pools: WeakValueDictionary[tuple[Hashable, bool], _Pool[J]] = WeakValueDictionary()
        self._batches = 0
        self._added = 0
        self.waiting_rows = 0
        self.waiting_small_rows = 0
        self._waiting_cost = 0.0

    def open(
        self,
        job: J,
        *,
        model: Hashable,
        expected_tokens: int,
        padded_to: PaddedTo = lambda rows, tokens: (rows, tokens),
    ) -> None:
        """Announce a job; its rows may follow in pieces.

        Args:
            job: Not open already.
            model: Rows of different models never share a micro-batch.
            expected_tokens: An estimate of its whole work. Up to one micro-batch it counts as small.
            padded_to: What the model computes for a batch; the same for all jobs of a model.
        """
        is_small = expected_tokens <= self._batch_tokens
        pool = self._pools.setdefault((model, is_small), _Pool(is_small=is_small, padded_to=padded_to))
        self._jobs[job] = _Job(pool, expected_tokens)

    def add(self, rows: Iterable[Row[J]]) -> None:
        """Queue rows of open jobs."""
        for row in rows:
            job = self._jobs[row.job]
            job.pool.add(row)
            self._added += 1
            heapq.heappush(job.longest_first, (-row.tokens, self._added, row))
            self._count(job, row, 1)

    def close(self, job: J) -> None:
        """Forget a job and drop those of its rows that have not left; closing an unknown job does nothing."""
        closed = self._jobs.pop(job, None)
        if closed is None:
            return
        dropped = [row for _, _, row in closed.longest_first if row.is_waiting]
        for row in dropped:
            row.is_waiting = False
            self._count(closed, row, -1)
        closed.pool.sweep({row.tokens for row in dropped})

    def next_batch(self, lanes: int = 1) -> list[Row[J]]:
        """Take the rows to run next: at most the budget together, or one row that costs more alone.

        Args:
            lanes: Who will ask. What waits is shared out when it is less than a full micro-batch for each.

        Returns:
            At least one row, or an empty list when none waits. All of one model.
        """
        lead = self._lead()
        if lead is None:
            return []
        self._batches += 1
        budget = min(self._batch_tokens, max(self._waiting_cost / lanes, _MIN_SHARE_TOKENS))
        batch = [self._take_longest(lead)]
        tokens = widest = batch[0].tokens
        for neighbours in (lead.pool.shorter(widest), lead.pool.longer(widest)):
            for row in neighbours:
                longest = max(widest, row.tokens)
                padded = (len(batch) + 1) * cost_of(longest)
                if len(batch) >= self._max_rows or padded > budget:
                    break
                # A row may ride along as long as the share of real tokens in the cost of the run does not fall.
                if (tokens + row.tokens) * (len(batch) * cost_of(widest) + _FIXED_TOKENS) < tokens * (
                    padded + _FIXED_TOKENS
                ):
                    break
                self._take(row)
                batch.append(row)
                tokens += row.tokens
                widest = longest
        self._fill(batch, lead.pool, widest)
        return batch

    def _fill(self, batch: list[Row[J]], pool: _Pool[J], widest: int) -> None:
        """Add rows in the place of padding that is computed anyway: longer ones that fit, then shorter ones."""
        most, longest = pool.padded_to(len(batch), widest)
        for neighbours in (pool.longer(widest), pool.shorter(widest)):
            for row in neighbours:
                if len(batch) >= min(most, self._max_rows) or row.tokens > longest:
                    break
                self._take(row)
                batch.append(row)

    def _lead(self) -> _Job[J] | None:
        waiting = (job for job in self._jobs.values() if job.waiting)
        if self._batches % _PATIENCE == _PATIENCE - 1:
            return next(waiting, None)
        # Small jobs come first, the oldest of them: lengths around any one text are denser than around the shortest,
        # and micro-batches fuller. A bulk job's estimate may be far too low, so it stays behind whatever it says.
        return min(waiting, key=lambda job: 0.0 if job.pool.is_small else 1.0 + max(0, job.tokens_left), default=None)

    def _take_longest(self, job: _Job[J]) -> Row[J]:
        while True:
            row = heapq.heappop(job.longest_first)[2]
            if row.is_waiting:
                self._take(row)
                return row

    def _take(self, row: Row[J]) -> None:
        row.is_waiting = False
        job = self._jobs[row.job]
        job.tokens_left -= row.tokens
        self._count(job, row, -1)

    def _count(self, job: _Job[J], row: Row[J], change: int) -> None:
        job.waiting += change
        self._waiting_cost += change * cost_of(row.tokens)
        self.waiting_rows += change
        if job.pool.is_small:
            self.waiting_small_rows += change


class _Pool(Generic[J]):
    """Waiting rows by length, each length in the order of arrival. Rows that left another way linger until passed."""

    def __init__(self, *, is_small: bool, padded_to: PaddedTo) -> None:
        self.is_small = is_small
        self.padded_to = padded_to
        self._by_length: dict[int, deque[Row[J]]] = {}
        self._lengths: list[int] = []  # the keys, sorted

    def add(self, row: Row[J]) -> None:
        rows = self._by_length.get(row.tokens)
        if rows is None:
            rows = self._by_length[row.tokens] = deque()
            insort(self._lengths, row.tokens)
        rows.append(row)

    def shorter(self, tokens: int) -> Iterator[Row[J]]:
        """Yield waiting rows of at most this length, the longest first.

        The caller takes each row it is given before it asks for the next.
        """
        for length in self._lengths[: bisect_right(self._lengths, tokens)][::-1]:
            yield from self._waiting(length)

    def longer(self, tokens: int) -> Iterator[Row[J]]:
        """Yield waiting rows of more than this length, the shortest first; see `shorter`."""
        for length in self._lengths[bisect_right(self._lengths, tokens) :]:
            yield from self._waiting(length)

    def sweep(self, lengths: Iterable[int]) -> None:
        """Forget the rows of these lengths that no longer wait."""
        for length in lengths:
            for _ in range(len(rows := self._by_length[length])):
                row = rows.popleft()
                if row.is_waiting:
                    rows.append(row)
            self._drop_if_empty(length)

    def _drop_if_empty(self, length: int) -> None:
        if not self._by_length[length]:
            del self._by_length[length]
            self._lengths.remove(length)

    def _waiting(self, length: int) -> Iterator[Row[J]]:
        rows = self._by_length[length]
        while rows:
            if rows[0].is_waiting:
                yield rows[0]
                if rows[0].is_waiting:
                    return  # refused: it would not fit
            rows.popleft()
        self._drop_if_empty(length)
