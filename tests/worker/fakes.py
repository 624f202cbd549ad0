"""A worker inside the test's process: the real server and lanes between real pipes, with a model that is only numpy.

The fake model obeys words in its texts, so that a test says in the request what should happen:
`poison` makes the run raise, `nan` and `zero` give vectors that cannot be used, `memory` fails an allocation,
`untokenizable` makes the tokenizer raise, `nothing` as a whole text has no tokens.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from embed_worker.config import ModelOptions, RuntimeOptions, WorkerConfig
from embed_worker.errors import ModelError, OutOfMemoryError
from embed_worker.inference.pooling import Float32, are_usable, at_precision, finish_vectors
from embed_worker.machine import Threads
from embed_worker.model_files.plan import ModelPlan, PoolingMode
from embed_worker.model_files.tokenizer_plan import TokenizerPlan
from embed_worker.protocol import Limits
from embed_worker.serving.model_store import ModelStore
from embed_worker.serving.server import Environment, Server
from embed_worker.serving.stdio import LineReader
from tests.worker.harness import WAIT_S as WAIT_S
from tests.worker.harness import parse_answer

if TYPE_CHECKING:
    from embed_worker.inference.engine import LoadedModel


DIMENSION = 4
MAX_TOKENS = 12

_POISON, _NAN, _ZERO, _MEMORY = 60_001, 60_002, 60_003, 60_004
_WORDS = {"poison": _POISON, "nan": _NAN, "zero": _ZERO, "memory": _MEMORY}


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True, slots=True, eq=False)
class FakeText:
    """What the lanes need of `TokenizedText`, without its package."""

    ids: NDArray[np.int64]
    count: int
    skipped: int = 0
    ranges: NDArray[np.uint32] | None = None

    @property
    def is_truncated(self) -> bool:
        return self.count > len(self.ids)


class FakeTokenizer:
    """One token a word, and one for the end."""

    def __init__(self, gate: threading.Event, entered: queue.SimpleQueue[int]) -> None:
        self.gate = gate
        self.entered = entered

    def encode(self, texts: Sequence[str], prompt: str, *, cuts: bool = True, ranges: bool = False) -> list[FakeText]:
        self.entered.put(len(texts))
        assert self.gate.wait(WAIT_S)
        return [self._encode_one(prompt + text, len(prompt), cuts, ranges) for text in texts]

    @staticmethod
    def _encode_one(text: str, start: int, cuts: bool, ranges: bool) -> FakeText:
        words = text.split()
        if "untokenizable" in words:
            raise RuntimeError("the tokenizer failed")
        if words == ["nothing"]:
            return FakeText(np.zeros(0, np.int64), 0, 0, np.zeros((0, 2), np.uint32))
        ids = [*(_WORDS.get(word, zlib.crc32(word.encode()) % 50_000) for word in words), 1]
        count = len(ids)
        ids = ids[:MAX_TOKENS] if cuts else ids
        spans = [span for word in re.finditer(r"\S+", text) if (span := word.span())[0] >= start][: len(ids)]
        found = np.array(spans, np.uint32).reshape(-1, 2) - np.uint32(start) if ranges else None
        return FakeText(np.array(ids, np.int64), count, 0, found)


def expected_vector(text: str, *, normalize: bool = True) -> NDArray[np.float32]:
    """Compute alone what the fake model gives for a text: its ids, weighted by their places, in four sums."""
    (row,) = FakeTokenizer(_open_gate(), queue.SimpleQueue()).encode([text], "")
    vector: NDArray[np.float32] = finish_vectors(_vector(row.ids)[None], None, normalize=normalize)[0]
    return vector


def _vector(ids: NDArray[np.int64]) -> Float32:
    places = np.arange(1, len(ids) + 1)
    sums = [float((ids % (97 + k) * places).sum()) + k + 1 for k in range(DIMENSION)]
    return np.array(sums, np.float32)


def _open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


class FakeEngine:
    """Runs rows while its gates are open, and notes every run."""

    dimension = DIMENSION
    normalizes_itself = False
    is_batch_invariant = True
    one_by_one = None

    def __init__(self, plan: ModelPlan) -> None:
        self.gate = _open_gate()
        self.entered: queue.SimpleQueue[int] = queue.SimpleQueue()  # the rows of each run, as it begins
        self.runs: list[int] = []
        self.scale = 1.0
        self.row_step = 1  # batches are padded to so many rows
        self.tokenizer = FakeTokenizer(_open_gate(), queue.SimpleQueue())
        report = SimpleNamespace(asked="auto", chosen="FakeProvider", reason="it is a fake")
        self.backend = SimpleNamespace(provider=report, precision="float32", tolerance=1e-6)
        self.plan = plan

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        return -(-rows // self.row_step) * self.row_step, tokens

    def embed(self, rows: Sequence[FakeText], **_: Any) -> Float32:
        self.runs.append(len(rows))
        self.entered.put(len(rows))
        assert self.gate.wait(WAIT_S)
        vectors = np.stack([_vector(row.ids) for row in rows]) * np.float32(self.scale)
        for place, row in enumerate(rows):
            if _POISON in row.ids:
                raise RuntimeError("the graph failed")
            if _MEMORY in row.ids:
                raise OutOfMemoryError("no memory for a batch")
            if _NAN in row.ids:
                vectors[place, 1] = np.nan
            if _ZERO in row.ids:
                vectors[place] = 0
        return vectors

    def new_matrix(self, rows: int) -> Float32:
        return np.empty((rows, self.dimension), np.float32)


class FakeModel:
    """What the server and the lanes need of `LoadedModel`."""

    normalizes = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_closed = False
        self.fingerprint = f"{zlib.crc32(name.encode()):016x}"
        self.plan = ModelPlan(
            name=name,
            folder=Path(name),
            graph=Path(name) / "model.onnx",
            pooling=(PoolingMode.MEAN,),
            pooling_dimension=None,
            include_prompt=True,
            modules=(),
            normalize=True,
            max_tokens=MAX_TOKENS,
            prompts={"query": "ask ", "document": ""},
            default_prompt_name=None,
            tokenizer=TokenizerPlan(file=Path(name) / "tokenizer.json", sections={}),
            lowercase=False,
            decisions=(),
        )
        self.engine = FakeEngine(self.plan)
        self.dimension = self.engine.dimension

    def use_all_cores(self) -> None:
        """Open nothing more."""

    def close(self) -> None:
        self.is_closed = True

    def finish_and_check(
        self, raw: Float32, dimensions: int | None, normalize: bool | None, precision: str = "float32"
    ) -> tuple[NDArray[Any], int | None]:
        finished = finish_vectors(raw, dimensions, normalize=normalize is not False)
        told = at_precision(finished, precision)
        good = are_usable(finished) & are_usable(raw) & (are_usable(told) if precision == "float16" else True)
        return told, None if good.all() else int(good.argmin())


class FakeLoader:
    """Gives fake models; a model whose name starts with `bad` fails, and every load waits for the gate."""

    def __init__(self) -> None:
        self.gate = _open_gate()
        self.entered: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.models: dict[str, FakeModel] = {}
        self.error: BaseException | None = None  # raised by the next loads

    def __call__(self, folder: Path, options: ModelOptions, note: Callable[[str], None]) -> LoadedModel:
        note("waiting at its gate")
        self.entered.put(folder.name)
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        if folder.name.startswith("bad"):
            raise ModelError(f"the model {folder.name!r} is damaged")
        model = self.models[folder.name] = FakeModel(folder.name)
        return cast("LoadedModel", model)


@dataclass(eq=False)
class Worker:
    """A server that runs in a thread, and the host's ends of its pipes."""

    server: Server
    loader: FakeLoader
    store: ModelStore
    input: int
    output: int
    writing: int
    status: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    received: queue.SimpleQueue[dict[str, Any] | None] = field(default_factory=queue.SimpleQueue)
    is_input_open: bool = True

    @property
    def engine(self) -> FakeEngine:
        return self.loader.models["first"].engine

    def run(self) -> None:
        self.status.put(self.server.run())
        # Threads of the server may be left: the number stays taken, and whatever they wrote would go nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.writing)
        os.close(nowhere)

    def read(self) -> None:
        with os.fdopen(self.output, "rb") as lines:
            for line in lines:
                self.received.put(parse_answer(line))
        self.received.put(None)

    def send_raw(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.input, data) :]

    def send(self, *messages: dict[str, Any]) -> None:
        self.send_raw(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def receive(self) -> dict[str, Any]:
        answer = self.received.get(timeout=WAIT_S)
        assert answer is not None, "the worker has ended"
        return answer

    def receive_many(self, count: int) -> dict[Any, dict[str, Any]]:
        """Receive answers in any order, by id; unnumbered ones by `line N`."""
        answers = [self.receive() for _ in range(count)]
        by_id = {a["id"] if a["id"] is not None else f"line {a['line']}": a for a in answers}
        assert len(by_id) == count
        return by_id

    def receive_rest(self) -> list[dict[str, Any]]:
        return list(iter(lambda: self.received.get(timeout=WAIT_S), None))

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.send(message)
        return self.receive()

    def is_silent(self) -> bool:
        """Whether nothing is answered before a `ping` that is asked now."""
        answer = self.ask({"id": "is anything there?", "method": "ping"})
        return bool(answer["id"] == "is anything there?")

    def close_input(self) -> None:
        if self.is_input_open:
            self.is_input_open = False
            os.close(self.input)

    def wait(self) -> int:
        return self.status.get(timeout=WAIT_S)


@contextmanager
def running_worker(
    *,
    models: Sequence[str] = ("first",),
    limits: Limits | None = None,
    lanes: int = 1,
    clock: Callable[[], float] | None = None,
    is_supervised: bool = False,
    is_parent_alive: Callable[[], bool] = lambda: True,
    drain_timeout_s: float | None = None,
    start_limit_s: float = 600.0,
    loader: FakeLoader | None = None,
    runtime: RuntimeOptions | None = None,
) -> Iterator[Worker]:
    """Start a server between two pipes; `first`, `second`, `third` and `bad` are in its models folder."""
    with (
        TemporaryDirectory() as root,
        _running_worker(
            models_folder(Path(root)),
            models=models,
            limits=limits or Limits(),
            lanes=lanes,
            clock=clock,
            is_supervised=is_supervised,
            is_parent_alive=is_parent_alive,
            drain_timeout_s=drain_timeout_s,
            start_limit_s=start_limit_s,
            loader=loader or FakeLoader(),
            runtime=runtime or RuntimeOptions(),
        ) as worker,
    ):
        yield worker


@contextmanager
def _running_worker(
    folder: Path,
    *,
    models: Sequence[str],
    limits: Limits,
    lanes: int,
    clock: Callable[[], float] | None,
    is_supervised: bool,
    is_parent_alive: Callable[[], bool],
    drain_timeout_s: float | None,
    start_limit_s: float,
    loader: FakeLoader,
    runtime: RuntimeOptions,
) -> Iterator[Worker]:
    reading, host_writes = os.pipe()
    host_reads, writing = os.pipe()
    config = WorkerConfig(
        models=tuple(ModelOptions(name_or_path=name) for name in models),
        limits=limits,
        runtime=runtime,
        is_supervised=is_supervised,
        drain_timeout_s=drain_timeout_s,
        start_limit_s=start_limit_s,
    )
    store = ModelStore(loader, [folder])
    clock = clock or time.monotonic
    lines = LineReader(reading, limits.max_line_bytes, clock)
    environment = Environment(
        lines=lines,
        writer_descriptor=writing,
        is_parent_alive=is_parent_alive,
        threads=Threads(value=lanes, reason="the test's"),
        clock=clock,
    )
    worker = Worker(Server(config, store, environment, lanes=lanes), loader, store, host_writes, host_reads, writing)
    threads = [threading.Thread(target=target, daemon=True) for target in (worker.run, worker.read)]
    for thread in threads:
        thread.start()
    try:
        yield worker
    finally:
        loader.gate.set()
        for model in loader.models.values():
            model.engine.gate.set()
            model.engine.tokenizer.gate.set()
        worker.close_input()
        for thread in threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads), "the worker did not end"


def models_folder(root: Path) -> Path:
    """Make the empty folders of models that the fake loader knows how to load."""
    for name in ("first", "second", "third", "bad"):
        (root / name).mkdir(parents=True)
    return root
