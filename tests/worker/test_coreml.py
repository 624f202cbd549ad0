"""CoreML: the rules of its proof, each by its number, with a provider that does what a test says.

The graph, the shape overrides, the cache and the child are real; only what CoreML itself would compute is faked. Tests
with the real provider are marked `coreml` and run on a Mac with Apple silicon. Rule 6, the forecast of partitions, has
tests of its own, as have the dedicated graphs of rule 5.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest

from embed_worker.accelerators.coreml import environment as coreml_environment
from embed_worker.accelerators.coreml import proof as coreml_proof
from embed_worker.accelerators.coreml.backend import CoremlBackend, CoremlReport, accelerate
from embed_worker.accelerators.coreml.cache import Entry, ProofState, ProofVerdict, sweep
from embed_worker.accelerators.coreml.child import ChildFailedError, ChildRunner, ChildTask, StoppedError
from embed_worker.accelerators.coreml.environment import CoremlEnvironment, unsupported_reason
from embed_worker.accelerators.coreml.shapes import SHAPES, Shape, is_worth, shape_for
from embed_worker.accelerators.coreml.static_session import PlacementUnknownError, StaticSession
from embed_worker.config import CoremlPrecision, CoremlUnits, ModelOptions, RuntimeOptions
from embed_worker.errors import ConfigError, ModelError
from embed_worker.inference.backend import Backend
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.loading import load_model
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.plan import ModelPlan, PoolingMode
from tests.patience import WAIT_S
from tests.worker.coreml_fakes import (
    COREML,
    COREML_S,
    CPU,
    CPU_S,
    MAC,
    FakeProvider,
    Fault,
    InlineChildren,
    TimedBackend,
    fake_environment,
    is_safe_on_a_mac,
)
from tests.worker.harness import ROOT, TINY_MODEL, cosines, lines_of, matrix_of, parse_answer, run_worker

SMALLEST, FULL = SHAPES[0], Shape(8, 32)


@pytest.fixture(autouse=True)
def _paths_of_a_mac() -> Iterator[None]:
    """On Windows let the rule for paths see what the fake Mac would have in the place of a drive and backslashes."""
    with pytest.MonkeyPatch.context() as patch:  # not the test's own, which it may undo
        if sys.platform == "win32":
            patch.setattr(coreml_environment, "is_safe", is_safe_on_a_mac)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with its dedicated graph, as `embed-worker export --for coreml` makes it."""
    made = tmp_path_factory.mktemp("models") / "bert-mean"
    shutil.copytree(TINY_MODEL, made)
    subprocess.run(
        [sys.executable, "-m", "embed_worker", "export", "--for", "coreml", "--output", str(made), str(made)],
        check=True,
        cwd=ROOT,
        capture_output=True,
        timeout=WAIT_S,
    )
    return made


@pytest.fixture(scope="module")
def cpu(folder: Path) -> OnnxBackend:
    return OnnxBackend.load(plan_of(folder), RuntimeOptions(), threads=1)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.load(plan_of(folder))


def plan_of(folder: Path, **changes: Any) -> ModelPlan:
    return replace(read_model_folder(folder, ModelOptions(name_or_path=folder.name)), **changes)


@dataclass(eq=False)
class Rig:
    """A backend between a fake CoreML and the real CPU, and everything that a test wants to look at."""

    backend: Backend
    provider: FakeProvider
    cpu: TimedBackend
    environment: CoremlEnvironment

    @property
    def coreml(self) -> CoremlBackend:
        assert isinstance(self.backend, CoremlBackend)
        return self.backend

    @property
    def children(self) -> InlineChildren:
        assert isinstance(self.environment.children, InlineChildren)
        return self.environment.children

    @property
    def info(self) -> dict[str, Any]:
        return dict(vars(self.backend.provider))

    def bucket(self, shape: Shape = SMALLEST) -> dict[str, Any]:
        """Say what `info` tells of a shape."""
        return next(b for b in self.info["buckets"] if (b["batch"], b["length"]) == (shape.batch, shape.length))

    def ask(self, rows: int = 1, tokens: int = 32, *, seed: int = 0) -> tuple[Float32, Float32]:
        """Embed a batch, and give beside it what the CPU alone gives."""
        batch = batch_of(rows, tokens, seed)
        return self.backend.embed(batch, exclusive=False), self.cpu.inner.embed(batch, exclusive=False)

    def settle(self, rows: int = 1, tokens: int = 32) -> None:
        """Ask for a shape and wait for its verdict."""
        self.ask(rows, tokens)
        assert self.coreml.wait_for_proofs(WAIT_S)


class Rigs:
    """Makes rigs on one model and one cache, and closes them."""

    def __init__(self, folder: Path, cpu: OnnxBackend, tokenizer: TextTokenizer, cache: Path) -> None:
        self.folder, self.cpu, self.tokenizer, self.cache = folder, cpu, tokenizer, cache
        self.made: list[Rig] = []

    def __call__(
        self,
        fault: Fault = Fault.NONE,
        *,
        plan: ModelPlan | None = None,
        is_started: bool = True,
        environment: dict[str, Any] | None = None,
        **runtime: Any,
    ) -> Rig:
        plan = plan_of(self.folder) if plan is None else plan
        provider = FakeProvider(fault)
        machine = fake_environment(provider, self.cache, **(environment or {}))
        timed = TimedBackend(self.cpu, provider.clock)
        options = RuntimeOptions(**runtime)
        backend = accelerate(cast(OnnxBackend, timed), plan, self.tokenizer, options, machine)
        rig = Rig(backend, provider, timed, machine)
        if is_started:
            backend.use_all_cores()
        self.made.append(rig)
        return rig


@pytest.fixture
def _proofs() -> None:
    """An onnxruntime with which something can be proved."""
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("where a graph runs is told by onnxruntime 1.24.1, and CoreML itself needs 1.28")


@pytest.fixture
def rigs(_proofs: None, folder: Path, cpu: OnnxBackend, tokenizer: TextTokenizer, tmp_path: Path) -> Iterator[Rigs]:
    rigs = Rigs(folder, cpu, tokenizer, tmp_path / "cache")
    yield rigs
    for rig in rigs.made:
        rig.backend.close()


def batch_of(rows: int, tokens: int, seed: int = 0) -> TokenBatch:
    """Make a batch with padding, its first row full."""
    random = np.random.default_rng(seed)
    lengths = np.maximum(1, random.integers(0, tokens, rows, endpoint=True))
    lengths[0] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return TokenBatch(random.integers(5, 1000, (rows, tokens)) * mask, mask)


# Rule 1: the gate

