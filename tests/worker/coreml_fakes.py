"""A CoreML provider that does what a test says: the real graph on the CPU, through onnxruntime's own session, with the
shape overrides and options that it was given, and one fault.

As a program it is a worker, or a worker's compile child, with this provider in the place of CoreML's:
`python -m tests.worker.coreml_fakes serve FAULT CACHE ARGUMENTS…`, and `… child FAULT JOB`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import onnxruntime

from embed_worker import __main__ as command
from embed_worker.accelerators import choose as providers
from embed_worker.accelerators.coreml import child as coreml_compile
from embed_worker.accelerators.coreml import environment as coreml_environment
from embed_worker.accelerators.coreml.cache_key import compiled_model, read_cache_key
from embed_worker.accelerators.coreml.child import ChildFailedError, ChildRunner, ChildTask
from embed_worker.accelerators.coreml.environment import CoremlEnvironment, Host
from embed_worker.accelerators.coreml.static_session import StaticSession
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch

CPU, COREML = "CPUExecutionProvider", "CoreMLExecutionProvider"
COREML_S, CPU_S = 0.002, 0.010  # what a run takes on the fake clock: a fifth

MAC = Host(
    system="darwin",
    machine="arm64",
    macos="15.1",
    macos_build="24B83",
    onnxruntime="1.31.1",
    providers=[COREML, "AzureExecutionProvider", CPU],
    has_onnx=True,
    cache=Path("/Users/u/Library/Caches/embed-bridge/coreml"),
)


class Fault(StrEnum):
    """What is wrong with the provider."""

    NONE = "none"
    ABORTS = "aborts"
    HANGS = "hangs"
    RAISES = "raises"
    PRINTS = "prints"
    ZEROS = "zeros"
    NAN = "nan"
    TINY = "tiny"
    WRONG = "wrong"
    WRONG_WITH_PADDING = "wrong with padding"
    WRONG_WHEN_FULL = "wrong when full"
    WRONG_SHAPE = "wrong shape"
    PIECES = "pieces"
    NOTHING = "nothing"
    FEW_NODES = "few nodes"
    SLOW = "slow"
    RUN_RAISES = "run raises"
    KEEPS_NOTHING = "keeps nothing"


class FakeClock:
    """Seconds that pass when something says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class FakeProvider:
    """Stands for `onnxruntime.InferenceSession`; notes how it was called, and has the fault of the moment."""

    fault: Fault = Fault.NONE
    clock: FakeClock = field(default_factory=FakeClock)
    calls: list[SimpleNamespace] = field(default_factory=list)
    opened: int = 0

    def __call__(self, path: str, settings: Any, *, providers: Sequence[Any], **kwargs: Any) -> FakeSession:
        self.calls.append(SimpleNamespace(path=path, settings=settings, providers=providers, kwargs=kwargs))
        ((_, options), *_) = providers
        match self.fault:
            case Fault.ABORTS:
                os.abort()
            case Fault.HANGS:
                threading.Event().wait()
            case Fault.RAISES:
                raise RuntimeError("Error compiling model:\nno such feature")
            case Fault.PRINTS:
                print("*** EP Error *** falling back")
                sys.stdout.flush()
                os.write(1, b'{"id":1,"status":"ok"}\n')
            case _:
                pass
        # The provider fills its folder before anything has run.
        if self.fault is not Fault.KEEPS_NOTHING:
            kept = compiled_model(Path(options["ModelCacheDirectory"]), read_cache_key(Path(path)) or "by-path")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(b"\0" * 1000)
        inner = onnxruntime.InferenceSession(path, settings, providers=[CPU], **kwargs)
        self.opened += 1
        return FakeSession(self, inner)


