"""What may crash or hang is done in a short-lived child: what the child does, and how it is run.

Compiling can abort the whole process inside Apple's frameworks. A child that does so costs the worker nothing but a
verdict. It is `python -m embed_worker.accelerators.coreml.child JOB`, holds the lock of the cache's entry that it
fills, and ends when its parent does. Its standard output goes nowhere, never to the wire; the parent reads its last
words.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from embed_worker.accelerators.coreml.cache import Entry
from embed_worker.accelerators.coreml.cache_key import compiled_model, read_cache_key, write_with_cache_key
from embed_worker.accelerators.coreml.graph import GRAPH
from embed_worker.accelerators.coreml.static_session import StaticSession
from embed_worker.errors import brief
from embed_worker.inference.ort import SessionFactory, float16_of

PROVIDER = "CoreMLExecutionProvider"

_PASSING_STATUS = 75  # EX_TEMPFAIL of sysexits.h
# Nor does a hang-up, a Ctrl-C or a SIGTERM say anything of the task: somebody wants everything to end.
_PASSING_ENDS = (_PASSING_STATUS, -1, -2, -15)

CHILD_COMMAND = (sys.executable, "-m", "embed_worker.accelerators.coreml.child")


@dataclass(frozen=True, slots=True)
class ChildTask:
    """What a child is to do: a kind of work, the folder of the entry to fill, the file or folder to make it of."""

    kind: str
    entry: str
    source: str
    options: Mapping[str, str] | None = None
    dimensions: Mapping[str, int] | None = None


class ChildFailedError(Exception):
    """The child did not do its task; the message says how it ended.

    Attributes:
        is_lasting: Whether it would end so again: a full disk is no property of the task.
    """

    def __init__(self, message: str, *, is_lasting: bool = True) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class StoppedError(Exception):
    """The worker is ending, which says nothing about the task."""


class ChildRunner:
    """Runs one child at a time, with a limit; `stop`, from another thread, ends it for good."""

    def __init__(self, command: Sequence[str] = CHILD_COMMAND) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def run(self, task: ChildTask, limit_s: float) -> None:
        """Run a task to its end.

        Raises:
            ChildFailedError: It failed, died, or took longer than the limit and was killed.
            StoppedError: `stop` was called.
        """
        with tempfile.TemporaryFile() as errors:
            process = self._start([*self._command, json.dumps(asdict(task))], errors)
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired as error:
                raise ChildFailedError(f"it took longer than {limit_s:g} s") from error
            finally:
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
            if self._is_stopped:
                raise StoppedError
            if process.returncode:
                raise ChildFailedError(
                    _end_of(process.returncode, errors), is_lasting=process.returncode not in _PASSING_ENDS
                )

    def stop(self) -> None:
        """Kill the child, and let no other start."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self, command: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_stopped:
                raise StoppedError
            try:
                self._process = subprocess.Popen(  # noqa: S603 - no shell, and nothing of it comes from a request
                    command,
                    stdin=subprocess.PIPE,  # its end tells the child that the worker is gone
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    cwd=Path(__file__).parents[3],  # where this package is found, however this process found it
                )
            except OSError as error:
                raise ChildFailedError(f"it could not be started: {error.strerror}", is_lasting=False) from error
            return self._process


def _end_of(status: int, errors: IO[bytes]) -> str:
    """Return how a child ended, with its last words."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    lines = errors.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    try:
        how = f"it died of {signal.Signals(-status).name}"
    except ValueError:
        how = f"it ended with status {status}"
    return f"{how}: {last[:300]}"


# In the child -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, factory: SessionFactory | None = None) -> int:
    """Do one task; return the exit status."""
    (task,) = sys.argv[1:] if argv is None else argv
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        perform(ChildTask(**json.loads(task)), factory)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reads it in the last line
        sys.stderr.write(f"\n{type(error).__name__}: {brief(error)}\n")
        return _PASSING_STATUS if isinstance(error, OSError | MemoryError) else 1
    return 0


def _end_with_parent() -> None:
    # Not through `sys.stdin`, whose lock a thread must not hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def perform(task: ChildTask, factory: SessionFactory | None = None) -> None:
    """Fill an entry under its lock, unless somebody else has done it meanwhile.

    Args:
        task: What with.
        factory: Stands for `onnxruntime.InferenceSession`.

    Raises:
        Exception: Whatever was in the way; the entry is not complete then.
    """
    entry = Entry(Path(task.entry))
    with entry.locked(wait=True):
        if entry.is_complete:
            return
        entry.remove()
        entry.folder.mkdir(parents=True)
        match task.kind:
            case "compile":
                _compile(task, factory)
            case "float16":
                write_with_cache_key(float16_of(Path(task.source)), entry.folder / GRAPH)
            case "export":
                _export(task)
            case _:
                raise ValueError(f"no task of the kind {task.kind!r}")
        entry.mark_complete()


def _compile(task: ChildTask, factory: SessionFactory | None) -> None:
    """Open and run a model twice: the first time compiles it, the second takes it from the cache as the worker will."""
    for _ in range(2):
        session = StaticSession(
            Path(task.source),
            provider=PROVIDER,
            options=task.options or {},
            dimensions=task.dimensions or {},
            factory=factory,
        )
        session.run({name: _constant(name, shape) for name, shape in session.inputs.items()})
        session.close()
    # A provider that cannot make its folder compiles all the same, and would do so again in the worker.
    key = read_cache_key(Path(task.source))
    if key is not None and not compiled_model(Path(task.entry), key).exists():
        raise FileNotFoundError(f"the provider has kept nothing of what it compiled in {task.entry}")


def _constant(name: str, shape: tuple[int | str | None, ...]) -> Any:
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) != len(shape):
        raise ValueError(f"the input {name} has a dimension that is not fixed: {shape}")
    return np.full(sizes, 1 / sizes[-1], np.float32)


def _export(task: ChildTask) -> None:
    """Make the dedicated graph of a model folder."""
    from embed_worker.accelerators.coreml.graph_export import (
        export_for_coreml,  # with the writers of graphs, in a child
    )

    export_for_coreml(Path(task.source), output=Path(task.entry))


if __name__ == "__main__":
    sys.exit(main())
