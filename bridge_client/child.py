"""A child process that is waited for and signalled without ever meeting another one that has its number.

A number belongs to a process until that is reaped, and a host may reap what is not its own: one that ignores SIGCHLD
does, and one that waits for any child. So nothing is signalled by a number that may be free, where the system has
handles for processes (Linux), and an exit status that somebody else has taken is not made up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading


class Child:
    """A process of ours and its group. Only `wait` reaps it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._reap_lock = threading.Lock()
        self._is_reaped = False
        self._handle: int | None = None
        if sys.platform == "linux":
            try:
                self._handle = os.pidfd_open(popen.pid)
            except ProcessLookupError:  # ended and reaped already
                self._is_reaped = True
                popen.returncode = 0
            except OSError:  # an old kernel, a sandbox, or no descriptor to spare: its number has to do
                pass

    def wait(self) -> int | None:
        """Wait for the end, end what it leaves in its group, and reap it.

        Returns:
            As `Popen.returncode`; None when somebody else has taken the status.
        """
        if sys.platform == "win32":
            self._popen.wait()
            self._is_reaped = True
            return self._popen.returncode
        status = None
        with contextlib.suppress(ChildProcessError):
            if not self._is_reaped and self._await_end():
                # Its children, if it left any: until it is reaped, the group's number is certainly ours.
                self.signal_group(signal.SIGKILL)
            if not self._is_reaped:
                status = self._reap()
        with self._reap_lock:
            self._is_reaped = True
            self._popen.returncode = 0 if status is None else status  # `Popen` must not look for it any more
            self._close_handle()
        return status

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and what it has started, unless it is reaped."""
        with self._reap_lock:
            if self._is_reaped:
                return  # its number may be somebody else's by now
            if sys.platform == "win32":
                self._popen.terminate()
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self._handle is not None:
                    signal.pidfd_send_signal(self._handle, 0)  # fails where somebody else has reaped it
                os.killpg(self.pid, number)

    def forget(self) -> None:
        """Let go of it in a forked child, whose child it is not: no lock, no signal."""
        self._popen.returncode = 0
        self._close_handle()

    def _await_end(self) -> bool:
        """Wait for the end without reaping; False where the system cannot."""
        if hasattr(os, "waitid"):
            os.waitid(*self._id(), os.WEXITED | os.WNOWAIT)
            return True
        if sys.platform == "darwin":  # whose Python has no `waitid` before 3.13
            end = select.kevent(
                self.pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
            )
            try:
                with contextlib.closing(select.kqueue()) as queue:
                    queue.control([end], 1)
            except ProcessLookupError:  # it has ended
                return True
            except OSError:
                return False
            return True
        return False

    def _reap(self) -> int:
        if not hasattr(os, "waitid"):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        result = os.waitid(*self._id(), os.WEXITED)
        assert result is not None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def _id(self) -> tuple[int, int]:
        return (os.P_PID, self.pid) if self._handle is None else (os.P_PIDFD, self._handle)

    def _close_handle(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