class FakeSession:
    """An open session of the fake provider."""

    def __init__(self, provider: FakeProvider, inner: Any) -> None:
        self._provider = provider
        self._inner = inner

    def __del__(self) -> None:
        self._provider.opened -= 1
        if self._provider.fault is Fault.PRINTS:
            print("a session was closed", flush=True)

    def get_inputs(self) -> Any:
        return self._inner.get_inputs()

    def get_providers(self) -> list[str]:
        """What is registered; it is the same whatever takes the nodes."""
        return [COREML, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [node for entry in self._inner.get_provider_graph_assignment_info() for node in entry.get_nodes()]
        cut = len(nodes) // 24
        match self._provider.fault:
            case Fault.NOTHING:
                taken = 0
            case Fault.FEW_NODES:
                taken = int(0.94 * len(nodes))
            case Fault.PIECES:
                return [_entry(COREML, nodes[n * cut : (n + 1) * cut]) for n in range(24)]
            case _:
                taken = len(nodes)
        rest = [_entry(CPU, [node]) for node in nodes[taken:]]
        return [_entry(COREML, nodes[:taken]), *rest] if taken else rest

    def run(self, names: Any, feeds: Mapping[str, Float32]) -> list[Float32]:
        (pooled,) = self._inner.run(names, feeds)
        self._provider.clock.advance(2 * CPU_S if self._provider.fault is Fault.SLOW else COREML_S)
        wrong = pooled[:, ::-1].copy()
        # Texts that fill the bucket leave no padding; the texts that a partial batch is padded with have one token.
        is_full = bool((feeds["attention_bias"] == 0).all())
        match self._provider.fault:
            case Fault.RUN_RAISES:
                raise RuntimeError("Error in predicting: code -6")
            case Fault.ZEROS:
                return [np.zeros_like(pooled)]
            case Fault.NAN:
                return [np.full_like(pooled, np.nan)]
            case Fault.TINY:
                return [pooled * np.float32(1e-3)]
            case Fault.WRONG:
                return [wrong]
            case Fault.WRONG_WITH_PADDING:
                return [pooled if is_full else wrong]
            case Fault.WRONG_WHEN_FULL:
                return [wrong if is_full else pooled]
            case Fault.WRONG_SHAPE:
                return [pooled[:, :5]]
            case _:
                return [pooled]


def _entry(provider: str, nodes: list[Any]) -> Any:
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


class TimedBackend:
    """The CPU with a fake clock, and a count of what it ran."""

    def __init__(self, inner: OnnxBackend, clock: FakeClock) -> None:
        self.inner = inner
        self.clock = clock
        self.provider = inner.provider
        self.precision = inner.precision
        self.scales_by_batch = False
        self.is_end_to_end = False
        self.max_rows = inner.max_rows
        self.tolerance = inner.tolerance
        self.runs: list[tuple[int, ...]] = []
        self.widened = 0
        self.run_s = CPU_S

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        return rows, tokens

    def use_all_cores(self) -> None:
        self.widened += 1

    def close(self) -> None:
        """Hold nothing."""

    def chosen_because(self, reason: str) -> TimedBackend:
        explained = copy.copy(self)
        explained.provider = replace(self.provider, reason=reason)
        return explained

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        self.runs.append(batch.ids.shape)
        self.clock.advance(self.run_s)
        return self.inner.embed(batch, exclusive=exclusive)


class InlineChildren(ChildRunner):
    """Does a child's task in this process, with the fake provider; notes the tasks."""

    def __init__(self, provider: FakeProvider) -> None:
        super().__init__()
        self.provider = provider
        self.tasks: list[ChildTask] = []
        self.before: Callable[[], object] = lambda: None

    def run(self, task: ChildTask, limit_s: float) -> None:
        self.tasks.append(task)
        self.before()
        try:
            coreml_compile.perform(task, self.provider)
        except Exception as error:
            raise ChildFailedError(f"it ended with status 1: {' '.join(str(error).split())}") from error


def fake_environment(provider: FakeProvider, cache: Path, **changes: Any) -> CoremlEnvironment:
    """Describe a Mac with the fake provider; its children run inline."""
    environment = CoremlEnvironment(
        host=MAC,
        cache=cache,
        open_session=functools.partial(StaticSession, factory=provider),
        children=InlineChildren(provider),
        clock=provider.clock,
    )
    return dataclasses.replace(environment, **changes)


# As a program


_is_safe = coreml_environment.is_safe


def is_safe_on_a_mac(path: Path) -> bool:
    """Judge a path of Windows as what a Mac would have in the place of its drive and backslashes."""
    mac: Any = PurePosixPath(path.as_posix().removeprefix(path.drive))
    return _is_safe(mac)


def main(argv: Sequence[str]) -> NoReturn:
    """Be a worker or its child with the fake provider."""
    if sys.platform == "win32":
        coreml_environment.is_safe = is_safe_on_a_mac
    role, fault, *rest = argv
    provider = FakeProvider(Fault(fault))
    if role == "child":
        sys.exit(coreml_compile.main(rest, provider))
    cache, *arguments = rest

    # What aborts or hangs does so in the child alone, as CoreML's compiler does.
    in_worker = Fault.NONE if provider.fault in (Fault.ABORTS, Fault.HANGS) else provider.fault
    worker_provider = FakeProvider(in_worker)
    children = ChildRunner([sys.executable, "-m", "tests.worker.coreml_fakes", "child", fault])
    limit_s = 0.5 if provider.fault is Fault.HANGS else 60.0
    environment = fake_environment(worker_provider, Path(cache), children=children, compile_limit_s=limit_s)
    embed_on_cpu = OnnxBackend.embed

    def embed(self: OnnxBackend, batch: TokenBatch, *, exclusive: bool) -> Float32:
        worker_provider.clock.advance(CPU_S)
        return embed_on_cpu(self, batch, exclusive=exclusive)

    mock.patch.object(coreml_environment, "environment_of", return_value=environment).start()
    mock.patch.object(providers, "_is_mac", return_value=True).start()
    mock.patch.object(OnnxBackend, "embed", embed).start()
    command.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