BLANK = Path("/Users/u/My Caches")
REFUSING_HOSTS = [
    ({"system": "linux"}, "needs macOS on Apple silicon, and this is linux on arm64"),
    ({"machine": "x86_64"}, "needs macOS on Apple silicon, and this is darwin on x86_64"),
    ({"macos": "13.7.2"}, "needs macOS 14, and this is 13.7.2"),
    ({"macos": ""}, "needs macOS 14"),
    ({"onnxruntime": "1.27.9"}, "needs onnxruntime 1.28, and this is 1.27.9"),
    ({"onnxruntime": "1.3.0"}, "needs onnxruntime 1.28"),
    ({"providers": [CPU]}, "this onnxruntime has no CoreMLExecutionProvider"),
    ({"cache": None}, "there is no home to keep compiled models in"),
    ({"cache": BLANK}, f"CoreML cannot keep compiled models in {BLANK}: --coreml-cache"),
    ({"cache": Path("/Users/jörg/Library")}, "--coreml-cache names a folder of plain letters"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSING_HOSTS)
def test_rule_01_what_the_gate_refuses_runs_on_the_cpu_with_the_reason(
    rigs: Rigs, changes: dict[str, Any], reason: str
) -> None:
    host = replace(MAC, **changes)
    rig = rigs(environment={"host": host})
    assert isinstance(rig.backend, TimedBackend)
    assert reason in rig.info["reason"]
    assert rig.provider.calls == []
    with pytest.raises(ConfigError, match=re.escape(reason)):
        rigs(environment={"host": host}, provider="coreml")


@pytest.mark.parametrize("changes", [{}, {"macos": "14.0"}, {"macos": "26.1"}, {"onnxruntime": "1.28.0"}])
def test_rule_01_the_gate_lets_pass_what_can_be_proved(changes: dict[str, Any]) -> None:
    assert unsupported_reason(replace(MAC, **changes)) is None


def test_a_runtime_that_cannot_say_where_a_graph_runs_is_told_by_its_version(tmp_path: Path) -> None:
    session = StaticSession(tmp_path, provider=CPU, options={}, dimensions={}, factory=lambda *_, **__: object())
    with pytest.raises(PlacementUnknownError, match=r"onnxruntime 1\.24\.1 and newer, and this is \d"):
        session.placement()


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac the gate may be open")
def test_rule_01_this_machine_is_told_that_it_is_no_mac() -> None:
    status, (answer,), _ = run_worker(lines_of({"id": 1, "method": "info"}), "--provider", "coreml")
    assert (status, answer["code"]) == (78, "model_load_failed")
    assert "CoreML needs macOS" in answer["message"]
    _, (info,), _ = run_worker(lines_of({"id": 1, "method": "info"}))
    assert (info["provider"]["asked"], info["provider"]["chosen"]) == ("auto", CPU)
    assert "needs a Mac" in info["provider"]["reason"]


@pytest.mark.parametrize(
    ("pooling", "changes", "reason"),
    [
        ((PoolingMode.MAX,), {}, "pooling by max is no single matrix product"),
        ((PoolingMode.MEAN, PoolingMode.CLS), {}, "pooling by mean, cls is no single"),
        ((PoolingMode.MEAN,), {"is_end_to_end": True}, "pools by itself"),
        ((PoolingMode.MEAN,), {"scales_by_batch": True}, "quantised"),
    ],
)
def test_a_model_that_has_no_graph_of_that_form_runs_on_the_cpu(
    rigs: Rigs, pooling: tuple[PoolingMode, ...], changes: dict[str, bool], reason: str
) -> None:
    provider = FakeProvider()
    timed = TimedBackend(rigs.cpu, provider.clock)
    for name, value in changes.items():
        setattr(timed, name, value)
    plan = plan_of(rigs.folder, pooling=pooling)
    environment = fake_environment(provider, rigs.cache)
    backend = accelerate(cast(OnnxBackend, timed), plan, TextTokenizer.load(plan), RuntimeOptions(), environment)
    assert isinstance(backend, TimedBackend)
    assert reason in backend.provider.reason


# Rules 2 and 3: how the session is opened


@pytest.mark.parametrize("units", CoremlUnits)
def test_rule_02_options_are_the_four_strings(rigs: Rigs, units: CoremlUnits) -> None:
    rig = rigs(provider="coreml", coreml_units=units)
    for call in rig.provider.calls:
        (name, options), *others = call.providers
        assert (name, others) == (COREML, [CPU])
        assert options == {
            "ModelFormat": "MLProgram",
            "MLComputeUnits": str(units),
            "RequireStaticInputShapes": "1",
            "ModelCacheDirectory": options["ModelCacheDirectory"],
        }
        assert {type(value) for value in options.values()} == {str}
        assert Path(options["ModelCacheDirectory"]).parent == rigs.cache
    assert {str(units) for units in CoremlUnits} == {"ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine"}


def test_rule_03_there_is_no_silent_fallback_and_no_other_graph(rigs: Rigs, folder: Path) -> None:
    rig = rigs(provider="coreml")
    assert rig.provider.calls
    for call in rig.provider.calls:
        assert call.kwargs == {"enable_fallback": 0, "disabled_optimizers": ["MatMulAddFusion"]}
        assert call.path == str(folder / "coreml" / "model.onnx")


# Rule 4: buckets


def test_rule_04_a_batch_goes_to_the_smallest_bucket_that_takes_it() -> None:
    assert {(shape.batch, shape.length) for shape in SHAPES} == set(itertools.product((1, 8), (32, 64, 128, 256, 512)))
    for rows, tokens in itertools.product(range(1, 10), (1, 31, 32, 33, 256, 257, 511, 512, 513)):
        fitting = [shape for shape in SHAPES if shape.batch >= rows and shape.length >= tokens]
        expected = min(fitting, key=lambda shape: shape.batch * shape.length, default=None)
        assert shape_for(rows, tokens) == expected, (rows, tokens)


def test_rule_04_every_input_has_fixed_dimensions(rigs: Rigs) -> None:
    rig = rigs(provider="coreml")
    rig.settle(8, 60)
    sessions = [call.settings for call in rig.provider.calls]
    assert len(sessions) == 6  # for each of two shapes, two in the child and one that serves
    assert rig.bucket(SMALLEST)["state"] == rig.bucket(Shape(8, 64))["state"] == "proved"


def test_rule_04_a_wrong_name_of_a_dimension_is_not_overlooked(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml_proof, "LENGTH_DIMENSION", "sequence")
    rig = rigs()
    rig.settle()
    assert rig.bucket()["state"] == "refused"
    assert "has a dimension that is not fixed" in rig.bucket()["reason"]
    # And where a finished entry skips the child:
    monkeypatch.undo()
    proved = rigs()
    Entry(next(rigs.cache.glob("*.json")).with_suffix("")).remember(ProofVerdict(state=ProofState.PROVED))
    proved.settle()
    monkeypatch.setattr(coreml_proof, "LENGTH_DIMENSION", "sequence")
    again = rigs(environment={"children": InlineChildren(proved.provider)})
    again.settle()
    assert again.bucket()["state"] == "refused"


def test_rule_04_buckets_are_built_when_a_batch_asks_for_them(rigs: Rigs) -> None:
    rig = rigs()
    assert rig.provider.calls == []
    assert rig.info["buckets"] == []
    rig.settle(3, 40)
    assert [(bucket["batch"], bucket["length"]) for bucket in rig.info["buckets"]] == [(8, 64)]


def test_rule_04_a_session_is_closed_for_another_once_it_is_idle(rigs: Rigs) -> None:
    rig = rigs(environment={"max_session_bytes": 1})
    rig.settle(1, 32)
    rig.settle(8, 32)
    assert (rig.bucket()["state"], rig.bucket(FULL)["state"]) == ("proved", "untried")
    assert "no memory for another session" in rig.bucket(FULL)["reason"]
    rig.provider.clock.advance(61)
    rig.settle(8, 32)
    assert (rig.bucket()["state"], rig.bucket(FULL)["state"]) == ("untried", "proved")
    assert "no batch of this shape has come for a while" in rig.bucket()["reason"]
    gc.collect()
    assert rig.provider.opened == 1
    rig.provider.clock.advance(61)
    tasks = len(rig.children.tasks)
    rig.settle(1, 32)
    assert (rig.bucket()["state"], rig.bucket()["cache_hit"]) == ("proved", True)
    assert len(rig.children.tasks) == tasks


# Rule 5: the dedicated graph


def test_rule_05_vectors_are_the_cpus_with_padding_and_partial_batches(rigs: Rigs) -> None:
    rig = rigs()
    rig.cpu.run_s *= 1000  # every batch is worth it, whatever its share of the bucket
    sizes = list(itertools.product((1, 2, 7, 8, 9, 17), (1, 31, 32, 33, 128)))
    for rows, tokens in sizes:
        rig.settle(rows, tokens)
    before = len(rig.cpu.runs)
    for rows, tokens in sizes:
        served, expected = rig.ask(rows, tokens, seed=1)
        np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5, err_msg=f"{rows} x {tokens}")
    assert len(rig.cpu.runs) == before


