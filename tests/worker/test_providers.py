"""Whom `accelerate` lets serve: the CPU, or a provider that gives the CPU's vectors."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from embed_worker.accelerators import choose as providers
from embed_worker.accelerators import onnx_provider
from embed_worker.accelerators.agreement import ProofError, agreement_with_cpu, golden_batches
from embed_worker.accelerators.choose import choose_backend
from embed_worker.arguments.serve import make_config, make_parser
from embed_worker.config import CoremlPrecision, CoremlUnits, RuntimeOptions
from embed_worker.errors import ConfigError, ModelError
from embed_worker.inference.backend import CPU_TOLERANCE, Backend
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32, cosine_distances
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from tests.worker.harness import ROOT, TINY_MODEL, WAIT_S
from tests.worker.test_tokenizer import plan_for

CPU, CUDA, AZURE = "CPUExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"
PLAN = plan_for("bert-mean")
TOKENIZER = TextTokenizer.load(PLAN)


def chosen(provider: str) -> Backend:
    runtime = RuntimeOptions(provider=provider)
    return choose_backend(OnnxBackend.load(PLAN, runtime, threads=1), PLAN, TOKENIZER, runtime, 1)


@pytest.mark.parametrize("asked", ["cpu", "CPU", "CPUExecutionProvider"])
def test_the_cpu_is_taken_as_it_is(asked: str) -> None:
    report = chosen(asked).provider
    assert (report.asked, report.chosen, report.reason) == (asked, CPU, "asked for")


def test_auto_is_the_cpu_where_there_is_no_coreml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_is_mac", lambda: False)
    report = chosen("auto").provider
    assert (report.asked, report.chosen) == ("auto", CPU)
    assert "needs a Mac" in report.reason


@pytest.mark.skipif(sys.platform == "darwin", reason="there CoreML is tried")
def test_nothing_of_coreml_is_loaded_where_it_cannot_be() -> None:
    code = f"""
