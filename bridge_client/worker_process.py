"""One worker process and the four threads around it: dropped whole when it dies, so that nothing late counts.

*writer*: queue → standard input. *reader*: standard output → lines. *stderr*: drained in chunks, its end kept.
*waiter*: the only one that reaps. It knows nothing of requests; whoever owns it does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Protocol

from bridge_client.child import Child
from bridge_client.exits import Cause, ExitReport, cause_of

_READ_BYTES = 256 * 1024
_STDERR_KEPT_BYTES = 64 * 1024
_STDERR_TOLD_BYTES = 8 * 1024
_STDERR_LINE_BYTES = 4 * 1024  # longer ones are logged in parts: a progress bar never ends its line
_MAX_ANSWER_BYTES = 256 * 2**20
_STOLEN = "its exit status is lost: the host ignores SIGCHLD, or waits for any child"
_PIPE_GRACE_S = 0.25  # a grandchild may hold the pipes of a dead worker open


class Owner(Protocol):
    """Who hears what happens to a process, on the process's own threads."""

    def on_line(self, process: WorkerProcess, line: bytes) -> None:
        """Take one complete line of standard output."""

    def on_invalid_output(self, process: WorkerProcess, why: str, error: BaseException | None = None) -> None:
        """Hear that standard output cannot be trusted any more, or that it has met a bug."""

    def on_pipe_lost(self, process: WorkerProcess) -> None:
        """Hear that standard input or output is gone; usually the process is about to follow."""

    def on_gone(self, process: WorkerProcess, report: ExitReport) -> None:
        """Hear, last of all and once, that the process is dead and reaped."""

    def on_stderr(self, process: WorkerProcess, text: str) -> None:
        """Take a line, or a part of a long one, of standard error."""


class LineBuffer:
    """Cut a stream into lines in time linear in its length. Only a newline completes a line."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.partial_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next piece of the stream; return the lines that it completes, blank ones left out."""
        first, *others = chunk.split(b"\n")
        lines = []
        self._pieces.append(first)
        self.partial_bytes += len(first)
        for piece in others:
            line = b"".join(self._pieces)
            if line.strip():
                lines.append(line)
            self._pieces = [piece]
            self.partial_bytes = len(piece)
        return lines