def test_rule_05_every_input_is_float(folder: Path) -> None:
    session = onnxruntime.InferenceSession(str(folder / "coreml" / "model.onnx"), providers=[CPU])
    assert {node.type for node in session.get_inputs()} == {"tensor(float)"}


def test_rule_05_prompts_that_pooling_leaves_out_are_left_out(rigs: Rigs) -> None:
    rig = rigs(provider="coreml")
    batch = replace(batch_of(1, 20), skipped=np.array([5]))
    served = rig.backend.embed(batch, exclusive=True)
    np.testing.assert_allclose(served, rig.cpu.inner.embed(batch, exclusive=True), rtol=0, atol=1e-5)
    assert np.abs(served - rig.cpu.inner.embed(batch_of(1, 20), exclusive=True)).max() > 1e-3


def test_rule_05_a_graph_that_is_not_there_is_made_in_the_cache_once(rigs: Rigs) -> None:
    plan = plan_of(TINY_MODEL)
    rig = rigs(plan=plan, environment={"children": ChildOfInline(FakeProvider())})
    rig.settle()
    assert rig.bucket()["state"] == "proved", rig.bucket()
    graph = Path(rig.provider.calls[-1].path)
    assert graph.is_relative_to(rigs.cache)
    assert not (TINY_MODEL / "coreml").exists()
    again = rigs(plan=plan)
    again.settle()
    assert again.bucket()["state"] == "proved"
    assert [task.kind for task in again.children.tasks] == []


class ChildOfInline(InlineChildren):
    """Exports in a real child, and compiles inline."""

    def run(self, task: ChildTask, limit_s: float) -> None:
        if task.kind == "export":
            ChildRunner().run(task, WAIT_S)
        else:
            super().run(task, limit_s)


def test_rule_05_without_onnx_the_reason_names_what_to_install(rigs: Rigs) -> None:
    rig = rigs(plan=plan_of(TINY_MODEL), environment={"host": replace(MAC, has_onnx=False)})
    for rows in (1, 8):
        rig.settle(rows)
    assert [bucket["state"] for bucket in rig.info["buckets"]] == ["refused", "refused"]
    assert "install the extra `tools`" in rig.bucket()["reason"]
    with pytest.raises(ModelError, match="extra `tools`"):
        rigs(plan=plan_of(TINY_MODEL), environment={"host": replace(MAC, has_onnx=False)}, provider="coreml")
    assert list(rigs.cache.glob("*.json")) == []  # installing it is enough


def test_an_id_beyond_the_table_fails_its_batch_and_not_the_bucket(rigs: Rigs) -> None:
    rig = rigs(provider="coreml")
    ids = np.full((1, 32), 10**6)
    with pytest.raises(Exception, match="out of data bounds"):
        rig.backend.embed(TokenBatch(ids, np.ones_like(ids)), exclusive=True)
    assert rig.bucket()["state"] == "proved"


def test_a_batch_longer_than_every_bucket_is_the_cpus(rigs: Rigs, cpu: OnnxBackend) -> None:
    rig = rigs()
    with pytest.raises(Exception, match=r"."):  # the tiny model has 160 positions
        rig.ask(1, 513)
    assert rig.info["buckets"] == []


# Rule 7: the cache


@pytest.mark.parametrize(
    ("runtime", "host"),
    [
        ({"coreml_units": CoremlUnits.CPU_AND_GPU}, {}),
        ({"coreml_precision": CoremlPrecision.FP16}, {}),
        ({}, {"onnxruntime": "1.32.0"}),
        ({}, {"macos_build": "24C101"}),
    ],
)
def test_rule_07_whatever_a_compiled_model_depends_on_has_a_folder_of_its_own(
    rigs: Rigs, runtime: dict[str, Any], host: dict[str, Any]
) -> None:
    folders = set()
    for options, changes in (({}, {}), (runtime, host)):
        rig = rigs(provider="coreml", environment={"host": replace(MAC, **changes)}, **options)
        rig.settle(8, 32)
        folders |= {call.providers[0][1]["ModelCacheDirectory"] for call in rig.provider.calls}
    assert len(folders) == 4


