"""The shapes that batches are padded to: few, because OpenVINO prepares and keeps something for each. Pure.

A new shape costs about 10 ms and a megabyte or more: 60 random shapes took 830 MB in a worker. Padding costs what texts
cost, so the scheduler fills a bucket with texts where others wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# A token costs about the same at all of these, and a tenth more at 28 and 44, which take as long as 32 and 48.
_TOKENS = (8, 12, 16, 20, 24, 32, 36, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


class Bucket(NamedTuple):
    """A number of rows and of tokens that a batch is padded to."""

    rows: int
    tokens: int


class Buckets:
    """The buckets of a worker."""

    def __init__(self, *, batch_tokens: int, max_tokens: int) -> None:
        """Choose the buckets.

        Args:
            batch_tokens: The budget of a micro-batch: its rows times its longest text.
            max_tokens: The longest text of the model.
        """
        # Never more than the model has positions for.
        self._max_tokens = max_tokens
        steps = sorted({min(tokens, max_tokens) for tokens in _TOKENS})
        shortest = (1, *(tokens + 1 for tokens in steps[:-1]))
        # The most rows that the budget allows to the shortest text of the step.
        self._most = {
            tokens: _up(_ROWS, min(max(1, batch_tokens // shorter), _ROWS[-1]))
            for tokens, shorter in zip(steps, shortest, strict=True)
        }

    def __iter__(self) -> Iterator[Bucket]:
        for tokens, most in self._most.items():
            yield from (Bucket(rows, tokens) for rows in _ROWS if rows <= most)

    def most_rows(self, tokens: int) -> int:
        """Return how many rows of so many tokens are run at once; more are run in turns."""
        return self._most.get(self._up_to(tokens), 1)

    def of(self, rows: int, tokens: int) -> Bucket:
        """Return what a batch of at most `most_rows` is padded to.

        Texts beyond the last step, which few models take, are padded to its multiples.
        """
        return Bucket(_up(_ROWS, rows), self._up_to(tokens))

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
