"""The path of one warm text, counted: `python -m tests.benchmarks.path_of_a_request worker`, or `client`.

It counts, in our own files and over all threads: calls; changes of file, where a call's function stands in another
file than that of the thread's call before; locks taken; and callbacks, which are calls of closures and of functions
that an attribute or a variable of the caller holds. `--trace` prints every call.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "models" / "bert-mean"
_QUIET_S = 0.3  # long enough for all threads to come to rest

_MAKERS = {"Lock": threading.Lock, "RLock": threading.RLock}
# No functions of their own: what is inside one of them belongs to the function around it.
_INLINE = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<module>")


class Recorder:
    """Counts while `is_recording`; `install` it before what is measured is imported."""

    def __init__(self) -> None:
        self.is_recording = False
        self.calls: dict[str, list[tuple[str, str]]] = defaultdict(list)  # by thread: file and function
        self.callbacks: list[str] = []
        self.locks = 0

    def install(self) -> None:
        """Watch the calls of all threads, and the locks that are made from now on."""
        threading.Lock = self._counted(_MAKERS["Lock"])  # type: ignore[assignment]
        threading.RLock = self._counted(_MAKERS["RLock"])  # type: ignore[assignment]
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def _counted(self, make: Callable[[], Any]) -> Callable[[], Any]:
        def made() -> Any:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and _ours(frame.f_code) is None:
                frame = frame.f_back
            return make() if frame is None else CountedLock(make(), self)

        return made

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if not self.is_recording or event != "call":
            return
        file = _ours(frame.f_code)
        if file is None or frame.f_code.co_name in _INLINE:
            return
        self.calls[threading.current_thread().name].append((file, frame.f_code.co_qualname))
        if _is_callback(frame):
            self.callbacks.append(f"{file}:{frame.f_code.co_qualname}")

    def totals(self) -> dict[str, int]:
        """Return the four numbers."""
        pairs = itertools.chain.from_iterable(map(itertools.pairwise, self.calls.values()))
        changes = sum(before[0] != after[0] for before, after in pairs)
        return {
            "calls": sum(map(len, self.calls.values())),
            "changes of file": changes,
            "locks": self.locks,
            "callbacks": len(self.callbacks),
        }


class CountedLock:
    """A lock or a re-entrant lock that counts how often it is taken."""

    def __init__(self, lock: Any, recorder: Recorder) -> None:
        self._lock = lock
        self._recorder = recorder

    def acquire(self, *arguments: Any, **named: Any) -> bool:
        self._recorder.locks += self._recorder.is_recording
        return bool(self._lock.acquire(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)  # `release`, and what a Condition asks of a re-entrant lock

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _ours(code: CodeType) -> str | None:
    path = code.co_filename
    for package in ("embed_worker", "bridge_client"):
        start = path.find(f"{os.sep}{package}{os.sep}")
        if start >= 0:
            return path[start + 1 :]
    return None


def _is_callback(frame: FrameType) -> bool:
    code, caller = frame.f_code, frame.f_back
    if code.co_name == "<lambda>" or "<locals>" in code.co_qualname:
        return True
    if caller is None:
        return False
    owner = caller.f_locals.get("self")
    held = list(getattr(owner, "__dict__", {}).values())
    held += [getattr(owner, name, None) for name in getattr(type(owner), "__slots__", ())]
    return any(_code_of(value) is code for value in (*held, *caller.f_locals.values()))


def _code_of(value: object) -> CodeType | None:
    function = getattr(value, "func", value)  # of a functools.partial
    return getattr(getattr(function, "__func__", function), "__code__", None)


Ask: TypeAlias = Callable[[], object]


def record(recorder: Recorder, ask: Ask) -> None:
    """Ask some times to warm everything up, then once more and count."""
    for _ in range(5):
        ask()
    time.sleep(_QUIET_S)
    recorder.is_recording = True
    ask()
    time.sleep(_QUIET_S)
    recorder.is_recording = False


def worker_path() -> Recorder:
    """Serve a real, tiny model in this process between two pipes."""
    recorder = Recorder()
    recorder.install()
    from embed_worker.config import ModelOptions, RuntimeOptions, WorkerConfig
    from embed_worker.loading import load_model
    from embed_worker.machine import Threads
    from embed_worker.serving import lanes
    from embed_worker.serving.model_store import ModelStore
    from embed_worker.serving.server import Environment, Server

    lanes._WATCH_S = 60.0  # a thread that looks now and then whether a text is done is not on the way of the text
    from embed_worker.serving.stdio import LineReader

    reading, writing = os.pipe()
    answering, answers = os.pipe()
    config = WorkerConfig(models=(ModelOptions(name_or_path=str(MODEL)),), runtime=RuntimeOptions(provider="cpu"))
    store = ModelStore(lambda folder, options, note: load_model(folder, options, config.runtime, 2, note), [])
    lines = LineReader(reading, config.limits.max_line_bytes)
    environment = Environment(
        lines=lines,
        writer_descriptor=answers,
        is_parent_alive=lambda: True,
        threads=Threads(value=2, reason="the lanes below"),
    )
    thread = threading.Thread(target=Server(config, store, environment, lanes=2).run, name="main")
    thread.start()

    def ask() -> None:
        os.write(writing, b'{"id": 1, "inputs": "a warm text"}\n')
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(answering, 2**16)
        assert b'"status":"ok"' in answer, answer

    record(recorder, ask)
    os.close(writing)
    thread.join()
    recorder.calls.pop("main", None)  # it looks at the parent and at standard output four times a second
    return recorder


def client_path() -> Recorder:
    """Call the client over the fake worker, which is another process."""
    recorder = Recorder()
    recorder.install()
    from bridge_client.testing import fake_client

    with fake_client() as client:
        record(recorder, lambda: client.embed("a warm text"))
    return recorder


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["worker", "client"], help="whose path")
    parser.add_argument("--trace", action="store_true", help="print every call")
    options = parser.parse_args()
    recorder = worker_path() if options.side == "worker" else client_path()
    print(f"{options.side}: " + ", ".join(f"{number} {what}" for what, number in recorder.totals().items()))
    if options.trace:
        for thread, calls in recorder.calls.items():
            print(f"{thread}:", *(f"  {file}: {function}" for file, function in calls), sep="\n")
        print("callbacks:", *(f"  {callback}" for callback in recorder.callbacks), sep="\n")


if __name__ == "__main__":
    main()