def test_rule_07_another_graph_has_a_folder_of_its_own(rigs: Rigs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(rigs.folder, other)
    described = other / "coreml" / "coreml.json"
    description = json.loads(described.read_text())
    described.write_text(json.dumps(description | {"graph_sha256": "0" * 64}))
    names = set()
    for plan in (plan_of(rigs.folder), plan_of(other)):
        names |= {
            call.providers[0][1]["ModelCacheDirectory"] for call in rigs(plan=plan, provider="coreml").provider.calls
        }
    assert len(names) == 2
    assert any("0" * 16 in name for name in names)


def test_rule_07_a_variant_that_coreml_cannot_match_does_not_condemn_the_others(rigs: Rigs, tmp_path: Path) -> None:
    rough = tmp_path / "model_q4.onnx"
    rough.write_bytes(b"")
    bad = rigs(Fault.WRONG, plan=plan_of(rigs.folder, graph=rough))
    bad.settle()
    assert bad.bucket()["state"] == "refused"
    good = rigs()
    good.settle()
    assert good.bucket()["state"] == "proved"


def test_rule_07_an_entry_is_complete_once_it_has_run(rigs: Rigs) -> None:
    rig = rigs(Fault.RUN_RAISES)
    rig.settle()
    assert "code -6" in rig.bucket()["reason"]
    assert not any(path.is_dir() for path in rigs.cache.iterdir())
    rig = rigs(environment={"host": replace(MAC, macos_build="another")})
    rig.settle()
    (entry,) = (Entry(path) for path in rigs.cache.iterdir() if path.is_dir())
    assert entry.is_complete
    assert len(list(entry.folder.rglob("compiled_model.mlmodelc"))) == 1


def test_rule_07_what_nobody_finished_is_removed_at_the_start_unless_somebody_is_at_it(rigs: Rigs) -> None:
    left, busy, done = (Entry(rigs.cache / name) for name in ("left", "busy", "done"))
    for entry in (left, busy, done):
        entry.folder.mkdir(parents=True)
        (entry.folder / "part").write_bytes(b"x")
    done.mark_complete()
    with busy.locked(wait=False) as is_ours:
        assert is_ours
        rigs(provider="coreml")
        assert [entry.folder.exists() for entry in (left, busy, done)] == [False, True, True]
    rigs(provider="coreml")
    assert not busy.folder.exists()


def test_rule_07_a_lock_is_held_against_others_until_it_is_let_go(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry")
    code = f"""
from pathlib import Path
from embed_worker.accelerators.coreml.cache import Entry
with Entry(Path({str(entry.folder)!r})).locked(wait=False) as is_ours:
    print(is_ours)
"""

    def try_elsewhere() -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=WAIT_S, check=True)
        return done.stdout.decode().strip()

    with entry.locked(wait=True) as is_ours:
        assert is_ours
        assert try_elsewhere() == "False"
    assert try_elsewhere() == "True"


def test_rule_07_a_cache_that_went_bad_is_made_anew_once(rigs: Rigs) -> None:
    rigs(provider="coreml")
    assert len(list(rigs.cache.glob("*/.complete"))) == 1
    rig = rigs()
    (marked,) = rigs.cache.rglob("compiled_model.mlmodelc")
    rig.provider.fault = Fault.ZEROS
    rig.children.before = lambda: setattr(rig.provider, "fault", Fault.NONE)  # what is compiled anew is good
    rig.settle()
    assert len(rig.children.tasks) == 1
    assert (rig.bucket()["state"], rig.bucket()["cache_hit"]) == ("proved", False)
    assert marked.exists()


def test_rule_07_a_cache_that_stays_bad_is_given_up_after_one_rebuild(rigs: Rigs) -> None:
    rigs(provider="coreml")
    rig = rigs(Fault.ZEROS)
    rig.settle()
    assert len(rig.children.tasks) == 1
    assert rig.bucket()["state"] == "refused"
    assert not any(path.is_dir() for path in rigs.cache.iterdir())


def test_rule_07_a_model_that_was_moved_is_not_compiled_again(rigs: Rigs, tmp_path: Path) -> None:
    """The provider names its folder by the path of a graph that has no key, and would compile in the worker."""
    rigs(provider="coreml")
    moved = tmp_path / "elsewhere" / rigs.folder.name
    shutil.copytree(rigs.folder, moved)
    rig = rigs(plan=plan_of(moved), provider="coreml")
    assert rig.bucket()["cache_hit"] is True
    assert rig.children.tasks == []
    (kept,) = rigs.cache.rglob("compiled_model.mlmodelc")
    assert kept.parents[2].name.isalnum()
    assert len(kept.parents[2].name) <= 64


def test_rule_07_a_mark_without_what_was_compiled_is_not_believed(rigs: Rigs) -> None:
    rigs(provider="coreml")
    (kept,) = rigs.cache.rglob("compiled_model.mlmodelc")
    kept.unlink()
    rig = rigs(provider="coreml")
    assert (rig.bucket()["cache_hit"], len(rig.children.tasks)) == (False, 1)


def test_rule_07_a_provider_that_keeps_nothing_is_found_out_by_the_child(rigs: Rigs) -> None:
    rig = rigs(Fault.KEEPS_NOTHING)
    rig.settle()
    assert rig.bucket()["state"] == "refused"
    assert "the provider has kept nothing of what it compiled" in rig.bucket()["reason"]
    assert rig.provider.opened == 0


def test_rule_07_a_graph_of_other_weights_in_the_folder_is_not_used(
    rigs: Rigs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = tmp_path / "changed" / rigs.folder.name
    shutil.copytree(rigs.folder, changed)
    (changed / "config.json").write_bytes((changed / "config.json").read_bytes() + b" ")
    rig = rigs(plan=plan_of(changed))
    rig.settle()
    assert rig.bucket()["state"] == "proved"
    assert Path(rig.provider.calls[-1].path).is_relative_to(rigs.cache)
    assert "it was made of other weights" in caplog.text


def test_rule_07_what_other_weights_were_refused_for_is_forgotten_with_them(rigs: Rigs, tmp_path: Path) -> None:
    """The graph has the same name and the same size, whatever its weights are."""
    folder = tmp_path / "changed" / rigs.folder.name
    shutil.copytree(rigs.folder, folder)
    graph = plan_of(folder).graph
    right = graph.read_bytes()
    graph.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    bad = rigs(Fault.WRONG, plan=plan_of(folder))
    bad.settle()
    assert bad.bucket()["state"] == "refused"
    graph.write_bytes(right)
    good = rigs(plan=plan_of(folder))
    good.settle()
    assert good.bucket()["state"] == "proved"


@pytest.mark.skipif(sys.platform == "win32", reason="a user of Windows has no number")
def test_rule_07_the_usual_cache_is_one_that_coreml_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for users, expected in (
        (Path("/Users/u/Library/Caches/embed-bridge"), "/Users/u/Library/Caches/embed-bridge/coreml"),
        (Path("/Users/Jörg Ö/Library/Caches/embed-bridge"), f"/var/tmp/embed-bridge-{os.getuid()}/coreml"),
    ):
        monkeypatch.setattr(coreml_environment, "cache_dir", lambda users=users: users)
        assert coreml_environment.environment_of(RuntimeOptions()).cache == Path(expected)


def test_rule_07_the_least_recently_used_go_first_when_the_cache_is_too_large(tmp_path: Path) -> None:
    entries = [Entry(tmp_path / str(number)) for number in range(4)]
    for age_s, entry in enumerate(reversed(entries)):
        entry.folder.mkdir()
        (entry.folder / "model").write_bytes(b"x" * 1000)
        entry.mark_complete()
        os.utime(entry.folder / ".complete", (1e9 - age_s, 1e9 - age_s))
    sweep(tmp_path, 2500, in_use={entries[0].folder})
    assert [entry.folder.exists() for entry in entries] == [True, False, False, True]
    sweep(tmp_path, 0)
    assert not any(entry.folder.exists() for entry in entries)


def test_rule_07_a_start_keeps_the_cache_below_its_size(rigs: Rigs) -> None:
    rig = rigs(provider="coreml", environment={"max_cache_bytes": 1500})
    rig.settle(8, 32)  # what is open stays
    assert len(list(rigs.cache.glob("*/.complete"))) == 2
    rigs(provider="coreml", environment={"max_cache_bytes": 1500})
    assert len(list(rigs.cache.glob("*/.complete"))) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"state":"proved","x":1}', b'{"state":"happy"}', b'{"reason":""}']
)
def test_rule_07_a_damaged_verdict_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "entry.json").write_bytes(content)
    assert Entry(tmp_path / "entry").verdict() is None


