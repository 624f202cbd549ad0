"""The shapes that batches are padded to where a runtime prepares and keeps something for each: few.

Padding costs what texts cost, so the scheduler fills a bucket with texts where others wait. B and T are texts and
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embed_worker.inference.token_batch import TokenBatch


class Bucket(NamedTuple):
    """A number of rows and of tokens that a batch is padded to."""

    rows: int
    tokens: int


class Buckets:
    """The buckets of a worker."""

    def __init__(self, rows: Sequence[int], tokens: Sequence[int], *, batch_tokens: int, max_tokens: int) -> None:
        """Choose the buckets.

        Args:
            rows: Steps of the number of texts, ascending, from 1.
            tokens: Steps of their length, ascending.
            batch_tokens: The budget of a micro-batch: its rows times its longest text.
            max_tokens: The longest text of the model.
        """
        # Never more than the model has positions for.
        self._max_tokens = max_tokens
        self._rows = tuple(rows)
        steps = sorted({min(step, max_tokens) for step in tokens})
        shortest = (1, *(tokens + 1 for tokens in steps[:-1]))
        # The most rows that the budget allows to the shortest text of the step.
        self._most = {
            step: _up(self._rows, min(max(1, batch_tokens // shorter), self._rows[-1]))
            for step, shorter in zip(steps, shortest, strict=True)
        }

    def __iter__(self) -> Iterator[Bucket]:
        for tokens, most in self._most.items():
            yield from (Bucket(rows, tokens) for rows in self._rows if rows <= most)

    def most_rows(self, tokens: int) -> int:
        """Return how many rows of so many tokens are run at once; more are run in turns."""
        return self._most.get(self._up_to(tokens), 1)

    def of(self, rows: int, tokens: int) -> Bucket:
        """Return what a batch of at most `most_rows` is padded to.

        Texts beyond the last step, which few models take, are padded to its multiples.
        """
        return Bucket(_up(self._rows, rows), self._up_to(tokens))

    def together(self, rows: int, tokens: int) -> Bucket:
        """Return what is run for a batch of any size: turns of `most_rows`, and a bucket for the rest."""
        whole = rows // self.most_rows(tokens) * self.most_rows(tokens)
        rest = self.of(rows - whole, tokens).rows if rows > whole else 0
        return Bucket(whole + rest, self._up_to(tokens))

    def _up_to(self, tokens: int) -> int:
        steps = tuple(self._most)
        if tokens <= steps[-1]:
            return _up(steps, tokens)
        return min(-(-tokens // steps[-1]) * steps[-1], max(tokens, self._max_tokens))


def _up(steps: tuple[int, ...], size: int) -> int:
    return next(step for step in steps if step >= size)


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """How a model's batches get the shape of a bucket.

    Attributes:
        buckets: Of its runtime.
        pad_id: What stands in the padding, which the graph's mask leaves out.
        pad_left: Whether padding goes before a text.
    """

    buckets: Buckets
    pad_id: int
    pad_left: bool

    def turns(self, batch: TokenBatch) -> list[TokenBatch]:
        """Cut a batch into what is run at once."""
        most = self.buckets.most_rows(batch.ids.shape[1])
        if len(batch.ids) <= most:
            return [batch]
        return [batch.only(slice(first, first + most)) for first in range(0, len(batch.ids), most)]

    def fill(self, batch: TokenBatch, at_least: int = 0) -> TokenBatch:
        """Pad a turn to its bucket, or to that of longer texts.

        The rows behind its own are copies of its first text, and not wanted.
        """
        rows, tokens = batch.ids.shape
        bucket = self.buckets.of(rows, max(tokens, at_least))
        if (rows, tokens) == bucket:
            return batch
        return batch.padded(bucket.rows, bucket.tokens, pad_id=self.pad_id, pad_left=self.pad_left)


class SteadyLength:
    """To what length texts that run alone are padded where a change of shape takes time: that of the last few texts.

    Any thread may call.
    """

    # Of more, short texts would keep a long one's shape for longer; of fewer, shapes would change more often.
    _REMEMBERED = 8

    def __init__(self, spare_tokens: int) -> None:
        """Begin without texts; a change of shape takes as long as so many tokens."""
        self._spare_tokens = spare_tokens
        self._recent: tuple[int, ...] = ()

    def of(self, tokens: int) -> int:
        """Return the length for the next text."""
        self._recent = recent = (*self._recent[1 - self._REMEMBERED :], tokens)
        return max(length for length in recent if length <= tokens + self._spare_tokens)
