"""The corpus: files of one kind as one sequence of rows, read in blocks of a given size.

A row is a text, or null, and the values of the columns that are kept. `text_files.py` and `tables.py` read the formats.
Memory holds a block or two, whatever the files.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bridge_client.bulk.rows import BLOCK_SIZE, STDIN, TEXT_COLUMN, Block, CorpusError, Format, Reader, Source

_SUFFIXES = {
    ".txt": Format.TXT, ".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".csv": Format.CSV, ".tsv": Format.TSV,
    ".parquet": Format.PARQUET, ".arrow": Format.ARROW, ".feather": Format.ARROW,
}  # fmt: skip


def find_sources(inputs: Sequence[str], stated: Format | None) -> list[Source]:
    """Return the files that the arguments mean: files, patterns, folders with all their files, or standard input.

    Args:
        inputs: As given on the command line.
        stated: The format of all of them; by default each suffix tells.

    Raises:
        CorpusError: Nothing is there, a format is not known, or tables and text are mixed.
    """
    found = [source for name in inputs for source in _sources(name, stated)]
    if len({source.format.is_table for source in found}) > 1:
        raise CorpusError("tables and text files cannot be read as one corpus: give them to two commands")
    if [source.path for source in found].count(STDIN) > 1:
        raise CorpusError("standard input can be read once")
    return found


def is_like_a_file(text: str) -> bool:
    """Return whether a text ends as the name of a file of a corpus does."""
    return (suffix := Path(text).suffix.lower()) in _SUFFIXES or suffix in _COMPRESSED


def _sources(name: str, stated: Format | None) -> list[Source]:
    if name == STDIN:
        if stated is not None and stated.is_table:
            raise CorpusError(f"standard input cannot be {stated}: its end would have to be read first")
        return [Source(path=STDIN, format=stated or Format.TXT)]
    path = Path(name)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith((".", "_"))]
    elif path.exists():
        files = [path]
    else:
        files = [Path(each) for each in sorted(glob.glob(name, recursive=True)) if Path(each).is_file()]
    if not files:
        raise CorpusError(f"there is no file {name!r}")
    return [_source(file, stated) for file in files]


def _source(file: Path, stated: Format | None) -> Source:
    if (suffix := file.suffix.lower()) in _COMPRESSED:
        raise CorpusError(
            f"{str(file)!r} is compressed: unpack it first, into the pipe of `embed-worker embed -` perhaps"
        )
    kind = stated or _SUFFIXES.get(suffix)
    if kind is None:
        raise CorpusError(
            f"the suffix of {str(file)!r} does not tell its format: say it with --format, or name other files alone, "
            "by a pattern such as '*.parquet'"
        )
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise CorpusError(f"{str(file)!r} is a pipe or a device, which is read once: give it as standard input, with -")
    return Source(path=os.path.abspath(file), format=kind, size=facts.st_size, modified_ns=facts.st_mtime_ns)


_COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".br"})
_SEPARATOR = re.compile(r"[,;|\t]")  # what people separate cells by


class Corpus:
    """Sources of one kind, the column of their texts, and the columns that are kept.

    Attributes:
        column: The name of the texts' column.
        kept: The names of the kept columns.
        total: How much there is to read, in `unit`; None where nobody knows.
        unit: `rows` or `B`.
    """

    def __init__(self, sources: Sequence[Source], column: str | None, keep: Sequence[str] | None) -> None:
        """Look into the sources to decide on the columns.

        Args:
            sources: At least one.
            column: Of the texts; by default `text`, or the only column that there is.
            keep: Columns to keep; `*` is all that any source tells of, and by default it is the texts' own.

        Raises:
            CorpusError: A source cannot be read, a column is not there, or tables do not agree.
        """
        self.sources = list(sources)
        self._readers = [_reader(source) for source in sources]
        names = list(dict.fromkeys(name for reader in self._readers for name in reader.names()))
        self.column = column or _text_column(names, self.sources[0].format)
        self.kept = list(dict.fromkeys([self.column] if keep is None else names if "*" in keep else keep))
        for name in (self.column, *self.kept):
            self._check_column(name)
        self._names = names
        totals = [reader.total for reader in self._readers]
        self.total = None if None in totals else sum(total for total in totals if total is not None)
        self.unit = self._readers[0].unit
        # pyarrow is there where a table is read, and is needed for nothing else.
        self._schema = None
        if self.is_table:
            from bridge_client.bulk import tables

            self._schema = tables.common_schema(self.sources, self.column, self.kept)

    def _check_column(self, name: str) -> None:
        """Check that every source may have a column, and one of the name; of ragged ones it is enough that one may."""
        for source, reader in zip(self.sources, self._readers, strict=True):
            if (count := reader.names().count(name)) > 1:
                raise CorpusError(f"{source.name} has {count} columns named {name!r}: give each a name of its own")
        known = [(source, reader) for source, reader in zip(self.sources, self._readers, strict=True) if reader.names()]
        lacking = [(source, reader) for source, reader in known if not reader.may_have(name)]
        for source, reader in lacking:
            if not source.format.is_ragged or len(lacking) == len(known):
                raise CorpusError(f"{source.name} has no column {name!r}; it has {', '.join(reader.names())}")

    @property
    def is_table(self) -> bool:
        """Whether columns have types."""
        return self.sources[0].format.is_table

    @property
    def has_stdin(self) -> bool:
        """Whether standard input is part of it, which is read once and is not known by size and time."""
        return any(source.path == STDIN for source in self.sources)

    def schema(self) -> Any:
        """Return the `pyarrow.Schema` of the kept columns: those of a table, else strings."""
        from bridge_client.bulk import tables

        return tables.strings(self.kept) if self._schema is None else self._schema

    def blocks(self, rows: int, skip: int = 0) -> Iterator[Block]:
        """Yield the rows from number `skip` on in blocks of `rows`, or of less where rows are large.

        Where a block ends depends on its own rows alone.

        Raises:
            CorpusError: A source cannot be read, or is damaged.
        """
        block, size = self._empty(), 0
        for piece in self._pieces():
            start = min(skip, len(piece.texts))
            skip -= start
            while start < len(piece.texts):
                wanted = piece.sizes[start : start + rows - len(block.texts)]
                sums = list(itertools.accumulate(wanted, initial=size))[1:]
                count = min(len(wanted), bisect.bisect_left(sums, BLOCK_SIZE) + 1)
                block.take(piece, start, start + count)
                start, size = start + count, sums[count - 1]
                if len(block.texts) == rows or size >= BLOCK_SIZE:
                    yield block
                    block, size = self._empty(), 0
        if block.texts:
            yield block

    def _pieces(self) -> Iterator[Block]:
        before = 0
        has_texts = self.column in self._names or not self._names
        for source, reader in zip(self.sources, self._readers, strict=True):
            begun = before
            try:
                for piece in reader.blocks(self.column, self.kept):
                    has_texts = has_texts or bool(piece.problems) or any(text is not None for text in piece.texts)
                    piece.begun, piece.done = begun, before + piece.done
                    begun = piece.done
                    yield piece
            except OSError as error:
                raise CorpusError(f"{source.name} cannot be read: {error.strerror or error}") from error
            before += reader.total or 0
        if not has_texts:  # a column that is stated is believed, for it may come late
            raise CorpusError(f"no row has the column {self.column!r}; the first ones have {', '.join(self._names)}")

    def _empty(self) -> Block:
        return Block(columns={name: [] for name in self.kept})


def _reader(source: Source) -> Reader:
    if source.format.is_table:
        from bridge_client.bulk.tables import TableReader

        return TableReader(source)
    from bridge_client.bulk.text_files import TextReader

    return TextReader(source)


def _text_column(names: Sequence[str], kind: Format) -> str:
    if TEXT_COLUMN in names or not names:
        return TEXT_COLUMN
    if len(names) == 1:
        if kind in (Format.CSV, Format.TSV) and _SEPARATOR.search(names[0]):
            separator = "commas" if kind is Format.CSV else "tabs"
            raise CorpusError(
                f"the head is one cell, {names[0]!r}, and cells of {kind} are separated by {separator}: "
                f"if it is a name all the same, say so with --column"
            )
        return names[0]
    raise CorpusError(f"there are the columns {', '.join(names)}: say with --column which one has the texts")