def test_rule_07_a_cache_that_cannot_be_written_leaves_the_cpu(rigs: Rigs) -> None:
    rigs.cache.write_bytes(b"a file, where a folder should be")
    rig = rigs()
    rig.settle()
    assert rig.bucket()["state"] == "refused"
    served, expected = rig.ask()
    np.testing.assert_array_equal(served, expected)


# Rules 8, 9 and 10: the proof

FAULTS = [
    (Fault.PIECES, "takes the graph in 24 pieces"),
    (Fault.NOTHING, "takes the graph in 0 pieces"),
    (Fault.FEW_NODES, "nodes"),
    (Fault.RAISES, "no such feature"),
    (Fault.RUN_RAISES, "Error in predicting: code -6"),
    (Fault.ZEROS, "gives vectors of length 0"),
    (Fault.NAN, "gives values that are not finite"),
    (Fault.TINY, "gives vectors of length 0.0"),
    (Fault.WRONG, "differs from the CPU: a cosine is"),
    (Fault.WRONG_WITH_PADDING, "differs from the CPU"),
    (Fault.WRONG_WHEN_FULL, "differs from the CPU"),
    (Fault.WRONG_SHAPE, "gives an output of shape"),
    (Fault.SLOW, "it takes 2.00 of the CPU's time, where at most 0.9 is worth it"),
]


def assert_refused(rigs: Rigs, fault: Fault, reason: str) -> Rig:
    """Check that a fault leads to the CPU with its reason, now and at the next start, and is not tried again."""
    rig = rigs(fault)
    rig.settle()
    found = rig.bucket()
    assert reason in found["reason"]
    assert found["state"] == ("slower" if fault is Fault.SLOW else "refused")
    assert rig.info["chosen"] == CPU
    assert reason in rig.info["reason"]
    runs = len(rig.cpu.runs)
    served, expected = rig.ask(seed=3)
    np.testing.assert_array_equal(served, expected)
    assert len(rig.cpu.runs) == runs + 1

    again = rigs(fault)
    again.settle()
    assert again.bucket()["reason"] == found["reason"]
    assert (again.children.tasks, again.provider.calls) == ([], [])
    gc.collect()
    assert rig.provider.opened == 0
    return rig


@pytest.mark.parametrize(("fault", "reason"), FAULTS[:3])
def test_rule_08_placement_is_proved_by_what_runs_where(rigs: Rigs, fault: Fault, reason: str) -> None:
    rig = assert_refused(rigs, fault, reason)
    found = rig.bucket()
    assert found["partitions"] == {Fault.PIECES: 24, Fault.NOTHING: 0, Fault.FEW_NODES: 1}[fault]
    assert found["coreml_nodes"] <= found["nodes"]
    for call in rig.provider.calls:
        assert call.settings.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


@pytest.mark.parametrize(("fault", "reason"), FAULTS[3:-1])
def test_rule_09_vectors_are_compared_before_they_are_served(rigs: Rigs, fault: Fault, reason: str) -> None:
    assert_refused(rigs, fault, reason)


def test_rule_09_every_bucket_is_compared_when_full_and_with_padding(rigs: Rigs) -> None:
    for fault in (Fault.WRONG_WITH_PADDING, Fault.WRONG_WHEN_FULL):
        rig = rigs(fault, environment={"host": replace(MAC, macos_build=fault.name)})
        for rows, tokens in ((1, 32), (8, 32), (8, 64)):
            rig.settle(rows, tokens)
        assert [bucket["state"] for bucket in rig.info["buckets"]] == ["refused"] * 3


def test_rule_09_a_start_compares_again_what_an_earlier_one_proved(rigs: Rigs) -> None:
    rigs(provider="coreml")
    with pytest.raises(ModelError, match="1x32: CoreML gives vectors of length 0"):
        rigs(Fault.ZEROS, provider="coreml")


def test_rule_10_only_what_is_faster_is_kept(rigs: Rigs) -> None:
    rig = assert_refused(rigs, *FAULTS[-1])
    assert rig.bucket()["speed_ratio"] == pytest.approx(2)
    assert (rig.bucket()["coreml_ms"], rig.bucket()["cpu_ms"]) == (2 * CPU_S * 1e3, CPU_S * 1e3)
    (verdict,) = rigs.cache.glob("*.json")
    assert json.loads(verdict.read_text())["state"] == "slower"


def test_rule_10_the_time_is_measured_once_for_all_starts(rigs: Rigs) -> None:
    first = rigs(provider="coreml")
    assert first.bucket()["speed_ratio"] == pytest.approx(COREML_S / CPU_S)
    again = rigs(Fault.SLOW, provider="coreml")
    assert again.bucket()["speed_ratio"] == pytest.approx(COREML_S / CPU_S)
    assert len(again.cpu.runs) == len(first.cpu.runs) - 5


def test_rule_10_the_cpu_is_timed_with_all_its_cores(rigs: Rigs) -> None:
    assert rigs(provider="coreml", is_started=False).cpu.widened == 1
    assert rigs(provider="coreml").cpu.widened == 1
    assert rigs(is_started=False).cpu.widened == 0


