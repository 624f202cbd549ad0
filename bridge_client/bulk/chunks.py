"""Texts as chunks of at most so many tokens, so that nothing of a long text is cut off.

Where to cut is decided on the tokens of the whole text, and every chunk is counted again by itself, for what is cut out
of a text may have more tokens there than it had in it. Pure, but for the `Tokenize` that it is given.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bridge_client.bulk.rows import CHUNK_COLUMNS, Block, CorpusError

_GROUP_CHARACTERS = 2**20  # whose tokens are in memory at a time: some 16 MB


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text: how many a vector of it is made of, prompt and special ones left out, and where they are.

    `offsets` is (tokens, 2): the code points where each begins and ends.
    """

    count: int
    offsets: NDArray[np.int64]


# None for a text that the worker refuses: its vector will tell why.
Tokenize: TypeAlias = Callable[[Sequence[str]], list[Tokens | None]]


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """How many tokens a chunk has at most, and how many of the one before it repeats at least."""

    tokens: int
    overlap: int = 0

    @classmethod
    def parse(cls, text: str) -> ChunkSize:
        """Read `N` or `N,OVERLAP`.

        Raises:
            ValueError: It is neither, or the overlap is more than half of the chunk.
        """
        numbers = [int(part) for part in text.split(",")]
        if len(numbers) > 2 or numbers[0] < 1 or numbers[-1] < 0:
            raise ValueError(text)
        size = cls(*numbers)
        if size.overlap > size.tokens // 2:
            raise ValueError(f"{size.overlap} is more than half of {size.tokens}")
        return size

    def check_room(self, room: int | None, fixed: int, model: str) -> None:
        """Check that a chunk fits into the model beside the `fixed` tokens of prompt and special ones.

        Raises:
            CorpusError: It does not; the message names the largest size.
        """
        if room is not None and self.tokens > room:
            raise CorpusError(
                f"--chunk {self.tokens} is more than {model} has room for: the largest is {room}, "
                f"for prompt and special tokens take {fixed} of {room + fixed}"
            )


