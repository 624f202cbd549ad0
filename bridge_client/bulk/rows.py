"""What a corpus is made of: sources, their formats, and rows in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

STDIN = "-"
TEXT_COLUMN = "text"  # of formats without names, and the first guess where there are some

BLOCK_SIZE = 2**25  # of a block's rows, see `Block`: what it takes in memory, however many rows are asked for

# Of a chunk: its text's row in the corpus, its number in the text, and its range there in code points.
CHUNK_COLUMNS = ("source_row", "chunk", "start", "end")


class Format(StrEnum):
    """How rows are stored."""

    TXT = "txt"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def is_table(self) -> bool:
        """Whether columns have types, and pyarrow reads them."""
        return self in (Format.PARQUET, Format.ARROW)

    @property
    def is_ragged(self) -> bool:
        """Whether each row has columns of its own, and is null in all others."""
        return self is Format.JSONL


class CorpusError(ValueError):
    """The corpus, or what is to be done with it, cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file, or standard input. `size` in bytes and `modified_ns` tell whether it is still the same."""

    path: str
    format: Format
    size: int | None = None
    modified_ns: int | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if self.path == STDIN else self.path


@dataclass(slots=True, kw_only=True)
class Block:
    """Some rows in order.

    Attributes:
        texts: None for a null text, and for a row that has a problem.
        problems: What is wrong with a row's text, by the row's place in the block.
        columns: The pieces of the kept columns by name: lists of values, or arrays of pyarrow where a table is read.
        sizes: What each row takes in memory with its text and what is kept of it, about, in characters or bytes.
        sources: Each row's number in the corpus, where rows are chunks of texts.
        begun, done: How far the corpus is read at its first row and behind its last, in the unit of the corpus: bytes,
            or rows of tables.
    """

    texts: list[str | None] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    columns: dict[str, list[Any]]
    sizes: list[int] = field(default_factory=list)
    sources: list[int] | None = None
    begun: int = 0
    done: int = 0

    def take(self, other: Block, start: int, end: int) -> None:
        """Append the rows `start` to `end` of another block."""
        here = len(self.texts)
        self.texts += other.texts[start:end]
        self.sizes += other.sizes[start:end]
        self.problems |= {here + row - start: what for row, what in other.problems.items() if start <= row < end}
        for name, pieces in other.columns.items():
            # A block that was read has one piece a column.
            self.columns[name] += [piece[start:end] for piece in pieces]
        per_row = (other.done - other.begun) / len(other.texts)
        if not here:
            self.begun = other.begun + round(start * per_row)
        self.done = other.begun + round(end * per_row)


class Reader(Protocol):
    """One source, read by its format."""

    @property
    def unit(self) -> str:
        """What `total` counts: `rows` or `B`."""

    @property
    def total(self) -> int | None:
        """How much there is to read; None where nobody knows."""

    def names(self) -> list[str]:
        """Return the names of the columns, as far as they are known before reading."""

    def may_have(self, name: str) -> bool:
        """Whether a row may have the column, as far as that is known before reading."""

    def blocks(self, text: str, kept: Sequence[str]) -> Iterator[Block]:
        """Yield all rows, in blocks of the reader's own size.

        Raises:
            CorpusError: It cannot be read on.
        """