def test_rule_10_a_batch_that_would_be_mostly_padding_is_the_cpus(rigs: Rigs) -> None:
    assert is_worth(0.9, 8, 32, FULL)
    assert not is_worth(0.91, 8, 32, FULL)
    assert is_worth(0.2, 2, 32, FULL)
    assert not is_worth(0.3, 2, 32, FULL)
    rig = rigs()
    rig.settle(8, 32)
    for rows, is_on_cpu in ((8, False), (2, False), (1, True)):
        before = len(rig.cpu.runs)
        rig.ask(rows, 30 if rows == 8 else 32)
        assert (len(rig.cpu.runs) > before) == is_on_cpu, rows
    before = len(rig.cpu.runs)
    rig.ask(2, 16)
    assert len(rig.cpu.runs) == before + 1


# Rule 11: the child


def test_rule_11_no_request_waits_for_a_compile(rigs: Rigs) -> None:
    rig = rigs()
    opened, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        opened.wait(WAIT_S)

    rig.children.before = wait
    try:
        for seed in range(3):
            served, expected = rig.ask(seed=seed)
            np.testing.assert_array_equal(served, expected)
            assert entered.wait(WAIT_S)
        assert rig.bucket()["state"] == "proving"
        assert "being compiled" in rig.info["reason"]
        assert not rig.coreml.wait_for_proofs(0)
    finally:
        opened.set()
    assert rig.coreml.wait_for_proofs(WAIT_S)
    before = len(rig.cpu.runs)
    served, expected = rig.ask(seed=9)
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)
    assert len(rig.cpu.runs) == before
    assert rig.info["chosen"] == COREML
    assert len(rig.children.tasks) == 1


CHILDREN = [
    ("import os; os.abort()", "SIGABRT" if os.name == "posix" else "ended with status", True),
    ("import os, signal; os.kill(os.getpid(), 9)", "SIGKILL" if os.name == "posix" else "ended with status", True),
    ("import threading; threading.Event().wait()", "took longer than 0.3 s", True),
    ("print('{\"id\":1}'); raise SystemExit('MLModel: broken')", "ended with status 1: MLModel: broken", True),
    ("raise SystemExit(3)", "ended with status 3: it said nothing", True),
    ("import sys; sys.stderr.write('OSError: disk full\\n'); sys.exit(75)", "disk full", False),
    *([("import os; os.kill(os.getpid(), 15)", "SIGTERM", False)] if os.name == "posix" else []),
]


@pytest.mark.parametrize(("code", "reason", "is_remembered"), CHILDREN)
def test_rule_11_a_child_that_dies_or_hangs_costs_a_verdict(
    rigs: Rigs, capfd: pytest.CaptureFixture[str], code: str, reason: str, is_remembered: bool
) -> None:
    children = ChildRunner([sys.executable, "-S", "-E", "-c", code])
    rig = rigs(environment={"children": children, "compile_limit_s": 0.3 if "Event" in code else WAIT_S})
    rig.settle()
    assert rig.bucket()["state"] == "refused"
    assert rig.bucket()["reason"].startswith("compiling it failed: it ")
    assert reason in rig.bucket()["reason"]
    served, expected = rig.ask()
    np.testing.assert_array_equal(served, expected)
    again = rigs()
    again.settle()
    assert again.bucket()["state"] == ("refused" if is_remembered else "proved")
    assert (reason in again.bucket()["reason"]) == is_remembered
    assert capfd.readouterr() == ("", "")


def test_rule_11_a_program_that_cannot_be_started_costs_no_lasting_verdict(rigs: Rigs) -> None:
    rig = rigs(environment={"children": ChildRunner([str(rigs.folder / "no-such-program")])})
    rig.settle()
    assert "it could not be started" in rig.bucket()["reason"]
    assert list(rigs.cache.glob("*.json")) == []


