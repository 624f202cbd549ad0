"""Lines out of bytes however they are cut, whole lines from many threads, and what claiming the descriptors decides."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.serving import stdio
from embed_worker.serving.stdio import Line, LineReader, LineSplitter, LineWriter, WireError, claim
from tests.patience import WAIT_S

LIMIT = 10
BOM = b"\xef\xbb\xbf"

PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
STREAMS = st.lists(
    st.sampled_from([b"\n", b"a", b"\r", BOM, BOM[:1], b"0123456789", b"x" * 30, b" ", b"\n\n"]), max_size=20
).map(b"".join)


def naive_lines(stream: bytes) -> list[tuple[int, bytes | None]]:
    """Cut a whole stream at once."""
    pieces = stream.removeprefix(BOM).split(b"\n")
    has_bom = stream.startswith(BOM)
    if not pieces[-1] and not (has_bom and len(pieces) == 1):
        pieces.pop()
    return [(number, piece if len(piece) <= LIMIT else None) for number, piece in enumerate(pieces, 1)]


def cut(stream: bytes, places: list[int]) -> Iterator[bytes]:
    bounds = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    for start, end in itertools.pairwise(bounds):
        yield stream[start:end]


def split(chunks: Iterator[bytes], limit: int = LIMIT) -> list[tuple[int, bytes | None]]:
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()
    return [(line.number, line.data) for line in lines]


@PROPERTY
@given(STREAMS, st.lists(st.integers(0, 1000), max_size=30))
def test_the_lines_are_the_same_however_the_stream_is_cut(stream: bytes, places: list[int]) -> None:
    assert split(cut(stream, places)) == naive_lines(stream)


@PROPERTY
@given(STREAMS)
def test_the_lines_are_the_same_byte_by_byte(stream: bytes) -> None:
    assert split(stream[place : place + 1] for place in range(len(stream))) == naive_lines(stream)


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"", []),
        (b"a", [(1, b"a")]),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\n\n\nb\n", [(1, b"a\r"), (2, b""), (3, b""), (4, b"b")]),
        (BOM + b"a\n" + BOM + b"b\n", [(1, b"a"), (2, BOM + b"b")]),
        (b"\n" + BOM, [(1, b""), (2, BOM)]),
        (BOM + b"0123456789\n", [(1, b"0123456789")]),
        (b"0123456789+\n", [(1, None)]),
        (b"0123456789+++\na\n", [(1, None), (2, b"a")]),
        (BOM + b"0123456789+\na", [(1, None), (2, b"a")]),
        (b"a\n0123456789++", [(1, b"a"), (2, None)]),
    ],
)
def test_lines_are_numbered_bounded_and_without_a_byte_order_mark(
    stream: bytes, lines: list[tuple[int, bytes | None]]
) -> None:
    assert split(iter([stream])) == lines


def test_an_over_long_line_is_dropped_as_it_arrives() -> None:
    splitter = LineSplitter(1000)
    for _ in range(500):
        assert splitter.feed(b"x" * 100) == []
        assert sum(map(len, splitter._pieces)) <= 1000 + 100
    assert splitter._pieces == []
    assert splitter.feed(b"y\nz\n") == [Line(1, None), Line(2, b"z")]


def test_blank_lines_are_those_of_white_space_and_never_over_long_ones() -> None:
    blank = [Line(1, data).is_blank for data in (b"", b" \t\r", b"a", None)]
    assert blank == [True, True, False, False]


# Descriptors


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(descriptor)


def test_a_descriptor_is_read_to_its_end_and_the_last_line_needs_no_newline(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"a\nb\nc")
    os.close(writing)
    assert [line.data for line in LineReader(reading, LIMIT)] == [b"a", b"b", b"c"]


def test_a_read_error_is_no_end_of_input(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    with pytest.raises(WireError, match="standard input cannot be read"):
        list(LineReader(writing, LIMIT))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows pipes are always blocking")
def test_a_non_blocking_descriptor_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(reading, False)
    lines = LineReader(reading, LIMIT)
    found: list[Line] = []
    thread = threading.Thread(target=lambda: found.append(next(lines)))
    thread.start()
    os.write(writing, b"a\n")
    thread.join(WAIT_S)
    assert found == [Line(1, b"a")]


def test_a_broken_pipe_on_windows_is_the_end_of_input(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    def broken(*_: object) -> bytes:
        raise BrokenPipeError(32, "The pipe has been ended")

    monkeypatch.setattr(os, "read", broken)
    monkeypatch.setattr(sys, "platform", "win32")
    assert list(LineReader(pipe[0], LIMIT)) == []
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(WireError):
        list(LineReader(pipe[0], LIMIT))


# Writing


def test_lines_of_many_threads_are_never_interleaved(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing, lambda: None)
    letters = "abcd"

    def write(letter: str) -> None:
        for length in range(1, 200):
            with writer.turn:
                writer.write((letter * length * 50 + "\n").encode())

    threads = [threading.Thread(target=write, args=(letter,)) for letter in letters]
    for thread in threads:
        thread.start()
    with os.fdopen(os.dup(reading), "rb") as lines:
        seen = list(itertools.islice(lines, 199 * len(letters)))
    for thread in threads:
        thread.join(WAIT_S)
    assert all(len(set(line)) == 2 for line in seen)
    for letter in letters:
        of_letter = [len(line) - 1 for line in seen if line.startswith(letter.encode())]
        assert of_letter == [length * 50 for length in range(1, 200)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows pipes are always blocking")
def test_a_non_blocking_descriptor_takes_a_long_line_whole(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    line = b"x" * 500_000 + b"\n"
    thread = threading.Thread(target=LineWriter(writing, lambda: None).write, args=(line,))
    thread.start()
    with os.fdopen(os.dup(reading), "rb") as lines:
        assert lines.readline() == line
    thread.join(WAIT_S)


def test_after_a_failed_write_nothing_is_written_and_one_is_told_once() -> None:
    events: list[str] = []
    reading, writing = os.pipe()
    writer = LineWriter(writing, lambda: events.append("broken"))
    writer.write(b"a\n")
    assert os.read(reading, 100) == b"a\n"
    os.close(reading)
    writer.write(b"b\n")
    writer.write(b"c\n")
    assert writer.is_abandoned()
    os.close(writing)
    assert events == ["broken"]


@pytest.mark.skipif(sys.platform == "win32", reason="poll")
def test_nobody_reading_is_noticed_without_a_write() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, lambda: None)
    assert not writer.is_abandoned()
    os.close(reading)
    assert writer.is_abandoned()
    os.close(writing)


def test_a_file_and_the_null_device_are_never_abandoned(tmp_path: Any) -> None:
    for path in (tmp_path / "out", os.devnull):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        assert not LineWriter(descriptor, lambda: None).is_abandoned()
        os.close(descriptor)


def test_where_the_system_does_not_tell_a_failed_write_does(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing, lambda: None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert not writer.is_abandoned()
    writer.write(b"a\n")
    assert writer.is_abandoned()
    os.close(writing)


def test_after_the_writer_is_taken_nothing_is_written(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing, lambda: None)
    assert writer.try_acquire(0.1)
    assert not writer.try_acquire(0.01)

    def write_late() -> None:
        with writer.turn:
            writer.write(b"late\n")

    threading.Thread(target=write_late, daemon=True).start()
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 10)


# Claiming. The real thing is tested with real processes; here is what it decides.


class Descriptors:
    """A process's descriptor table: numbers and what they mean."""

    def __init__(self, **table: str) -> None:
        self.table = {int(number.removeprefix("fd")): meaning for number, meaning in table.items()}
        self.private: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stdio, "_is_open", lambda number: number in self.table)
        monkeypatch.setattr(stdio, "_private_copy", self.private_copy)
        monkeypatch.setattr(stdio, "_point", lambda number, path, flags: self.table.update({number: path}))
        monkeypatch.setattr(os, "dup2", lambda source, target: self.table.update({target: self.table[source]}))
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            stream = object() if number in self.table else None
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(os, "fdopen", lambda *_, **__: "a stream on descriptor 2")

    def private_copy(self, number: int) -> int:
        copy = 10 + len(self.private)
        self.private.append(number)
        self.table[copy] = self.table[number]
        return copy


