"""One transcript, played to one process."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_client.testing.conformance.checks import (
    BrokenRule,
    check_answer,
    check_outcome,
    check_sent,
    read_object,
    read_sent,
)
from bridge_client.testing.conformance.patterns import Memory, mismatch, shortened
from bridge_client.testing.conformance.process import Driven
from bridge_client.testing.conformance.transcript import Side, Step, Transcript
from bridge_client.testing.processes import is_there, send_signal, status_of

_INSTALLED = Path(__file__).with_name("models")
MODELS = (
    _INSTALLED if _INSTALLED.exists() else Path(__file__).resolve().parents[3] / "tests" / "models"
)  # of a checkout

_POLL_S = 0.01
_USUAL_TIMEOUT_S = 30.0
# What the Python of a virtual environment is on Windows, and `uv run` everywhere: a process that waits for the worker.
_LAUNCHER = "import subprocess, sys; sys.exit(subprocess.Popen(sys.argv[1:]).wait())"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is tested.

    Attributes:
        command: A worker's command, or a client's adapter.
        models: The folder of the test models.
        real_worker: The command that clients are given where a transcript asks for the real worker.
        timeout_s: The longest that any step waits.
    """

    command: tuple[str, ...]
    models: Path = MODELS
    real_worker: tuple[str, ...] = (sys.executable, "-m", "embed_worker")
    timeout_s: float = _USUAL_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a transcript went. `result` is `ok`, `failed` or `skipped`; the rest tells of a failure."""

    transcript: str
    result: str
    steps: int
    seconds: float
    line: int | None = None
    heading: str = ""
    why: str = ""


class _Failure(Exception):
    """A step that did not go as it must."""


def play(transcript: Transcript, target: Target) -> Report:
    """Play a transcript; every wait is bounded by `target.timeout_s`."""
    if sys.platform == "win32" and (why := transcript.why_not_on_windows):
        return Report(transcript=transcript.name, result="skipped", steps=0, seconds=0.0, why=why)
    began = time.monotonic()
    done = 0
    failure: tuple[Step, str] | None = None
    step = transcript.steps[0]
    try:
        with _stage(transcript, target) as stage:
            for step in transcript.steps:
                stage.perform(step)
                done += 1
            stage.finish()
    except (_Failure, BrokenRule, OSError) as error:
        failure = (step, str(error))
    return Report(
        transcript=transcript.name,
        result="ok" if failure is None else "failed",
        steps=done,
        seconds=round(time.monotonic() - began, 3),
        line=failure and failure[0].line,
        heading=failure[0].heading if failure else "",
        why=failure[1] if failure else "",
    )


def choose(transcripts: Sequence[Transcript], side: Side, only: Sequence[str] | None) -> list[Transcript]:
    """Return the transcripts that drive this side and fit one of the names."""
    return [
        transcript
        for transcript in transcripts
        if transcript.side is side
        and (not only or any(fnmatch.fnmatchcase(transcript.name, pattern) for pattern in only))
    ]


def play_all(transcripts: Sequence[Transcript], target: Target, jobs: int) -> Iterator[Report]:
    """Play transcripts, some at a time; yield the reports in order."""
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        yield from pool.map(lambda transcript: play(transcript, target), transcripts)


@contextlib.contextmanager
def _stage(transcript: Transcript, target: Target) -> Iterator[_Stage]:
    """Start what a transcript drives."""
    models = str(target.models)
    arguments = [argument.replace("{models}", models) for argument in transcript.arguments]
    chosen = {name: value.replace("{models}", models) for name, value in transcript.environment.items()}
    environment = {**os.environ, **chosen}
    if transcript.side is Side.WORKER:
        with Driven([*target.command, *arguments], environment) as process:
            yield _Stage(process, target.timeout_s)
        return
    # A worker that a client left behind may still write there.
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "flags.json").write_text(json.dumps(transcript.workers), "utf-8")
        played = [sys.executable, str(Path(__file__).with_name("played_worker.py")), name]
        worker = [*target.real_worker, *arguments] if transcript.is_with_real_worker else played
        if transcript.is_behind_launcher:
            worker = [sys.executable, "-c", _LAUNCHER, *worker]
        options = dict(transcript.options)
        if "start_timeout_s" in options:  # a slow machine is given as much more of it as every step of the runner
            options["start_timeout_s"] *= max(1.0, target.timeout_s / _USUAL_TIMEOUT_S)
        environment |= {"CONFORMANCE_WORKER": json.dumps(worker), "CONFORMANCE_OPTIONS": json.dumps(options)}
        record = _Record(folder, [list(flags) for flags in transcript.workers], worker)
        with Driven(target.command, environment) as process:
            yield _Stage(process, target.timeout_s, record)


@dataclass(frozen=True, slots=True)
class _Record:
    """What a client's workers noted of it; `flags` are those of its processes, `command` is what starts them."""

    folder: Path
    flags: list[list[str]]
    command: list[str]

    def read(self) -> list[dict[str, Any]]:
        return read_sent(self.folder)