class WorkerProcess:
    """A running worker. `spawn` makes one; `owner.on_gone` is the last that is heard of it."""

    def __init__(self, popen: subprocess.Popen[bytes], owner: Owner, number: int) -> None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.number = number
        self.pid = popen.pid
        self.worker_pid = popen.pid  # another one where what was started is a launcher of the worker
        self._argv = popen.args
        self._child = Child(popen)
        self._stdin: IO[bytes] = popen.stdin
        self._stdout: IO[bytes] = popen.stdout
        self._stderr: IO[bytes] = popen.stderr
        self._owner = owner
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued = self._written = 0  # lines; each has one thread that counts it
        self._stdin_lock = threading.Lock()  # held to close it, and for the writes that cannot block
        self._room = _poll_for_writing(popen.stdin)
        self._ours: Cause | None = None
        self._detail = ""
        self._stderr_kept = bytearray()
        self._lines = LineBuffer()
        self._threads = {
            name: threading.Thread(target=target, name=f"bridge-{name}-{number}", daemon=True)
            for name, target in (
                ("stderr", self._drain_stderr),
                ("reader", self._read),
                ("writer", self._write),
                ("waiter", self._wait),
            )
        }

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        owner: Owner,
        number: int,
    ) -> WorkerProcess:
        """Start a worker in a process group of its own, where the terminal's Ctrl-C does not reach it.

        Raises:
            OSError: The system could not start it.
        """
        popen = subprocess.Popen(  # noqa: S603 - the host's own command, and no shell
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            close_fds=True,
            cwd=cwd,
            env=dict(environment),
            start_new_session=os.name == "posix",
            creationflags=_creation_flags(),
        )
        return cls(popen, owner, number)

    def begin(self) -> None:
        """Start the threads; from now on its owner hears of it, and only from now on.

        Raises:
            OSError: There is no thread to spare. The process is ended and reaped, and its owner hears nothing.
        """
        try:
            for thread in self._threads.values():
                thread.start()
        except RuntimeError as error:  # the interpreter is shutting down, or there are too many threads
            self._child.signal_group(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            self._child.wait()
            self._outbox.put(None)
            self._close_pipes()
            raise OSError(f"no thread for the worker's pipes: {error}") from error

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line."""
        return tuple(map(str, self._argv)) if isinstance(self._argv, (list, tuple)) else ()

    def learn_pid(self, told: object) -> None:
        """Take the number that the worker tells of itself, unless it belongs to another machine or namespace."""
        if type(told) is not int or told < 1:
            return
        if sys.platform != "win32":
            try:
                if os.getsid(told) != self.pid:
                    return
            except (OSError, OverflowError):  # nobody's number, or none of this system
                return
        self.worker_pid = told

    def send(self, line: bytes) -> None:
        """Write or queue one line, its newline included; never blocks. One caller at a time."""
        if not self._write_at_once(line):
            self._queued += 1
            self._outbox.put(line)

    def _write_at_once(self, line: bytes) -> bool:
        """Spare a short line the way over the writer's thread, where the system promises that it cannot block."""
        if self._queued != self._written or self._room is None or len(line) > select.PIPE_BUF:
            return False
        if _would_die_of_a_broken_pipe():
            return False
        try:
            with self._stdin_lock:
                if self._stdin.closed or self._room.poll(0) != [(self._stdin.fileno(), select.POLLOUT)]:
                    return False
                return os.write(self._stdin.fileno(), line) == len(line)  # up to PIPE_BUF bytes: all or nothing
        except OSError:
            return False  # the writer will meet the same error, and tell

    # Ending

    def end_input(self) -> None:
        """Close standard input once everything queued is written: the worker's sign to finish and leave."""
        self._ours = self._ours or Cause.ASKED
        self._outbox.put(None)

    def terminate(self) -> None:
        """Ask for an end, the whole group."""
        self._child.signal_group(signal.SIGTERM)

    def kill(self, cause: Cause, detail: str = "") -> None:
        """End the whole group; `cause` will stand in the report unless the worker ended in its own way before."""
        if self._ours is None:
            self._ours, self._detail = cause, detail
        self._child.signal_group(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)

    def forget_in_child(self) -> None:
        """Let go of the pipes in a forked child: no flush, no lock, no signal."""
        self._child.forget()
        self._close_pipes()

    def report(self, status: int | None, ours: Cause | None = None, detail: str = "") -> ExitReport:
        """Describe the end; without a status, of a process that would not die, or whose status is lost."""
        cause = ours if ours is not None else self._ours
        return ExitReport(
            cause=cause_of(status, cause) if status is not None else (cause or Cause.EXITED),
            pid=self.pid,
            status=status,
            argv=self.argv,
            stderr_tail=printable(_plain_lines(self._stderr_kept[-_STDERR_TOLD_BYTES:]).decode("utf-8", "replace")),
            partial_line_bytes=self._lines.partial_bytes,
            detail=self._detail or detail,
        )

    def _close_pipes(self) -> None:
        for pipe in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()

    # Threads

    def _write(self) -> None:
        if sys.platform != "win32":  # a dead worker must not end a host that does not ignore it: EPIPE tells enough
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGPIPE,))
        try:
            while (line := self._outbox.get()) is not None:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._stdin.fileno(), rest) :]
                self._written += 1
        except (OSError, ValueError):
            self._owner.on_pipe_lost(self)
        finally:
            with self._stdin_lock, contextlib.suppress(OSError):
                self._stdin.close()

    def _read(self) -> None:
        for chunk in _chunks(self._stdout):
            for line in self._lines.feed(chunk):
                try:
                    self._owner.on_line(self, line)
                except BaseException as error:  # noqa: BLE001 - whoever waits for this line must not wait for ever
                    self._owner.on_invalid_output(self, f"{type(error).__name__} while an answer was read", error)
            if self._lines.partial_bytes > _MAX_ANSWER_BYTES:
                self._owner.on_invalid_output(self, f"a line of more than {_MAX_ANSWER_BYTES} bytes")
                break
        self._owner.on_pipe_lost(self)

    def _drain_stderr(self) -> None:
        rest = b""
        for chunk in _chunks(self._stderr):
            self._stderr_kept += chunk
            del self._stderr_kept[:-_STDERR_KEPT_BYTES]
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
            if len(rest) > _STDERR_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            self._pass_on(lines)
        self._pass_on([rest])  # the last words of a process often have no newline

    def _pass_on(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            for start in range(0, len(line), _STDERR_LINE_BYTES):
                part = line[start : start + _STDERR_LINE_BYTES]
                self._owner.on_stderr(self, printable(part.decode("utf-8", "replace")))

    def _wait(self) -> None:
        status = self._child.wait()
        self._outbox.put(None)
        # What it had said before it died counts; but the pipes may be held open by somebody else.
        for name in ("reader", "stderr", "writer"):
            self._threads[name].join(_PIPE_GRACE_S)
        self._owner.on_gone(self, self.report(status, detail="" if status is not None else _STOLEN))


def _chunks(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield raw reads until the end, which an error is, too; then close the pipe."""
    while True:
        try:
            chunk = os.read(pipe.fileno(), _READ_BYTES)
        except (OSError, ValueError):
            chunk = b""
        if not chunk:
            with contextlib.suppress(OSError):
                pipe.close()
            return
        yield chunk


def _poll_for_writing(pipe: IO[bytes]) -> select.poll | None:
    if sys.platform == "win32":
        return None
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    return poll


def _would_die_of_a_broken_pipe() -> bool:
    """Whether this host has given SIGPIPE its default back, as programs for the shell do; Python ignores it."""
    return sys.platform != "win32" and signal.getsignal(signal.SIGPIPE) in (signal.SIG_DFL, None)


def _plain_lines(written: bytearray) -> bytes:
    """End lines as everywhere but on Windows; a progress bar's return to the start of its line ends one, too."""
    return re.sub(rb"\r+\n?", b"\n", written)


def printable(text: str) -> str:
    """Escape what could act on a terminal or forge a log line; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text).strip("\n")


def one_line(text: str) -> str:
    """Escape newlines, too: what is said of a worker is one line of the host's log."""
    return printable(text).replace("\n", "\\n")


def _creation_flags() -> int:
    if sys.platform == "win32":
        return subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    return 0