import json, sys
from pathlib import Path
import onnxruntime  # which on Windows may start a process to learn the system's version
before = set(sys.modules)
from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.loading import load_model
load_model(Path({str(TINY_MODEL)!r}), ModelOptions(), RuntimeOptions(), 1)
print(json.dumps([name for name in sys.modules.keys() - before if "coreml" in name or name == "subprocess"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=WAIT_S, check=True)
    assert json.loads(done.stdout) == []


def test_options_of_the_command_line_reach_coreml(tmp_path: Path) -> None:
    def runtime_of(*arguments: str) -> RuntimeOptions:
        return make_config(make_parser().parse_args(arguments)).runtime

    assert runtime_of() == RuntimeOptions()
    assert runtime_of("--coreml-units", "CPUAndGPU") == RuntimeOptions(coreml_units=CoremlUnits.CPU_AND_GPU)
    assert runtime_of("--coreml-precision", "fp16") == RuntimeOptions(coreml_precision=CoremlPrecision.FP16)
    assert runtime_of("--coreml-cache", str(tmp_path)) == RuntimeOptions(coreml_cache=tmp_path)
    for wrong in (["--coreml-units", "all"], ["--coreml-precision", "int8"]):
        with pytest.raises(SystemExit):
            runtime_of(*wrong)


# Rule 14: any other provider, by its name


def test_rule_14_a_provider_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no provider 'abacus'; it has: .*cpu"):
        chosen("abacus")


@pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason="this onnxruntime has the CPU alone")
def test_rule_14_a_real_provider_passes_the_golden_test() -> None:
    report = chosen("azure").provider
    assert (report.asked, report.chosen) == ("azure", AZURE)
    assert "cosine to the CPU is 1.0000000" in report.reason


class FakeCuda:
    """Stands for `onnxruntime.InferenceSession`: the CPU's, and where it is CUDA's, whatever a test makes of it."""

    def __init__(self, change: Callable[[Float32], Float32], active: list[str]) -> None:
        self.change = change
        self.active = active
        self.opened: list[dict[str, Any]] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()
        self.real = onnxruntime.InferenceSession

    def __call__(self, path: str, settings: Any, providers: list[str], **kwargs: Any) -> Any:
        self.opened.append({"providers": providers, **kwargs})
        session = self.real(path, settings, providers=[CPU])
        if providers == [CPU]:
            return session
        assert not settings.enable_mem_pattern
        return FakeCudaSession(self, session)

    @contextlib.contextmanager
    def noted(self, shape: tuple[int, ...]) -> Iterator[None]:
        with self._lock:
            self._running += 1
            self.shapes.add(shape)
            self.most_at_once = max(self.most_at_once, self._running)
        yield
        with self._lock:
            self._running -= 1


class FakeCudaSession:
    def __init__(self, provider: FakeCuda, inner: Any) -> None:
        self._provider = provider
        self.get_inputs, self.get_outputs, self._inner = inner.get_inputs, inner.get_outputs, inner

    def get_providers(self) -> list[str]:
        return self._provider.active

    def run(self, names: Any, feeds: Mapping[str, Any]) -> list[Float32]:
        with self._provider.noted(feeds["input_ids"].shape):
            return [self._provider.change(output) for output in self._inner.run(names, feeds)]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A CUDA that works, unless a test changes it."""
    fake = FakeCuda(lambda hidden: hidden, [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("libcublas was not found"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fake)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    return fake


def test_rule_14_another_provider_that_gives_the_cpus_vectors_serves(cuda: FakeCuda) -> None:
    backend = chosen("cuda")
    assert backend.provider.chosen == CUDA
    of_cuda = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    assert [call["providers"] for call in cuda.opened] == [[CPU], [(CUDA, of_cuda), CPU]]
    assert {call["enable_fallback"] for call in cuda.opened} == {0}


def test_cudas_libraries_are_looked_for_where_pip_puts_them_and_nothing_is_printed(
    cuda: FakeCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen("cpu")
    assert capsys.readouterr() == ("", "")
    chosen("cuda")
    assert capsys.readouterr() == ("", "libcublas was not found\n")


def test_a_gpu_sees_few_shapes_and_few_runs_at_once_and_gives_each_text_its_vector(cuda: FakeCuda) -> None:
    backend, cpu = chosen("cuda"), chosen("cpu")
    texts = [" ".join(["word"] * (1 + 7 * number % 90)) for number in range(60)]
    rows = [text.ids for text in TOKENIZER.encode(texts, "")]
    batches = [
        TokenBatch.of_rows(rows[first : first + count], pad_id=TOKENIZER.pad_id, pad_left=False)
        for count in (1, 3, 7, 20)
        for first in range(0, len(rows), count)
    ]
    with ThreadPoolExecutor(8) as lanes:
        vectors = list(lanes.map(lambda batch: backend.embed(batch, exclusive=False), batches))
    for batch, found in zip(batches, vectors, strict=True):
        assert cosine_distances(found, cpu.embed(batch, exclusive=False)).max() < CPU_TOLERANCE
    assert cuda.most_at_once <= 2
    buckets = set(onnx_provider.buckets_of(RuntimeOptions().batch_tokens, PLAN.max_tokens))
    assert cuda.shapes <= buckets


def test_a_gpu_gets_large_batches_unless_it_is_told_otherwise() -> None:
    def budget_of(*arguments: str) -> int:
        return make_config(make_parser().parse_args(arguments)).runtime.batch_tokens

    assert budget_of() == budget_of("--provider", "coreml") == budget_of("--provider", "openvino") == 384
    assert budget_of("--provider", "cuda") == budget_of("--provider", "TensorrtExecutionProvider") == 8192
    assert budget_of("--provider", "cuda", "--batch-tokens", "500") == 500


def raising(hidden: Float32) -> Float32:
    raise RuntimeError("CUDA error:\nno kernel")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (np.zeros_like, "gives vectors of length 0"),
        (lambda hidden: np.full_like(hidden, np.nan), "gives values that are not finite"),
        (lambda hidden: hidden[..., ::-1].copy(), "differs from the CPU: a cosine is"),
        (raising, "fails: CUDA error: no kernel"),
    ],
)
def test_rule_14_another_provider_that_gives_anything_else_is_refused_loudly(
    cuda: FakeCuda, change: Callable[[Float32], Float32], reason: str
) -> None:
    cuda.change = change
    with pytest.raises(ModelError, match=reason):
        chosen("cuda")


def test_rule_14_a_provider_that_is_dropped_in_silence_is_refused_loudly(cuda: FakeCuda) -> None:
    cuda.active = [CPU]
    with pytest.raises(ConfigError, match="--provider cuda: CUDAExecutionProvider could not be set up"):
        chosen("cuda")


# The golden test


@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 32), (8, 32), (8, 512)])
def test_rule_09_golden_batches_are_full_and_padded(rows: int, tokens: int, pad_left: bool) -> None:
    full, padded = golden_batches(TOKENIZER, rows, tokens, pad_left=pad_left)
    assert full.ids.shape == (rows, min(tokens, PLAN.max_tokens))
    assert full.mask.all()
    lengths = padded.mask.sum(axis=1)
    assert 1 <= len(padded.ids) <= rows
    assert rows == 1 or len(padded.ids) < rows
    assert 1 <= lengths.min() <= lengths.max() < tokens
    assert padded.mask[:, -1 if pad_left else 0].all()
    assert len({row.tobytes() for row in full.ids}) == rows


def vectors_of(rows: int) -> Float32:
    return np.random.default_rng(rows).normal(size=(rows, 16)).astype(np.float32)


class GoldenBackend:
    """Gives the same vectors for a number of rows."""

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        return vectors_of(len(batch.ids))


@pytest.mark.parametrize(
    ("noise", "precision", "passes"),
    [
        (0.0, "float32", True),
        (0.02, "float32", True),
        (0.04, "float32", False),
        (0.04, "float16", True),
        (0.1, "float16", False),
    ],
)
def test_rule_09_the_bounds_are_those_of_the_precision(noise: float, precision: str, passes: bool) -> None:
    batches = golden_batches(TOKENIZER, 8, 32, pad_left=False)

    def embed(batch: TokenBatch) -> Float32:
        vectors = vectors_of(len(batch.ids))
        away = np.roll(vectors, 1, axis=1)
        away -= vectors * (away * vectors).sum(1, keepdims=True) / (vectors**2).sum(1, keepdims=True)
        away *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
        return np.asarray(vectors + noise * away, np.float32)

    cpu: Any = GoldenBackend()
    if passes:
        assert agreement_with_cpu(embed, cpu, batches, precision) == pytest.approx(1 / np.sqrt(1 + noise**2), abs=1e-6)
    else:
        with pytest.raises(ProofError, match="differs from the CPU"):
            agreement_with_cpu(embed, cpu, batches, precision)


def test_rule_09_a_wrong_vector_among_right_ones_is_found() -> None:
    cpu: Any = GoldenBackend()
    batches = golden_batches(TOKENIZER, 8, 32, pad_left=False)

    def embed(batch: TokenBatch) -> Float32:
        vectors = vectors_of(len(batch.ids))
        if len(vectors) < 8:
            vectors[-1] *= -1
        return vectors

    with pytest.raises(ProofError, match="a cosine is -1"):
        agreement_with_cpu(embed, cpu, batches, "float32")