def test_rule_11_the_child_ends_with_its_parent() -> None:
    """A worker that is killed cannot kill its child; the end of the child's input tells it."""
    code = """
import json, sys, threading
from embed_worker.accelerators.coreml import child as coreml_compile
coreml_compile.perform = lambda task, factory: (print("begun", flush=True), threading.Event().wait())
coreml_compile.main([json.dumps({"kind": "compile", "entry": "e", "source": "s"})])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun" + os.linesep.encode()
            process.stdin.close()
            assert process.wait(WAIT_S) == 1
        finally:
            process.kill()


def test_rule_11_a_child_leaves_alone_what_another_has_done(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry")
    entry.folder.mkdir()
    entry.mark_complete()
    ChildRunner().run(ChildTask("compile", str(entry.folder), "nowhere"), WAIT_S)
    with pytest.raises(ChildFailedError, match="it ended with status"):
        ChildRunner().run(ChildTask("compile", str(tmp_path / "other"), "nowhere"), WAIT_S)
    assert not Entry(tmp_path / "other").is_complete


def test_rule_11_stopping_kills_the_child_and_blames_nobody(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    children = ChildRunner([sys.executable, "-S", "-E", "-c", "import threading; threading.Event().wait()"])
    started, ended = threading.Event(), []
    start = children._start

    def start_and_tell(*arguments: Any) -> Any:
        process = start(*arguments)
        started.set()
        return process

    monkeypatch.setattr(children, "_start", start_and_tell)

    def run() -> None:
        try:
            children.run(ChildTask("compile", "entry", "source"), WAIT_S)
        except StoppedError as stopped:
            ended.append(stopped)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(WAIT_S)
    children.stop()
    thread.join(WAIT_S)
    assert len(ended) == 1
    rig = rigs(environment={"children": children})
    rig.settle()
    assert "the worker is ending" in rig.bucket()["reason"]
    assert list(rigs.cache.glob("*.json")) == []


def test_a_batch_of_which_a_part_is_proved_keeps_its_order(rigs: Rigs) -> None:
    rig = rigs()
    rig.settle(1, 32)
    opened = threading.Event()
    rig.children.before = lambda: opened.wait(WAIT_S)
    try:
        before = len(rig.cpu.runs)
        batch = TokenBatch(batch_of(9, 32).ids | 5, np.ones((9, 32), np.int64))
        served, expected = rig.backend.embed(batch, exclusive=False), rig.cpu.inner.embed(batch, exclusive=False)
        np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)
        assert rig.cpu.runs[before:] == [(8, 32)]
    finally:
        opened.set()


# Rule 12: one thread, and an end


def test_rule_12_a_session_has_one_thread(rigs: Rigs) -> None:
    rig = rigs(provider="coreml")
    assert {call.settings.intra_op_num_threads for call in rig.provider.calls} == {1}
    assert {call.settings.inter_op_num_threads for call in rig.provider.calls} == {1}


def test_rule_12_sessions_are_closed_at_the_end_and_the_cpu_serves_what_is_left(rigs: Rigs) -> None:
    rig = rigs(provider="coreml")
    rig.settle(8, 32)
    assert rig.provider.opened == 2
    rig.backend.close()
    gc.collect()
    assert rig.provider.opened == 0
    served, expected = rig.ask()
    np.testing.assert_array_equal(served, expected)
    assert rig.info["chosen"] == CPU
    rig.settle(8, 64)
    assert rig.bucket(Shape(8, 64))["state"] == "untried"


def test_rule_12_an_unloaded_model_leaves_no_session_and_no_thread(rigs: Rigs) -> None:
    before = set(threading.enumerate())
    rig = rigs()
    rig.settle()
    gone = threading.Event()
    weakref.finalize(rig.backend, gone.set)
    provider = rig.provider
    (thread,) = set(threading.enumerate()) - before
    rigs.made.clear()
    del rig
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert gone.wait(WAIT_S)
    gc.collect()
    assert provider.opened == 0


@pytest.mark.parametrize("fault", [Fault.RUN_RAISES, Fault.NAN, Fault.ZEROS])
def test_what_fails_while_it_serves_is_answered_by_the_cpu_and_made_anew_once(rigs: Rigs, fault: Fault) -> None:
    rig = rigs(provider="coreml")
    tasks = len(rig.children.tasks)

    rig.children.before = lambda: setattr(rig.provider, "fault", Fault.NONE)
    for _ in range(2):
        assert rig.bucket()["state"] == "proved"
        rig.provider.fault = fault
        served, expected = rig.ask()
        np.testing.assert_array_equal(served, expected)
        assert rig.coreml.wait_for_proofs(WAIT_S)
        rig.provider.fault = Fault.NONE
    assert rig.bucket()["state"] == "refused"
    assert "while it served" in rig.bucket()["reason"]
    assert len(rig.children.tasks) == tasks + 1
    gc.collect()
    assert rig.provider.opened == 0
    again = rigs()
    again.settle()
    assert "while it served" in again.bucket()["reason"]


# Rule 13: precision


def test_rule_13_float32_is_the_default(rigs: Rigs) -> None:
    rig = rigs(provider="coreml")
    assert RuntimeOptions().coreml_precision is CoremlPrecision.FP32
    assert (rig.info["precision"], rig.backend.precision) == ("fp32", "float32")
    assert not rig.backend.scales_by_batch


def test_rule_13_float16_is_another_graph_behind_the_same_proof(rigs: Rigs) -> None:
    rig = rigs(provider="coreml", coreml_precision=CoremlPrecision.FP16)
    assert rig.bucket()["state"] == "proved"
    assert 0.999 <= rig.bucket()["cosine"] < 1
    assert (rig.backend.precision, rig.backend.scales_by_batch) == ("float16", True)
    served, expected = rig.ask()
    assert 0 < np.abs(served - expected).max() < 0.05
    (graph,) = {call.path for call in rig.provider.calls}
    onnx.checker.check_model(graph)
    session = onnxruntime.InferenceSession(graph, providers=[CPU])
    assert {node.type for node in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    assert Path(graph).stat().st_size < 0.7 * (rigs.folder / "coreml" / "model.onnx").stat().st_size
    with pytest.raises(ModelError, match=r"a cosine is .*, and 0\.999 is needed"):
        rigs(Fault.WRONG, provider="coreml", coreml_precision=CoremlPrecision.FP16)


def test_rule_13_no_norm_divides_by_zero_in_float16(rigs: Rigs) -> None:
    rig = rigs(provider="coreml", coreml_precision=CoremlPrecision.FP16)
    (graph,) = {call.path for call in rig.provider.calls}
    norms = [node for node in onnx.load(graph).graph.node if node.op_type == "LayerNormalization"]
    epsilons = {a.f for node in norms for a in node.attribute if a.name == "epsilon"}
    assert norms
    assert all(np.float16(epsilon) > 0 for epsilon in epsilons)


def test_rule_13_the_precision_does_not_change_while_a_worker_serves(rigs: Rigs) -> None:
    first = rigs(coreml_precision=CoremlPrecision.FP16)
    first.settle()
    assert "from the next start on" in first.bucket()["reason"]
    assert (first.info["chosen"], first.backend.precision) == (CPU, "float32")
    served, expected = first.ask()
    np.testing.assert_array_equal(served, expected)

    second = rigs(coreml_precision=CoremlPrecision.FP16, is_started=False)
    assert (second.info["chosen"], second.backend.precision) == (COREML, "float16")
    assert second.bucket()["cache_hit"] is True
    assert second.children.tasks == []
    second.provider.fault = Fault.RUN_RAISES
    served, expected = second.ask()
    np.testing.assert_array_equal(served, expected)
    assert second.bucket()["state"] == "refused"

    third = rigs(coreml_precision=CoremlPrecision.FP16, is_started=False)
    assert third.info["buckets"] == []


# Rules 14 and 15: what is asked for, and what is told


def test_rule_14_auto_never_fails(rigs: Rigs) -> None:
    for fault in (Fault.RAISES, Fault.ZEROS, Fault.PIECES):
        rig = rigs(fault, environment={"host": replace(MAC, macos_build=fault.name)})
        rig.settle()
        assert rig.info["asked"] == "auto"
        assert rig.info["chosen"] == CPU


@pytest.mark.parametrize(("fault", "reason"), FAULTS[:-1])
def test_rule_14_coreml_by_name_fails_loudly_with_the_reason(rigs: Rigs, fault: Fault, reason: str) -> None:
    with pytest.raises(ModelError, match=re.escape(reason)) as refused:
        rigs(fault, provider="coreml")
    assert "--provider coreml: 1x32:" in str(refused.value)
    assert str(rigs.cache) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rule_14_coreml_by_name_may_be_slower(rigs: Rigs) -> None:
    rig = rigs(Fault.SLOW, provider="coreml")
    assert (rig.info["chosen"], rig.bucket()["state"]) == (CPU, "slower")


def test_rule_15_info_tells_what_was_asked_found_and_chosen(rigs: Rigs) -> None:
    rig = rigs(provider="CoreML")
    rig.settle(8, 32)
    info = rig.info
    assert json.loads(json.dumps(info)) == info
    found = info.pop("buckets")
    assert info == {
        "asked": "CoreML",
        "chosen": COREML,
        "reason": "proved on this machine for batches of up to 1x32, 8x32 (texts x tokens)",
        "units": "ALL",
        "precision": "fp32",
        "cache": str(rigs.cache),
    }
    for bucket, shape in zip(found, (SMALLEST, FULL), strict=True):
        assert bucket.pop("cosine") > 0.99999
        assert bucket.pop("nodes") == bucket.pop("coreml_nodes") > 40
        assert bucket == {
            "batch": shape.batch,
            "length": shape.length,
            "state": "proved",
            "reason": "its vectors are the CPU's, and it takes 0.20 of the CPU's time",
            "cache_hit": False,
            "build_ms": pytest.approx(2 * COREML_S * 1e3),
            "partitions": 1,
            "coreml_ms": COREML_S * 1e3,
            "cpu_ms": CPU_S * 1e3,
            "speed_ratio": pytest.approx(COREML_S / CPU_S),
        }
    again = rigs(provider="coreml")
    assert again.bucket()["cache_hit"] is True
    assert again.bucket()["build_ms"] == pytest.approx(2 * COREML_S * 1e3)


def test_rule_15_the_page_explains_every_member_and_every_state() -> None:
    page = (ROOT / "docs" / "apple-silicon.md").read_text("utf-8")
    for name in (
        *ProofVerdict.__dataclass_fields__,
        *vars(CoremlReport)["__dataclass_fields__"],
        "speed_ratio",
        *ProofState,
    ):
        assert f"`{name}`" in page or f'"{name}"' in page, name
    for number in (120, 0.95, 0.9995, 0.999, 0.9):
        assert (f"{number:g}" if number != 0.95 else "95 %") in page


# Through a real worker, between real pipes


class FakeMac:
    """A worker process whose CoreML is the fake one, in the worker and in its child."""

    def __init__(self, fault: Fault, folder: Path, cache: Path, provider: str) -> None:
        program = [sys.executable, "-m", "tests.worker.coreml_fakes", "serve", fault, str(cache)]
        self.process = subprocess.Popen(
            [*program, "--provider", provider, "--model", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(lines_of({"id": 1, **message}))
        self.process.stdin.flush()
        return parse_answer(self.process.stdout.readline())

    def bucket(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(method="info")["provider"]["buckets"][0]
        return found

    def finish(self) -> tuple[int, bytes, str]:
        """End its input; return the status, the rest of its output, and its standard error."""
        rest, stderr = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, rest, stderr.decode()


TEXTS = ["a text of some words", "another"]


@pytest.fixture(scope="module")
def expected(cpu: OnnxBackend, folder: Path) -> Float32:
    _, (answer,), _ = run_worker(lines_of({"id": 1, "inputs": TEXTS}), "--provider", "cpu", model=folder)
    return matrix_of(answer)


@pytest.mark.usefixtures("_proofs")
def test_rule_03_a_provider_that_prints_does_not_reach_the_wire(
    folder: Path, tmp_path: Path, expected: Float32
) -> None:
    worker = FakeMac(Fault.PRINTS, folder, tmp_path, "coreml")
    try:
        provider = worker.ask(method="info")["provider"]
        assert (provider["asked"], provider["chosen"]) == ("coreml", COREML)
        assert worker.bucket()["state"] == "proved"
        np.testing.assert_allclose(matrix_of(worker.ask(inputs=TEXTS)), expected, rtol=0, atol=1e-5)
    finally:
        status, rest, stderr = worker.finish()
    assert (status, rest) == (0, b"")
    assert "EP Error" in stderr
    assert "a session was closed" in stderr  # before the quick exit


@pytest.mark.parametrize(("fault", "reason"), [(Fault.ABORTS, CHILDREN[0][1]), (Fault.HANGS, "took longer than 0.5 s")])
def test_rule_11_a_worker_survives_its_child_and_remembers(
    folder: Path, tmp_path: Path, expected: Float32, fault: Fault, reason: str
) -> None:
    worker = FakeMac(fault, folder, tmp_path, "auto")
    try:
        until = time.monotonic() + WAIT_S
        while worker.bucket()["state"] == "proving":
            assert time.monotonic() < until
            np.testing.assert_array_equal(matrix_of(worker.ask(inputs=TEXTS)), expected)
        found = worker.bucket()
        np.testing.assert_array_equal(matrix_of(worker.ask(inputs=TEXTS)), expected)
    finally:
        status, rest, _ = worker.finish()
    assert (status, rest) == (0, b"")
    assert found["state"] == "refused"
    assert reason in found["reason"]
    worker = FakeMac(Fault.NONE, folder, tmp_path, "coreml")
    answer = worker.ask(method="info")
    assert answer["code"] == "model_load_failed"
    assert reason in answer["message"]
    assert worker.finish()[:2] == (78, b"")


# With the real provider

needs_coreml = pytest.mark.skipif(
    COREML not in onnxruntime.get_available_providers(), reason="needs the CoreML provider of a Mac"
)


@needs_coreml
@pytest.mark.coreml
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", CoremlPrecision)
def test_the_real_provider_is_right_or_refused_and_never_wrong(tmp_path: Path, precision: CoremlPrecision) -> None:
    options = RuntimeOptions(coreml_precision=precision, coreml_cache=tmp_path, provider="coreml")
    model = load_model(ROOT / "models" / "all-MiniLM-L6-v2", ModelOptions(), options, os.cpu_count() or 1)
    cpu = load_model(ROOT / "models" / "all-MiniLM-L6-v2", ModelOptions(), RuntimeOptions(provider="cpu"), 1)
    backend = model.engine.backend
    assert isinstance(backend, CoremlBackend)
    backend.use_all_cores()
    lengths = (20, 32, 60, 128, 200)
    batches = [batch_of(rows, tokens) for rows in (1, 8) for tokens in lengths]
    for _ in range(2):  # to ask for a proof, then to be served
        for batch in batches:
            served = backend.embed(batch, exclusive=True)
            exact = cpu.engine.backend.embed(batch, exclusive=True)
            assert cosines(served, exact).min() >= (0.9995 if precision is CoremlPrecision.FP32 else 0.999)
        assert backend.wait_for_proofs(1500)
    report = backend.provider
    print(json.dumps(vars(report), indent=1))
    assert {bucket["state"] for bucket in report.buckets} <= {"proved", "slower"}
    assert {bucket["partitions"] for bucket in report.buckets} == {1}
    backend.close()


@needs_coreml
@pytest.mark.coreml
@pytest.mark.timeout(600)
def test_the_real_provider_writes_nothing_on_the_wire_but_answers(tmp_path: Path) -> None:
    messages = [{"id": 1, "method": "info"}, {"id": 2, "inputs": ["a text"]}]
    status, answers, stderr = run_worker(
        lines_of(*messages), "--provider", "coreml", "--coreml-cache", str(tmp_path), model=None
    )
    assert status == 0, stderr
    assert {answer["id"] for answer in answers} == {1, 2}
