"""The two descriptors of the wire: claimed for good, read in bounded lines, written one whole line at a time.

It knows nothing of JSON. Nothing else in the package reads descriptor 0 or writes descriptor 1.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)

_READ_BYTES = 256 * 1024
_NO_ROOM = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
_BOM = b"\xef\xbb\xbf"


class WireError(Exception):
    """The protocol's descriptors are missing or failed; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Wire:
    """The claimed descriptors: requests are read from `reading`, responses are written to `writing`."""

    reading: int
    writing: int


def claim() -> Wire:
    """Take the protocol's descriptors away from everybody else in the process, once, for its whole life.

    Afterwards descriptor 0 is the null device, descriptor 1 is standard error (the null device where that is closed),
    and the wire lives on private descriptors that children do not inherit. Call it before anything heavy is imported:
    native libraries print to descriptor 1 at import.

    Raises:
        WireError: Standard input or standard output was closed when the process started, or no descriptor is left.
    """
    # An interpreter that starts with a closed descriptor leaves the stream None; the number itself may be taken by now.
    for name, stream, descriptor in (("input", sys.stdin, 0), ("output", sys.stdout, 1)):
        if stream is None or not _is_open(descriptor):
            raise WireError(f"standard {name} is closed: the worker speaks over it")
    if not _is_open(2):
        _point(2, os.devnull, os.O_WRONLY)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    wire = Wire(reading=_private_copy(0), writing=_private_copy(1))
    # On Windows the C runtime's dup2 moves the process's standard handles along with descriptors 0 to 2.
    os.dup2(2, 1)
    _point(0, os.devnull, os.O_RDONLY)
    sys.stdout = sys.stderr  # its buffer would otherwise be lost at the quick exit
    return wire


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _private_copy(descriptor: int) -> int:
    if sys.platform == "win32":
        import msvcrt

        copy = os.dup(descriptor)
        msvcrt.setmode(copy, os.O_BINARY)
        return copy
    import fcntl

    try:
        # Above the numbers that a careless library or a shell might address, and closed in children.
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EMFILE):  # the former where no number as high is allowed
            raise
        import resource

        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise WireError(f"no file descriptor is left for the wire: ulimit -n allows {allowed}") from error


def _point(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)


# Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline.

    Attributes:
        number: 1-based; blank and over-long lines count too.
        data: None for a line over the limit.
        completed_s: When its newline was read, on the reader's clock.
    """

    number: int
    data: bytes | None
    completed_s: float | None = field(default=None, compare=False)

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing but white space."""
        return self.data is not None and (not self.data or self.data.isspace())


class LineSplitter:
    """Cut a byte stream into lines, in time linear in its length however it is cut into pieces.

    An over-long line is dropped as it arrives, so that no more than `max_line_bytes` and one piece are held.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []  # of the line that has no newline yet
        self._length = 0  # of that line so far, dropped bytes included
        self._number = 1

    def feed(self, chunk: bytes, now: float | None = None) -> list[Line]:
        """Take the next piece of the stream, read at `now`; return the lines that it completes, in order."""
        *ends, rest = chunk.split(b"\n")
        lines = [self._complete(end, now) for end in ends]
        if rest:
            self._length += len(rest)
            self._pieces.append(rest)
            if self._length > self._max_line_bytes + len(_BOM):
                self._pieces.clear()
        return lines

    def finish(self) -> list[Line]:
        """End the stream; return the last line where it had no newline."""
        return [self._complete(b"", None)] if self._length else []

    def _complete(self, end: bytes, now: float | None) -> Line:
        is_whole = self._length <= self._max_line_bytes + len(_BOM)
        data = b"".join((*self._pieces, end)) if self._pieces else end
        if self._number == 1:
            data = data.removeprefix(_BOM)  # it is not part of the line
        fits = is_whole and len(data) <= self._max_line_bytes
        line = Line(self._number, data if fits else None, now)
        self._pieces.clear()
        self._length = 0
        self._number += 1
        return line


class LineReader:
    """The lines of a descriptor until its end, one after the other; the last one needs no newline.

    Attributes:
        ready: Lines that have been read and not been asked for.
    """

    def __init__(self, descriptor: int, max_line_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._splitter = LineSplitter(max_line_bytes)
        self.ready: deque[Line] = deque()
        self._is_over = False

    def __iter__(self) -> LineReader:
        """Return itself."""
        return self

    def __next__(self) -> Line:
        """Return the next line.

        Raises:
            WireError: The descriptor could not be read, which is not an end of input.
        """
        while not self.ready:
            if self._is_over:
                raise StopIteration
            if chunk := self._read():
                self.ready.extend(self._splitter.feed(chunk, self._clock()))
            else:
                self._is_over = True
                self.ready.extend(self._splitter.finish())
        return self.ready.popleft()

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:  # a host may have made its side of a socket or terminal non-blocking, and so ours
                _wait_until_ready(self._descriptor, for_writing=False)
            except OSError as error:
                if sys.platform == "win32" and error.errno == errno.EPIPE:
                    return b""  # how Windows says that the writer has closed its end
                raise WireError(f"standard input cannot be read: {error.strerror or error}") from error


def _wait_until_ready(descriptor: int, *, for_writing: bool) -> None:
    """Sleep until a non-blocking descriptor can be used, or a second has passed."""
    if sys.platform == "win32":
        threading.Event().wait(0.001)  # select() knows only sockets there
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if for_writing else select.POLLIN)
    poll.poll(1000)


# Writing ----------------------------------------------------------------------------------------------------------


class LineWriter:
    """Write whole lines from any thread, never interleaved.

    Once a write fails nobody reads any more, or nothing more fits: later lines are dropped, and `on_broken` is called
    once, from the thread that found out.

    Attributes:
        turn: Whoever writes holds it.
    """

    def __init__(self, descriptor: int, on_broken: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_broken = on_broken
        self.turn = threading.Lock()
        self._is_broken = False

    def write(self, line: bytes) -> None:
        """Write one line, its newline included; the caller has the turn."""
        if self._is_broken:
            return
        try:
            self._write_all(line)
        except OSError as error:
            self._is_broken = True
            if error.errno in _NO_ROOM:  # who stops reading knows that
                _log.error("writing ended reason=%s", error.strerror or error)
            self._on_broken()

    def try_acquire(self, timeout_s: float) -> bool:
        """Keep everybody else from writing from now on, for ever; False if a write is stuck for that long."""
        return self.turn.acquire(timeout=timeout_s)

    def is_abandoned(self) -> bool:
        """Whether nobody can read what would be written, as far as the system tells without a write."""
        if sys.platform == "win32":
            return self._is_broken
        poll = select.poll()
        poll.register(self._descriptor, 0)
        with contextlib.suppress(OSError):
            # Not POLLNVAL: macOS answers that for the null device.
            return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
        return self._is_broken

    def _write_all(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                _wait_until_ready(self._descriptor, for_writing=True)