def test_claiming_moves_the_wire_away_and_points_the_rest_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Descriptors(fd0="requests", fd1="answers", fd2="logs")
    with monkeypatch.context() as patch:
        process.install(patch)
        wire = claim()
        assert sys.stdout is sys.stderr
    assert process.table == {0: os.devnull, 1: "logs", 2: "logs", wire.reading: "requests", wire.writing: "answers"}


def test_claiming_without_standard_error_sends_what_others_print_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Descriptors(fd0="requests", fd1="answers")
    with monkeypatch.context() as patch:
        process.install(patch)
        wire = claim()
    assert (process.table[1], process.table[2]) == (os.devnull, os.devnull)
    assert process.table[wire.writing] == "answers"


@pytest.mark.parametrize(("missing", "word"), [(0, "standard input is closed"), (1, "standard output is closed")])
def test_claiming_a_closed_descriptor_is_refused(monkeypatch: pytest.MonkeyPatch, missing: int, word: str) -> None:
    table = {f"fd{number}": "open" for number in range(3) if number != missing}
    process = Descriptors(**table)
    with monkeypatch.context() as patch:
        process.install(patch)
        with pytest.raises(WireError, match=word):
            claim()
        process.table[missing] = "a file that took the number"
        with pytest.raises(WireError, match=word):
            claim()


def test_private_copies_are_high_and_not_inherited(pipe: tuple[int, int]) -> None:
    if sys.platform == "win32":
        pytest.skip("descriptor numbers mean nothing on Windows")
    copy = stdio._private_copy(pipe[0])
    assert copy >= 10
    assert not os.get_inheritable(copy)
    os.close(copy)
    assert not stdio._is_open(copy)


def test_pointing_a_descriptor_takes_exactly_that_number(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"x")
    stdio._point(reading, os.devnull, os.O_RDONLY)
    assert os.read(reading, 1) == b""
    os.close(reading)
    lowest = os.open(__file__, os.O_RDONLY)
    os.close(lowest)
    stdio._point(lowest, os.devnull, os.O_RDONLY)
    assert stdio._is_open(lowest)
    os.close(lowest)
