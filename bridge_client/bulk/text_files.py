"""Rows of txt, jsonl, csv and tsv files, in UTF-8.

A line of a txt file is a text. A line of a jsonl file is an object, or a string that is the text. A csv or tsv file has
a head; an empty cell is null. A row that cannot be read is a row with a problem, so that those around it keep their
places.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import orjson

from bridge_client.bulk.rows import STDIN, TEXT_COLUMN, Block, CorpusError, Format, Source

_BLOCK_ROWS = 1024
_MAX_CELL_CHARACTERS = 2**27  # of a csv file; by itself the csv module stops at 131,072
_BOM = b"\xef\xbb\xbf"

# The values by column, or a sentence on what is wrong with the row.
_Row: TypeAlias = Mapping[str, Any] | str


class TextReader:
    """One text file, or standard input; `total` in bytes."""

    unit = "B"

    def __init__(self, source: Source) -> None:
        self._source = source
        self.total = source.size
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        """Return the columns: of a jsonl file the members of its first row."""
        if self._names is None:
            self._names = self._read_names()
        return self._names

    def _read_names(self) -> list[str]:
        if self._source.format is Format.TXT or (self._source.path == STDIN and self._source.format is Format.JSONL):
            return [TEXT_COLUMN]
        if self._source.path == STDIN:
            raise CorpusError(f"standard input is read once: as {self._source.format} it cannot tell its columns first")
        try:
            with _opened(self._source) as file:
                if self._source.format is Format.JSONL:
                    first = next((row for row in _json_rows(file) if not isinstance(row, str)), {})
                    return list(first)
                return list(_csv_reader(file, self._source).fieldnames or ())
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise CorpusError(f"{self._source.name} cannot be read: {error}") from error

    def blocks(self, text: str, kept: Sequence[str]) -> Iterator[Block]:
        """Yield all rows."""
        with _opened(self._source) as file:
            block = _empty(kept)
            try:
                for row in self._rows(file):
                    _add(block, row, text)
                    if len(block.texts) == _BLOCK_ROWS:
                        block.done = _position(file)
                        yield block
                        block = _empty(kept)
            except (csv.Error, UnicodeDecodeError) as error:
                raise CorpusError(f"{self._source.name} is damaged: {error}") from error
            block.done = _position(file)
            yield block

    def _rows(self, file: IO[bytes]) -> Iterator[_Row]:
        match self._source.format:
            case Format.TXT:
                return _text_rows(file)
            case Format.JSONL:
                return _json_rows(file)
            case _:
                return ({name: value or None for name, value in row.items()} for row in _csv_reader(file, self._source))


def _empty(kept: Sequence[str]) -> Block:
    return Block(columns={name: [[]] for name in kept})


def _add(block: Block, row: _Row, text_column: str) -> None:
    text: Any = None
    if isinstance(row, str):
        problem: str | None = row
        row = {}
    else:
        text = row.get(text_column)
        problem = None if text is None or isinstance(text, str) else f"the value of {text_column!r} is not a string"
    if problem is not None:
        block.problems[len(block.texts)] = problem
        text = None
    block.texts.append(text)
    for name, (values,) in block.columns.items():
        values.append(row.get(name))


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    if source.path == STDIN:
        yield sys.stdin.buffer
        return
    with open(source.path, "rb") as file:
        yield file


def _position(file: IO[bytes]) -> int:
    return file.tell() if file.seekable() else 0


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines without their ends. Not through `str`, which would split at other characters, too."""
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(_BOM)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _text_rows(file: IO[bytes]) -> Iterator[_Row]:
    for line in _lines(file):
        try:
            yield {TEXT_COLUMN: line.decode("utf-8")}
        except UnicodeDecodeError:
            yield "the line is not UTF-8"


def _json_rows(file: IO[bytes]) -> Iterator[_Row]:
    for line in _lines(file):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            yield "the line is not JSON"
            continue
        match row:
            case dict():
                yield row
            case str():
                yield {TEXT_COLUMN: row}
            case _:
                yield "the line is neither an object nor a string"


def _csv_reader(file: IO[bytes], source: Source) -> csv.DictReader[str]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    # A copy of the descriptor's file object would be closed with the text layer; the owner closes it.
    text = io.TextIOWrapper(io.BufferedReader(_Unclosed(file)), encoding="utf-8-sig", newline="")
    return csv.DictReader(text, dialect="excel-tab" if source.format is Format.TSV else "excel", restval="")


class _Unclosed(io.RawIOBase):
    """A file that another owner closes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
