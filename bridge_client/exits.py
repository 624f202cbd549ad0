"""What the end of a worker process means: the closed set of causes, and the report that errors and `stats` carry.

Pure: a status and what we did to the process go in, a cause comes out.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from enum import StrEnum

from embed_worker.protocol import ExitCode


class Cause(StrEnum):
    """Why a worker is gone, or could not be used."""

    ASKED = "asked"  # close() or restart()
    CRASHED = "crashed"
    HUNG = "hung"
    KILLED = "killed"  # by SIGKILL or SIGTERM that was not ours
    OUT_OF_MEMORY = "out_of_memory"
    RECYCLED = "recycled"
    EXITED = "exited"
    BROKE_PROTOCOL = "broke_protocol"
    START_TIMEOUT = "start_timeout"
    NOT_SPAWNED = "not_spawned"  # the system refused for now
    UNUSABLE = "unusable"  # usage, configuration, model, or nothing to execute
    PROTOCOL_MISMATCH = "protocol_mismatch"
    MODEL_CHANGED = "model_changed"

    @property
    def is_permanent(self) -> bool:
        """Whether another start cannot help."""
        return self in (Cause.UNUSABLE, Cause.PROTOCOL_MISMATCH, Cause.MODEL_CHANGED)

    @property
    def may_blame_input(self) -> bool:
        """Whether what was being computed can be the reason; a signal from outside never is."""
        return self in (Cause.CRASHED, Cause.HUNG)


_PERMANENT_STATUSES = (ExitCode.USAGE, ExitCode.UNUSABLE_MODEL, 126, 127)
_CRASH_SIGNALS = frozenset(
    getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE") if hasattr(signal, name)
)
_OUTSIDE_SIGNALS = frozenset(getattr(signal, name) for name in ("SIGKILL", "SIGTERM") if hasattr(signal, name))
# Windows knows no signals. `abort()` ends with 3, NTSTATUS errors are access violations, stack overflows and the like,
# and from outside come Ctrl-C, a logoff, and `TerminateProcess` with the numbers that people pass to it.
_WINDOWS_CRASHES = range(0xC0000000, 0xD0000000)
_WINDOWS_ABORT = 3
_WINDOWS_OUTSIDE = (1, 9, 15, 0xC000013A, 0xC0000142)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """How one worker process ended.

    Attributes:
        status: The exit status; negative for a signal; None when there was no process, or when it would not die.
        stderr_tail: The end of what it wrote to standard error, control characters escaped.
        partial_line_bytes: Length of an answer that had begun and has no end; it was dropped.
        detail: One sentence where the status alone does not tell.
        was_ready: It had served before, or had been ready to.
    """

    cause: Cause
    pid: int | None = None
    status: int | None = None
    argv: tuple[str, ...] = ()
    stderr_tail: str = ""
    partial_line_bytes: int = 0
    detail: str = ""
    was_ready: bool = False

    @property
    def signal_name(self) -> str | None:
        """`SIGSEGV` and the like where a signal ended it."""
        if self.status is None or self.status >= 0:
            return None
        try:
            return signal.Signals(-self.status).name
        except ValueError:
            return f"signal {-self.status}"

    @property
    def may_be_out_of_memory(self) -> bool:
        """Whether memory was short: the worker said so, or the kernel may have killed it."""
        return self.cause is Cause.OUT_OF_MEMORY or (self.cause is Cause.KILLED and self.signal_name == "SIGKILL")

    def describe(self) -> str:
        """Return how it ended, in one clause."""
        how = self.signal_name or ("no exit status" if self.status is None else f"exit status {self.status}")
        parts = [str(self.cause).replace("_", " "), how]
        if self.cause is Cause.KILLED and self.may_be_out_of_memory:
            parts.append("killed by the kernel: out of memory?")
        if self.partial_line_bytes:
            parts.append(f"an answer broke off after {self.partial_line_bytes} bytes")
        if self.detail:
            parts.append(self.detail)
        return ", ".join(parts)


def cause_of(status: int, ours: Cause | None, *, is_windows: bool = sys.platform == "win32") -> Cause:
    """Return why a process ended.

    Args:
        status: As `Popen.returncode`.
        ours: Why we ended it, where we did: it names the cause unless the process ended in its own way before.
        is_windows: Whose statuses they are.
    """
    is_from_outside = status in _WINDOWS_OUTSIDE if is_windows else -status in _OUTSIDE_SIGNALS
    if ours is Cause.ASKED or (ours is not None and is_from_outside):
        return ours
    if status in _PERMANENT_STATUSES:
        return Cause.UNUSABLE
    if is_from_outside:
        return Cause.KILLED
    is_crash = status in _WINDOWS_CRASHES or status == _WINDOWS_ABORT if is_windows else -status in _CRASH_SIGNALS
    if is_crash or status == ExitCode.INTERNAL:
        return Cause.CRASHED
    if status == ExitCode.TRY_AGAIN:
        return Cause.OUT_OF_MEMORY
    if status == ExitCode.RECYCLED:
        return Cause.RECYCLED
    return Cause.EXITED
