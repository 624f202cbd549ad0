"""Rows of txt, jsonl, csv and tsv files, in UTF-8.

A line of a txt file is a text. A line of a jsonl file is an object, or a string, which stands for `{"text": string}`; a
member that is missing is null. The first line of a csv or tsv file with anything in it is the head; an empty cell is
null, and so is one that a short row lacks. A row that cannot be read is a row with a problem, so that those around it
keep their places.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import orjson

from bridge_client.bulk.rows import BLOCK_SIZE, STDIN, TEXT_COLUMN, Block, CorpusError, Format, Source

_BLOCK_ROWS = 1024
_MAX_CELL_CHARACTERS = 2**27  # of a csv file; by itself the csv module stops at 131,072
_BOM = b"\xef\xbb\xbf"
_LONG_INTEGER = re.compile(rb"\d{19}")  # an integer beyond 64 bits has as many digits, or more
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte, and UTF-8 of nothing

# The values by column, or a sentence on what is wrong with the row.
_Row: TypeAlias = Mapping[str, Any] | str


class TextReader:
    """One text file, or standard input; `total` in bytes."""

    unit = "B"

    def __init__(self, source: Source) -> None:
        self._source = source
        self.total = source.size
        self._names: list[str] | None = None
        self._has_more = False  # than the lines of a jsonl file that `names` has looked at
        self._rows: Iterator[_Row] | None = None  # of standard input once `names` has looked at it: it is read once

    def names(self) -> list[str]:
        """Return the columns: of jsonl the members that the first lines have, as many as make a block.

        Raises:
            CorpusError: The file cannot be read, or is no UTF-8 as a whole.
        """
        if self._names is None:
            try:
                with _opened(self._source) as file:
                    self._names = self._look(file)
            except (OSError, csv.Error) as error:
                raise CorpusError(f"{self._source.name} cannot be read: {error}") from error
        return self._names

    def may_have(self, name: str) -> bool:
        """Whether a row may have the column: one of jsonl that was not looked at may have any."""
        return name in self.names() or self._has_more

    def blocks(self, text: str, kept: Sequence[str]) -> Iterator[Block]:
        """Yield all rows."""
        with _opened(self._source) as file:
            rows = self._rows or _read(file, self._source)[1]
            block, size = _empty(kept), 0
            try:
                for row in rows:
                    _add(block, row, text)
                    size += block.sizes[-1]
                    if len(block.texts) == _BLOCK_ROWS or size >= BLOCK_SIZE:
                        block.done = _position(file)
                        yield block
                        block, size = _empty(kept), 0
            except csv.Error as error:
                raise CorpusError(f"{self._source.name} is damaged: {error}") from error
            block.done = _position(file)
            yield block

    def _look(self, file: IO[bytes]) -> list[str]:
        if self._source.path != STDIN:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # what PowerShell writes
                raise CorpusError(f"{self._source.name} is UTF-16: convert it to UTF-8, with iconv perhaps")
            file.seek(0)
        names, rows, self._has_more = _read(file, self._source)
        if self._source.path == STDIN:
            self._rows = rows
        return names


def _read(file: IO[bytes], source: Source) -> tuple[list[str], Iterator[_Row], bool]:
    """Return the columns, the rows, and whether these may have further columns."""
    match source.format:
        case Format.TXT:
            return [TEXT_COLUMN], _text_rows(_lines(file)), False
        case Format.JSONL:
            lines = _lines(file)
            first, has_more = _first(lines)
            names = dict.fromkeys(name for row in _json_rows(first) if not isinstance(row, str) for name in row)
            return list(names), _json_rows(itertools.chain(first, lines)), has_more
        case _:
            return *_csv_rows(file, source), False


def _first(lines: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """Return the first lines, as many as make a block, and whether there may be more."""
    first: list[bytes] = []
    size = 0
    for line in lines:
        first.append(line)
        size += len(line)
        if len(first) == _BLOCK_ROWS or size >= BLOCK_SIZE:
            return first, True
    return first, False


def _empty(kept: Sequence[str]) -> Block:
    return Block(columns={name: [[]] for name in kept})


def _add(block: Block, row: _Row, text_column: str) -> None:
    problem = row if isinstance(row, str) else None
    members: Mapping[str, Any] = {} if isinstance(row, str) else row
    text = members.get(text_column)
    if not (text is None or isinstance(text, str)):
        problem = f"the value of {text_column!r} is not a string"
    size = len(text) if isinstance(text, str) else 0
    for name, (values,) in block.columns.items():
        value = members.get(name)
        if isinstance(value, dict | list):
            # As JSON from here on: it takes less, and what orjson reads and cannot write is found out now.
            try:
                data = orjson.dumps(value)
            except orjson.JSONEncodeError:
                problem, value = f"the value of {name!r} is nested too deep", None
            else:
                value, size = orjson.Fragment(data), size + len(data)
        elif isinstance(value, str) and name != text_column:
            size += len(value)
        values.append(value)
    if problem is not None:
        block.problems[len(block.texts)] = problem
        text = None
    block.texts.append(text)
    block.sizes.append(size)


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
        if number == 0 and not (line := line.removeprefix(_BOM)):
            return  # there is nothing but the mark
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _text_rows(lines: Iterable[bytes]) -> Iterator[_Row]:
    for line in lines:
        try:
            yield {TEXT_COLUMN: line.decode("utf-8")}
        except UnicodeDecodeError:
            yield "the line is not UTF-8"


def _json_rows(lines: Iterable[bytes]) -> Iterator[_Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = _json(line)
        except orjson.JSONDecodeError as error:  # also of what is JSON and no text, such as half a surrogate pair
            yield f"the line cannot be read as JSON: {error.msg} at character {error.pos}"
            continue
        except RecursionError:
            yield "the line cannot be read as JSON: it is nested too deep"
            continue
        match row:
            case dict():
                yield row
            case str():
                yield {TEXT_COLUMN: row}
            case _:
                yield "the line is neither an object nor a string"


def _json(line: bytes) -> Any:
    """Read JSON. An integer beyond 64 bits, of which orjson makes a float, is its own digits, as orjson writes them."""
    value = orjson.loads(line)
    return json.loads(line, parse_int=_integer) if _LONG_INTEGER.search(line) else value


def _integer(digits: str) -> int | orjson.Fragment:
    # The length first, for Python refuses to read some thousand digits.
    return int(digits) if len(digits) <= 20 and -(2**63) <= int(digits) < 2**64 else orjson.Fragment(digits)


def _csv_rows(file: IO[bytes], source: Source) -> tuple[list[str], Iterator[_Row]]:
    """Return the head and the rows below it.

    Raises:
        CorpusError: The head cannot be read.
    """
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    # A copy of the descriptor's file object would be closed with the text layer; the owner closes it.
    bytes_ = io.BufferedReader(_Unclosed(file))
    text = io.TextIOWrapper(bytes_, encoding="utf-8-sig", errors="surrogateescape", newline="")
    has_ended = False

    def lines() -> Iterator[str]:
        nonlocal has_ended
        yield from text
        # Behind a row that is complete the reader asks for no line: its quotes are open, and hold all the rest.
        has_ended = True

    reader = csv.reader(lines(), dialect="excel-tab" if source.format is Format.TSV else "excel")
    head = next((cells for cells in reader if any(map(str.strip, cells))), [])
    if any(map(_NOT_UTF8.search, head)):
        raise CorpusError(f"the head of {source.name} is not UTF-8: convert the file, with iconv perhaps")

    def rows() -> Iterator[_Row]:
        first_line = reader.line_num + 1
        for cells in reader:
            if has_ended:
                yield f"a quoted cell begins in line {first_line} and does not end before the file does"
            elif any(map(_NOT_UTF8.search, cells)):
                yield f"line {first_line} is not UTF-8"
            elif any(map(str.strip, cells[len(head) :])):  # behind a comma without quotes, which would be lost
                yield f"line {first_line} has {len(cells)} cells, and the head has {len(head)}"
            elif cells:
                yield {name: cell or None for name, cell in zip(head, cells, strict=False)}
            first_line = reader.line_num + 1

    return head, rows()


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
