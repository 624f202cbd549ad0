"""A process that speaks lines, driven with every wait bounded."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Self

_MOST_STDERR = 1 << 20


class Driven:
    """Standard input is written and the other two are read by threads of their own: nothing here can block for long."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it.

        Raises:
            OSError: There is no such program.
        """
        self.process = subprocess.Popen(  # noqa: S603 - what the command line names
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment)
        )
        self._to_write: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stderr: list[bytes] = []
        self._waking, self._wake = os.pipe()
        targets = (self._write_input, self._read_output, self._read_stderr)
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30.0)
        self._to_write.put(None)
        os.close(self._wake)
        # A grandchild may hold the pipes: its share of them is not waited for.
        until = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self._waking)
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()

    def write(self, data: bytes) -> None:
        """Write bytes, sooner or later; a reader that is gone does not matter."""
        self._to_write.put(data)

    def close_input(self) -> None:
        """Close standard input behind what has been written."""
        self._to_write.put(None)

    def close_output(self) -> None:
        """Stop reading standard output, and close it."""
        os.write(self._wake, b"x")
        self._threads[1].join()

    def read_line(self, timeout_s: float) -> bytes | None:
        """Return the next line with its newline, a last piece without one, or None at the end.

        Raises:
            TimeoutError: Nothing has come.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            self._lines.put(None)  # the end stays the end
        return line

    def wait(self, timeout_s: float) -> int:
        """Return the exit status.

        Raises:
            TimeoutError: It lives.
        """
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        self._threads[2].join(1.0)  # so that standard error is complete, unless a grandchild holds it
        return status

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return b"".join(self._stderr).decode("utf-8", "replace")

    def _write_input(self) -> None:
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        with contextlib.suppress(OSError):
            while (data := self._to_write.get()) is not None:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        rest: list[bytes] = []
        while self._is_readable(descriptor) and (chunk := os.read(descriptor, 1 << 18)):
            first, *others = chunk.split(b"\n")
            rest.append(first)
            for piece in others:
                self._lines.put(b"".join(rest) + b"\n")
                rest = [piece]
        if tail := b"".join(rest):
            self._lines.put(tail)
        self._lines.put(None)
        with contextlib.suppress(OSError):
            self.process.stdout.close()

    def _is_readable(self, descriptor: int) -> bool:
        """Wait until there is something to read; False if reading is to stop."""
        if sys.platform == "win32":
            return True
        import select

        ready, _, _ = select.select([descriptor, self._waking], [], [])
        return descriptor in ready and self._waking not in ready

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        kept = 0
        while chunk := os.read(self.process.stderr.fileno(), 1 << 16):
            if kept < _MOST_STDERR:
                self._stderr.append(chunk)
                kept += len(chunk)