class Chunker:
    """Cut texts, and whole blocks of rows."""

    def __init__(self, size: ChunkSize, tokenize: Tokenize, text_column: str) -> None:
        self._size = size
        self._tokenize = tokenize
        self._text_column = text_column

    def ranges(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return for each text the ranges of its chunks in code points, in order; at least one.

        A text that fits is one chunk as it is. Else chunks begin and end with tokens, at white space where the second
        half of a chunk has some, and never inside a character; the tokenizer drops what lies in no chunk. What is one
        token or one character of the text stays whole, also where it alone has more than a chunk may have.
        """
        plans = [_Plan(text, tokens, self._size) for text, tokens in zip(texts, self._tokenize(texts), strict=True)]
        while pending := [plan for plan in plans if not plan.is_done]:
            proposed = [(plan, plan.propose()) for plan in pending]
            counts = iter(self._tokenize([plan.text[start:end] for plan, ranges in proposed for start, end in ranges]))
            for plan, ranges in proposed:
                found = [next(counts) for _ in ranges]
                # What cannot be counted is no longer than it was in the whole text, as far as anybody knows.
                plan.accept([0 if tokens is None else tokens.count for tokens in found])
        return [plan.ranges for plan in plans]

    def cut(self, block: Block, first_row: int) -> Block:
        """Return the chunks of a block's rows as rows, kept columns repeated.

        A null text, and a row with a problem, is one row without a range.

        Args:
            block: Rows of a corpus.
            first_row: The number of its first row there.
        """
        texts = list(dict.fromkeys(text for text in block.texts if text is not None))
        found: dict[str, list[tuple[int, int]]] = {}
        for group in _groups(texts):
            found.update(zip(group, self.ranges(group), strict=True))
        made = Block(columns={name: [[]] for name in CHUNK_COLUMNS}, begun=block.begun, done=block.done, sources=[])
        assert made.sources is not None
        counts = []
        for row, text in enumerate(block.texts):
            ranges: Sequence[tuple[int | None, int | None]] = [(None, None)] if text is None else found[text]
            counts.append(len(ranges))
            if row in block.problems:
                made.problems[len(made.texts)] = block.problems[row]
            for number, (start, end) in enumerate(ranges):
                made.texts.append(None if text is None else text[start:end])
                made.sources.append(first_row + row)
                for name, value in zip(CHUNK_COLUMNS, (first_row + row, number, start, end), strict=True):
                    made.columns[name][0].append(value)
        for name, pieces in block.columns.items():
            # The text of a row is that of its chunk.
            made.columns[name] = [made.texts] if name == self._text_column else list(_repeated(pieces, counts))
        return made


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut a list of texts where their tokens would take much memory."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters > _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _repeated(pieces: Iterable[Any], counts: Sequence[int]) -> Iterable[Any]:
    """Repeat each row of a column, whose pieces are lists, or arrays of pyarrow."""
    first = 0
    for piece in pieces:
        rows = np.repeat(np.arange(len(piece)), counts[first : first + len(piece)])
        first += len(piece)
        yield [piece[row] for row in rows] if isinstance(piece, list) else piece.take(rows)


class _Plan:
    """One text on its way to chunks. Places are numbers of tokens, 0 to their number T; a chunk lies between two.

    Attributes:
        ranges: The chunks that are certain.
    """

    def __init__(self, text: str, tokens: Tokens | None, size: ChunkSize) -> None:
        self.text = text
        self.ranges: list[tuple[int, int]] = []
        self._size = size
        self._limit = size.tokens  # of the next chunk alone, if it was counted and had more
        self._begin = 0  # the next chunk's place
        self._reached = 0  # the place where the last one ended
        self._proposed: list[tuple[int, int]] = []
        self.is_done = tokens is None or tokens.count <= size.tokens or not len(tokens.offsets)
        if self.is_done:
            self.ranges.append((0, len(text)))
            return
        assert tokens is not None
        starts, ends = tokens.offsets[:, 0], np.maximum.accumulate(tokens.offsets[:, 1])
        self._starts, self._ends = starts, ends
        self._count = len(starts)
        # A character of several tokens has their range; a cut is where all later tokens begin behind all earlier ones.
        from_here = np.minimum.accumulate(starts[::-1])[::-1]
        inner = np.flatnonzero(from_here[1:] >= ends[:-1]) + 1
        self._places = [*inner.tolist(), self._count]
        self._words = [place for place in inner.tolist() if self._is_word(place)]

    def propose(self) -> list[tuple[int, int]]:
        """Return the ranges of the chunks from here to the end of the text."""
        begin, reached, limit = self._begin, self._reached, self._limit
        self._proposed = []
        while reached < self._count:
            begin, end = self._next(begin, reached, limit)
            self._proposed.append((begin, end))
            reached, limit = end, self._size.tokens
            begin = self._overlapping(begin, end)
        return [self._range(begin, end) for begin, end in self._proposed]

    def accept(self, counts: Sequence[int]) -> None:
        """Take the proposed chunks up to the first one that has too many tokens by itself."""
        for (begin, end), count in zip(self._proposed, counts, strict=True):
            if count > self._size.tokens and self._latest(self._places, begin, end - 1) is not None:
                self._begin = begin
                self._limit = max(1, (end - begin) - (count - self._size.tokens))
                return
            self.ranges.append(self._range(begin, end))
            self._reached, self._limit = end, self._size.tokens
            self._begin = self._overlapping(begin, end)
        self.is_done = True

    def _next(self, begin: int, reached: int, limit: int) -> tuple[int, int]:
        """Return the next chunk: at most `limit` tokens if there is a place to cut, and some that are new."""
        if begin + limit <= reached or self._latest(self._places, reached, begin + limit) is None:
            begin = reached  # so small that nothing of it would be new: it repeats nothing
        most = begin + limit
        if most >= self._count:
            return begin, self._count
        # A chunk no longer than the overlap would leave the next one nothing to repeat.
        end = self._latest(self._words, max(reached, begin + max((limit - 1) // 2, self._size.overlap)), most)
        if end is None:
            end = self._latest(self._places, reached, most)
        if end is None:  # one character has more
            end = self._places[bisect.bisect_right(self._places, reached)]
        return begin, end

    def _overlapping(self, begin: int, end: int) -> int:
        """Return where the chunk after this one begins."""
        if not self._size.overlap:
            return end
        wanted = end - self._size.overlap
        place = self._latest(self._words, max(begin, wanted - self._size.tokens // 4), wanted)
        if place is None:
            place = self._latest(self._places, begin, wanted)
        return end if place is None else place

    def _is_word(self, place: int) -> bool:
        start = int(self._starts[place])
        return start > self._ends[place - 1] or self.text[start : start + 1].isspace()

    def _range(self, begin: int, end: int) -> tuple[int, int]:
        return int(self._starts[begin:end].min()), int(self._ends[end - 1])

    @staticmethod
    def _latest(places: Sequence[int], after: int, most: int) -> int | None:
        """Return the latest place behind `after` that is `most` or less."""
        index = bisect.bisect_right(places, most) - 1
        return places[index] if index >= 0 and places[index] > after else None
