"""A real worker process for tests, with every wait bounded."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from embed_worker.machine import describe_machine
from tests.patience import WAIT_S as WAIT_S
from tests.windows_processes import children_on_windows

ROOT = Path(__file__).resolve().parents[2]
TINY_MODEL = ROOT / "tests" / "models" / "bert-mean"


class WorkerProcess:
    """`embed-worker` over pipes: a thread reads all of standard output, another all of standard error."""

    def __init__(
        self,
        *arguments: str,
        model: Path | None = TINY_MODEL,
        env: dict[str, str] | None = None,
        wait_s: float = WAIT_S,  # for a line
    ) -> None:
        chosen = ["--model", str(model)] if model is not None else []
        if sys.platform == "darwin" and "--provider" not in arguments:
            chosen += ["--provider", "cpu"]  # or every worker would compile for CoreML beside the test
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embed_worker", *chosen, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self._wait_s = wait_s
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stderr: list[bytes] = []
        self._threads = [threading.Thread(target=self._read_stdout), threading.Thread(target=self._read_stderr)]
        for thread in self._threads:
            thread.start()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        while chunk := os.read(self.process.stderr.fileno(), 65536):
            self._stderr.append(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        for thread in self._threads:
            thread.join(WAIT_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def send_raw(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, *messages: dict[str, Any]) -> None:
        self.send_raw(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def receive_line(self) -> bytes | None:
        """Return the next line as it was written, or None at the end of output."""
        return self._lines.get(timeout=self._wait_s)

    def receive(self) -> dict[str, Any]:
        line = self.receive_line()
        assert line is not None, f"the worker ended: {self.process.wait(WAIT_S)} {self.stderr}"
        return parse_answer(line)

    def receive_rest(self) -> list[dict[str, Any]]:
        rest = []
        while (line := self.receive_line()) is not None:
            rest.append(parse_answer(line))
        return rest

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.send(message)
        return self.receive()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(WAIT_S)

    @property
    def stderr(self) -> str:
        """What has come so far; all of it after `wait` and the end of output."""
        return b"".join(self._stderr).decode()

    def all_stderr(self) -> str:
        self.wait()
        self._threads[1].join(WAIT_S)
        return self.stderr


def place(source: Path, target: Path) -> None:
    """Put a file or a folder elsewhere under another name: as a link, or as a copy where links need a privilege."""
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def parse_answer(line: bytes) -> dict[str, Any]:
    """Check what every answer must be: one JSON object on one line, id first."""
    assert line.endswith(b"\n")
    answer = json.loads(line)
    assert isinstance(answer, dict)
    assert next(iter(answer)) == "id"
    assert (answer["id"] is None) == ("line" in answer)
    return answer


def run_worker(
    data: bytes, *arguments: str, model: Path | None = TINY_MODEL, env: dict[str, str] | None = None
) -> tuple[int, list[dict[str, Any]], str]:
    """Feed a worker all of its input at once; return its exit status, its answers and its standard error."""
    chosen = ["--model", str(model)] if model is not None else []
    done = subprocess.run(
        [sys.executable, "-m", "embed_worker", *chosen, *arguments],
        input=data,
        capture_output=True,
        cwd=ROOT,
        timeout=WAIT_S,
        env={**os.environ, **(env or {})},
        check=False,
    )
    answers = [parse_answer(line) for line in done.stdout.splitlines(keepends=True)]
    return done.returncode, answers, done.stderr.decode()


def worker_of(pid: int) -> int | None:
    """Return the worker that a process has started, where /proc or Windows tells; None where there is none now."""
    if sys.platform == "win32":
        children = children_on_windows(pid)
        # A virtual environment's python.exe is a launcher, and what it launches is its child.
        return next((worker_of(child) or child for child, name in children if name.startswith("python")), None)
    try:
        numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():  # a child belongs to the thread that started it
            numbers += (task / "children").read_text().split()
    except OSError:
        return None
    for child in numbers:
        try:
            if b"embed_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        except OSError:
            continue
    return None


def lines_of(*messages: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def matrix_of(answer: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read the vectors of an answer in either encoding: (count, dimension) float32."""
    assert answer["status"] == "ok", answer
    shape = (answer["count"], answer["dimension"])
    if "embeddings_base64" in answer:
        return np.frombuffer(base64.b64decode(answer["embeddings_base64"], validate=True), "<f4").reshape(shape)
    return np.array(answer["embeddings"], np.float32).reshape(shape)


def cosines(a: Any, b: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result: np.ndarray[Any, np.dtype[np.float64]] = (a * b).sum(-1) / (
        np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    )
    return result


def tolerance_of(variant: dict[str, Any], kind: str) -> float:
    """Return how far a component of a variant's vectors may be off; the stored bounds are of CPUs that widen float16.

    One that computes in 16 bits is further off: 1.5e-2 on an emulated Neoverse N1, and half as much again is allowed.
    """
    stated = float(variant[kind])
    is_computed = "fp16" in variant["file"] and describe_machine()["float16"] == "computed"
    return max(stated, 2.25e-2) if is_computed else stated
