"""A real worker over its pipe, for the tools that measure what a host gets. One question at a time, every wait bounded.

It imports nothing of `bridge_client`: that is for hosts, and a tool has nothing to keep alive.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import embed_worker
from embed_worker import protocol
from embed_worker.protocol import ErrorCode, ExitCode
from embed_worker.tools.model_options import folder_arguments
from embed_worker.tools.quality import Embedded

START_TIMEOUT_S = 300.0  # CoreML may compile for minutes
ANSWER_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 10.0
_KEPT_STDERR_BYTES = 4096


# What a tool ends with that cannot go on after an answer with this code.
_STATUS_OF: Mapping[str, int] = {
    ErrorCode.MODEL_LOAD_FAILED: ExitCode.UNUSABLE_MODEL,
    ErrorCode.MODEL_NOT_FOUND: ExitCode.UNUSABLE_MODEL,
    ErrorCode.OUT_OF_MEMORY: ExitCode.TRY_AGAIN,
}


# What a worker ends with on purpose, and without having answered.
_OWN_STATUSES = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.PIPE_FAILED,
        ExitCode.TRY_AGAIN,
        ExitCode.UNUSABLE_MODEL,
        ExitCode.RECYCLED,
        ExitCode.INTERRUPTED,
    }
)


def passed_on(status: int) -> int:
    """Return what a tool ends with whose worker has ended with a status, as `Popen.returncode`.

    A death says nothing of what the own statuses of a tool say: on Windows abort() ends with 3, and a kill with any.
    """
    return status if status in _OWN_STATUSES else ExitCode.INTERNAL


class WorkerError(Exception):
    """The worker did not do what was asked; the message is one sentence.

    Attributes:
        exit_status: What a tool that cannot go on ends with.
        code: Of its answer, where it was one.
    """

    def __init__(self, message: str, *, exit_status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.code = code


def worker_arguments(args: argparse.Namespace, folder: Path) -> list[str]:
    """Write the options of a tool, as `add_model_arguments` declares them, as those of the worker."""
    return ["--model", str(folder), *folder_arguments(args)]


class WorkerProcess:
    """A worker that has loaded its model. Use it as a context manager.

    Attributes:
        info: What it says of itself, its model and its provider.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Spawn it and wait until it is ready.

        Raises:
            WorkerError: The model cannot be used, or the worker ended.
        """
        # -P: a file named numpy.py in the working directory is not the worker's numpy.
        command = [sys.executable, "-P", "-m", "embed_worker", "serve", "--supervised", *arguments]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and package
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(os.environ),
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._stderr = b""
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_lines, self._read_stderr)]
        for thread in self._threads:
            thread.start()
        self._asked = 0
        try:
            self.info = self.ask(protocol.Info(), timeout_s=START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def embed(self, texts: Sequence[str], **request: Any) -> Embedded:
        """Embed some texts in one request, with members such as `prompt_name`.

        Raises:
            WorkerError: It says no, or ended.
        """
        members = self.ask(self.request(texts, **request))
        dimension = int(members["dimension"])
        try:
            matrix = protocol.decode_matrix(members, len(texts), dimension)
        except protocol.ProtocolError as error:
            raise WorkerError(f"the worker gave {error}", exit_status=ExitCode.INTERNAL) from error
        return Embedded(
            vectors=np.frombuffer(matrix, "<f4").reshape(len(texts), dimension),
            tokens=tuple(members["tokens"]),
            truncated=tuple(members["truncated"]),
        )

    @staticmethod
    def request(texts: Sequence[str], **request: Any) -> protocol.Embed:
        """Ask for vectors as a host does that wants them fast."""
        return protocol.Embed(inputs=list(texts), encoding_format=protocol.EncodingFormat.BASE64, **request)

    def time_s(self, texts: Sequence[str]) -> float:
        """Measure from the first byte of a request to the last of its answer, in seconds.

        Raises:
            WorkerError: It says no, or ended.
        """
        line = protocol.encode_request(0, self.request(texts))
        started = time.perf_counter()
        self._write(line)
        answer = self._read(ANSWER_TIMEOUT_S)
        took_s = time.perf_counter() - started
        self._members(answer)
        return took_s

    def ask(self, request: protocol.Request, *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Put a question and return the members of its answer.

        Raises:
            WorkerError: It says no, ended, or takes too long.
        """
        self._asked += 1
        self._write(protocol.encode_request(self._asked, request))
        return self._members(self._read(timeout_s))

    def close(self) -> None:
        """End the process and wait for it: by the end of its input, or else by force."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_TIMEOUT_S)
        for thread in self._threads:
            thread.join(_END_TIMEOUT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, and reading tells how
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _read(self, timeout_s: float) -> bytes:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            message = f"the worker did not answer within {timeout_s:.0f} s"
            raise WorkerError(message, exit_status=ExitCode.INTERNAL) from None
        if line:
            return line
        try:
            status = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # it has closed its output, and stays
            self._process.kill()
            status = self._process.wait(_END_TIMEOUT_S)
        self._threads[1].join(_END_TIMEOUT_S)
        last = self._stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise WorkerError(last or f"the worker ended with status {status}", exit_status=passed_on(status))

    def _members(self, line: bytes) -> dict[str, Any]:
        try:
            response = protocol.decode_response(line)
        except protocol.ProtocolError as error:
            raise WorkerError(f"the worker gave {error}", exit_status=ExitCode.INTERNAL) from error
        match response:
            case protocol.Success(members=members):
                return members
            case protocol.Failure(code=code, message=message):
                raise WorkerError(message, exit_status=_STATUS_OF.get(code, ExitCode.INTERNAL), code=code)

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _read_stderr(self) -> None:
        """Keep the end of what it says, and never let it wait for a reader."""
        assert self._process.stderr is not None
        while chunk := os.read(self._process.stderr.fileno(), 65536):
            self._stderr = (self._stderr + chunk)[-_KEPT_STDERR_BYTES:]


def _environment(host: Mapping[str, str]) -> dict[str, str]:
    """Let the worker find this package also where it is not installed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(embed_worker.__file__)))
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(host)
    return dict(host) | {"PYTHONPATH": os.pathsep.join(filter(None, (root, host.get("PYTHONPATH"))))}