class _Stage:
    """A process on which steps are performed; with a record it is a client's adapter, without one a worker."""

    def __init__(self, process: Driven, timeout_s: float, record: _Record | None = None) -> None:
        self._process = process
        self._timeout_s = timeout_s
        self._record = record
        self._memory: Memory = {}
        self._open_calls: dict[int, str] = {}
        self._perform: Mapping[str, Callable[[Step], None]] = {
            "send": self._send,
            "raw": self._raw,
            "raw_base64": self._raw,
            "expect": self._expect,
            "expect_any_order": self._expect_any_order,
            "expect_silence": self._expect_silence,
            "expect_stderr": self._expect_stderr,
            "expect_sent": self._expect_sent,
            "reference": self._reference,
            "close": lambda step: self._process.close_input(),
            "close_output": lambda step: self._process.close_output(),
            "signal": self._signal,
            "expect_gone": self._expect_gone,
            "expect_exit": self._expect_exit,
        }

    def perform(self, step: Step) -> None:
        """Do one step.

        Raises:
            _Failure: It did not go as it must.
            BrokenRule: A line that must never be written.
        """
        self._perform[step.kind](step)

    def finish(self) -> None:
        """Look at the whole once it is over."""
        if self._record is not None:
            check_sent(self._record.read(), self._record.flags)

    # Writing

    def _send(self, step: Step) -> None:
        for value in step.value:
            if self._record is not None:
                self._open_calls[value["call"]] = value["op"]
        lines = (json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in step.value)
        self._process.write(b"".join(lines))

    def _raw(self, step: Step) -> None:
        self._process.write(step.value)

    def _signal(self, step: Step) -> None:
        if step.to is not None:
            send_signal(self._pid(step.to), step.value)
        elif self._process.process.poll() is None:
            self._open_calls.clear()  # a host that is killed owes nobody an outcome
            send_signal(self._process.process.pid, step.value)

    def _pid(self, name: str) -> int:
        pid = self._memory.get(name)
        if type(pid) is not int or pid <= 1:
            raise _Failure(f"no pid was saved as {name!r}")
        return pid

    # Reading

    def _expect(self, step: Step) -> None:
        for pattern in step.value:
            answer = self._read(pattern)
            if why := mismatch(pattern, answer, self._memory):
                raise _Failure(f"expected {shortened(pattern)}; came {shortened(answer)}; {why}")

    def _expect_any_order(self, step: Step) -> None:
        left = list(step.value)
        while left:
            answer = self._read(left[0] if len(left) == 1 else {"$one_of": left})
            reasons = []
            for place, pattern in enumerate(left):
                why = mismatch(pattern, answer, self._memory)
                if why is None:
                    del left[place]
                    break
                reasons.append(why)
            else:
                wanted = shortened(left if len(left) > 1 else left[0])
                raise _Failure(f"expected one of {wanted}; came {shortened(answer)}; {shortened('; '.join(reasons))}")

    def _read(self, pattern: Any) -> dict[str, Any]:
        """Return the next answer; the pattern is only for the message."""
        try:
            line = self._process.read_line(self._timeout_s)
        except TimeoutError:
            raise _Failure(f"expected {shortened(pattern)}; nothing came for {self._timeout_s:g} s") from None
        if line is None:
            raise _Failure(f"expected {shortened(pattern)}; it ended: {self._how_it_ended()}")
        try:
            return self._checked(line)
        except BrokenRule as broken:
            raise _Failure(f"expected {shortened(pattern)}; came {shortened(_text(line))}; {broken}") from None

    def _checked(self, line: bytes) -> dict[str, Any]:
        answer = read_object(line)
        if self._record is None:
            check_answer(answer)
        else:
            check_outcome(answer, self._open_calls)
        return answer

    def _expect_silence(self, step: Step) -> None:
        try:
            line = self._process.read_line(step.value)
        except TimeoutError:
            return
        came = "its end" if line is None else shortened(_text(line))
        raise _Failure(f"expected nothing for {step.value} s; came {came}")

    def _expect_stderr(self, step: Step) -> None:
        self._await(lambda: mismatch(step.value, self._process.stderr, self._memory))

    def _expect_sent(self, step: Step) -> None:
        record = self._record
        if record is None:
            raise _Failure("`expect_sent` is for clients")
        self._await(lambda: mismatch(step.value, record.read(), self._memory))

    def _reference(self, step: Step) -> None:
        assert self._record is not None
        with Driven(self._record.command, os.environ) as worker:
            worker.write(json.dumps({"id": 1, **step.value}).encode() + b"\n")
            try:
                line = worker.read_line(self._timeout_s)
            except TimeoutError:
                line = None
            if line is None:
                raise _Failure(f"the reference worker does not answer: {shortened(worker.stderr)}")
        if why := mismatch({"$matrix": {"save": step.save}}, read_object(line), self._memory):
            raise _Failure(f"the reference worker's answer: {why}")

    def _await(self, find_fault: Callable[[], str | None]) -> None:
        """Wait until there is no fault any more."""
        until = time.monotonic() + self._timeout_s
        while (why := find_fault()) is not None:
            if time.monotonic() >= until:
                raise _Failure(f"{why}, also after {self._timeout_s:g} s")
            time.sleep(_POLL_S)

    # Ends

    def _expect_gone(self, step: Step) -> None:
        pid = self._pid(step.value)
        self._await(lambda: f"process {pid} is still there" if self._is_there(pid) else None)

    def _is_there(self, pid: int) -> bool:
        """Return whether a process exists. A zombie does, as long as its parent could reap it."""
        if sys.platform == "win32":
            return is_there(pid)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        is_parent_gone = self._process.process.poll() is not None
        return not (is_parent_gone and _is_zombie(pid))

    def _expect_exit(self, step: Step) -> None:
        if (line := self._read_rest()) is not None:
            raise _Failure(f"expected no more answers; came {shortened(_text(line))}")
        try:
            status = self._process.wait(self._timeout_s)
        except TimeoutError:
            raise _Failure(f"expected its exit; it lives after {self._timeout_s:g} s") from None
        wanted = status_of("KILL") if step.value == -9 else step.value  # the only signal that a transcript ends with
        if why := mismatch(wanted, status, self._memory):
            raise _Failure(f"the exit status: {why}; {self._how_it_ended()}")
        if self._open_calls:
            raise _Failure(f"it ended without an outcome of the calls {sorted(self._open_calls)}")

    def _read_rest(self) -> bytes | None:
        try:
            return self._process.read_line(self._timeout_s)
        except TimeoutError:
            raise _Failure(f"expected its end; standard output is open after {self._timeout_s:g} s") from None

    def _how_it_ended(self) -> str:
        with contextlib.suppress(TimeoutError):
            status = self._process.wait(1.0)
            return f"exit status {status}, standard error {shortened(self._process.stderr.strip()[-2000:], 600)!r}"
        return "standard output was closed, the process lives"


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] == ["Z"]
