"""MLX on this machine's CPU: the goldens through the pipe, what is refused, and what MLX itself would not notice."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_worker.accelerators.choose import choose_backend
from embed_worker.accelerators.mlx import backend as mlx_backend
from embed_worker.accelerators.mlx.backend import MlxBackend, MlxReport, forecast_model
from embed_worker.arguments.serve import make_config, make_parser
from embed_worker.config import MlxPrecision, ModelOptions, RuntimeOptions, Verify
from embed_worker.encoders.activation_functions import ACTIVATIONS
from embed_worker.encoders.bert import Bert
from embed_worker.encoders.qwen3 import Qwen3
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError
from embed_worker.inference.backend import ProviderReport
from embed_worker.inference.engine import LoadedModel
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32, Int64
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.loading import load_model
from embed_worker.model_files.folder import read_model_folder
from tests.worker import test_export_qwen3
from tests.worker.export_fixtures import CONFIG, published_tensors, random_tensors, write_folder, write_shards
from tests.worker.harness import ROOT, WorkerProcess, cosines, matrix_of
from tests.worker.test_boundaries import loaded_after
from tests.worker.test_families import ask_all, request_of
from tests.worker.test_golden import GOLDEN, TEXTS
from tests.worker.test_graphs import remade, without_tokens
from tests.worker.test_model_folder import EXPECTED, MODELS
from tests.worker.test_tokenizer import plan_for, prompt_of

try:
    import mlx.core as mx

    from embed_worker.accelerators.mlx import models as mlx_models
except ImportError as error:
    WHY_NOT = f"MLX is not there: {error}"
else:
    WHY_NOT = ""

needs_mlx = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is there")

DEFAULT = ROOT / "models" / "all-MiniLM-L6-v2"
GRAPH_POOLED = "gemma-graph-pooled"
FAMILIES = list(EXPECTED)


def load(folder: Path, precision: MlxPrecision = MlxPrecision.FLOAT32, **options: Any) -> LoadedModel:
    runtime = RuntimeOptions(provider="mlx", mlx_precision=precision, verify=Verify.NEVER)
    if not (folder / "modules.json").exists():
        options = {"pooling": "mean"} | options
    return load_model(folder, ModelOptions(**options), runtime, 1)


def embed(model: LoadedModel, case: dict[str, Any], *, together: bool) -> Float32:
    rows = model.engine.tokenizer.encode(case["texts"], prompt_of(case, model.plan))
    groups = [rows] if together else [[row] for row in rows]
    raw = np.concatenate([model.engine.embed(group, exclusive=True) for group in groups])
    return model.finish(raw, case["dimensions"], case["normalize"])


def report_of(model: LoadedModel) -> MlxReport:
    report = model.engine.backend.provider
    assert isinstance(report, MlxReport)
    return report


# Through the pipe ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    arguments = ["--provider", "mlx", "--models-dir", str(MODELS), "--model", str(DEFAULT)]
    for name in FAMILIES:
        arguments += ["--model", str(MODELS / name)]
        if not (MODELS / name / "modules.json").exists():
            arguments += ["--pooling", "mean"]
    with WorkerProcess(*arguments, model=None) as process:
        yield process
        process.close_input()
        assert process.wait() == 0
        assert "Traceback" not in process.stderr


@needs_mlx
def test_the_default_model_has_the_vectors_of_sentence_transformers(worker: WorkerProcess) -> None:
    places = [place for place, count in enumerate(GOLDEN["token_counts"]) if count <= 24][:5]
    expected = np.array(GOLDEN["embeddings"])[places]
    together = matrix_of(worker.ask({"inputs": [TEXTS[place] for place in places]}))
    alone = np.concatenate([matrix_of(worker.ask({"inputs": TEXTS[place]})) for place in places])
    assert cosines(together, expected).min() >= 0.9999
    assert cosines(alone, expected).min() >= 0.9999
    assert cosines(alone, together).min() >= 0.999999


@needs_mlx
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_vectors_of_sentence_transformers(worker: WorkerProcess, name: str) -> None:
    cases = {case["name"]: case for case in EXPECTED[name]["cases"]}
    together = {key: {**request_of(case, name), "inputs": case["texts"]} for key, case in cases.items()}
    alone = {
        f"{key} {place}": {**request_of(case, name), "inputs": text}
        for key, case in cases.items()
        for place, text in enumerate(case["texts"])
    }
    answers = ask_all(worker, together | alone)
    for key, case in cases.items():
        vectors = matrix_of(answers[key])
        single = np.concatenate([matrix_of(answers[f"{key} {place}"]) for place in range(len(case["texts"]))])
        assert answers[key]["tokens"] == case["token_counts"], key
        for found in (vectors, single):
            np.testing.assert_allclose(found, case["embeddings"], rtol=0, atol=EXPECTED[name]["tolerance"], err_msg=key)
            assert cosines(found, case["embeddings"]).min() >= 0.9999, key
        assert (1 - cosines(vectors, single)).max() < 1e-6, key


@needs_mlx
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("all-MiniLM-L6-v2", "onnx/model.onnx"),
        ("bert-mean", "model.safetensors"),
        ("qwen3-last", "onnx/model.onnx"),
        ("xenova-bare", "onnx/model.onnx"),
    ],
)
def test_info_tells_of_mlx_and_the_space_is_that_of_the_cpu(worker: WorkerProcess, name: str, weights: str) -> None:
    info = worker.ask({"method": "info", "model": name})
    provider = info["provider"]
    assert (provider["asked"], provider["chosen"], provider["weights"]) == ("mlx", "mlx", weights)
    assert provider["reason"].startswith("asked for; its smallest cosine to the CPU is ")
    assert (provider["device"], info["precision"], info["batch_invariant"]) == (mlx_models.device(), "float32", True)
    assert provider["cosine"] >= 0.99999
    assert provider["speed_ratio"] > 0
    folder = DEFAULT if name == DEFAULT.name else MODELS / name
    options = ModelOptions(pooling=None if (folder / "modules.json").exists() else "mean")
    on_cpu = load_model(folder, options, RuntimeOptions(provider="cpu"), 1)
    assert (info["fingerprint"], info["dimension"]) == (on_cpu.fingerprint, on_cpu.engine.dimension)


@pytest.fixture(scope="module")
def graph_pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder whose graph gives a sentence vector alone."""
    return remade(MODELS / GRAPH_POOLED, tmp_path_factory.mktemp("pooled") / GRAPH_POOLED, without_tokens)


@needs_mlx
def test_a_model_that_cannot_run_is_refused_with_one_sentence(graph_pooled: Path) -> None:
    with pytest.raises(ModelError) as refused:
        load(graph_pooled)
    assert str(refused.value) == (
        "--provider mlx: the model 'gemma-graph-pooled' cannot be run by MLX: "
        "its graph pools by itself, and the weights do not say how"
    )


def test_the_precision_is_chosen_on_the_command_line() -> None:
    def runtime_of(*arguments: str) -> RuntimeOptions:
        return make_config(make_parser().parse_args(arguments)).runtime

    assert runtime_of().mlx_precision is MlxPrecision.FLOAT32
    assert runtime_of("--mlx-precision", "bfloat16").mlx_precision is MlxPrecision.BFLOAT16
    with pytest.raises(SystemExit):
        runtime_of("--mlx-precision", "int8")


# The models, against the reference of the export -------------------------------------------------------------------


def hidden_of(encoder: Bert | Qwen3, ids: Int64, mask: Int64) -> Float32:
    def run() -> Float32:
        hidden = mlx_models.make_mlx_model(encoder, "float32").forward(ids, mask)
        return np.array(hidden)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def assert_is_reference(encoder: Bert | Qwen3, *, pad_left: bool) -> None:
    random = np.random.default_rng(0)
    lengths = [1, 2, 9, 30]
    ids = np.full((len(lengths), max(lengths)), 1)  # the padding of RoBERTa
    mask = np.zeros_like(ids)
    texts = [random.integers(2, encoder.vocabulary, length) for length in lengths]
    for row, text in enumerate(texts):
        here = slice(max(lengths) - len(text), None) if pad_left else slice(len(text))
        ids[row, here], mask[row, here] = text, 1
    hidden = hidden_of(encoder, ids, mask)
    assert np.isfinite(hidden).all()  # padding sees something, or its 0 / 0 would reach the text
    for row, text in enumerate(texts):
        np.testing.assert_allclose(hidden[row][mask[row] == 1], encoder.forward(text, np.zeros_like(text)), atol=2e-4)


@needs_mlx
@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_bert_computes_what_the_reference_does(activation: str, pad_left: bool) -> None:
    config = CONFIG | {"hidden_act": activation}
    assert_is_reference(Bert.read(config, random_tensors(config)), pad_left=pad_left)


@needs_mlx
@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "camembert"])
def test_roberta_counts_positions_from_behind_the_padding(architecture: str) -> None:
    config = CONFIG | {"model_type": architecture, "pad_token_id": 1}
    encoder = Bert.read(config, random_tensors(config))
    for pad_left in (False, True):
        assert_is_reference(encoder, pad_left=pad_left)


@needs_mlx
@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"is_causal": False}, {"num_key_value_heads": 6}])
def test_qwen3_computes_what_the_reference_does(changes: dict[str, Any], pad_left: bool) -> None:
    config = test_export_qwen3.CONFIG | changes
    encoder = Qwen3.read(config, test_export_qwen3.random_tensors(config))
    assert_is_reference(encoder, pad_left=pad_left)


@needs_mlx
def test_every_activation_that_can_be_exported_is_here() -> None:
    assert set(mlx_models._ACTIVATIONS) == {activation.name for activation in ACTIVATIONS.values()}


@needs_mlx
@pytest.mark.parametrize(("precision", "min_cosine"), [("float16", 0.9999), ("bfloat16", 0.995)])
@pytest.mark.parametrize("name", ["bert-mean", "qwen3-last"])
def test_reduced_precision_is_near_and_said_and_the_space_is_the_same(
    name: str, precision: str, min_cosine: float
) -> None:
    model = load(MODELS / name, MlxPrecision(precision))
    assert model.engine.backend.precision == precision
    assert model.fingerprint == load_model(MODELS / name, ModelOptions(), RuntimeOptions(provider="cpu"), 1).fingerprint
    case = next(case for case in EXPECTED[name]["cases"] if case["name"] == "mixed-lengths")
    together, alone = embed(model, case, together=True), embed(model, case, together=False)
    for vectors in (together, alone):
        assert min_cosine <= cosines(vectors, case["embeddings"]).min() < 0.9999999
    assert cosines(together, alone).min() > 0.99999


@needs_mlx
def test_weights_may_be_in_shards_and_in_bfloat16(tmp_path: Path) -> None:
    cut = {
        name: (tensor.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, tensor in random_tensors(CONFIG).items()
    }
    sharded, narrow = tmp_path / "sharded", write_folder(tmp_path / "narrow", CONFIG, cut, bfloat16=True)
    write_folder(sharded, CONFIG, {})
    (sharded / "model.safetensors").unlink()
    write_shards(sharded, cut, 3)
    ids = np.arange(2, 12)[None]
    found = []
    for folder in (sharded, narrow):
        weights = mlx_backend._read_weights(plan_for("bert-mean", folder=folder))
        assert weights.source.name == "model.safetensors" + (".index.json" if folder is sharded else "")
        found.append(hidden_of(weights.encoder, ids, np.ones_like(ids)))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0][0], Bert.read(CONFIG, cut).forward(ids[0], 0 * ids[0]), atol=2e-4)


@needs_mlx
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_the_table_of_words_stays_in_the_bits_that_it_was_published_in(stored: str) -> None:
    table: Any = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    if stored == "float16":
        table = table.astype(np.float16)
    elif stored == "bfloat16":  # as the readers give it
        table = (table.view(np.uint32) & 0xFFFF0000).view(np.float32)
    words = mlx_models._Words(table, mx.float32)
    assert words._table.dtype == getattr(mx, stored)
    ids = np.array([[0, 49, 7]])
    np.testing.assert_array_equal(np.array(words.look_up(ids)), table[ids].astype(np.float32))


# What MLX does not notice ---------------------------------------------------------------------------------------------


@needs_mlx
@pytest.mark.parametrize("name", ["bert-mean", "qwen3-last"])
def test_an_id_or_a_length_beyond_its_table_fails_where_mlx_would_read_on(name: str) -> None:
    backend = load(MODELS / name).engine.backend
    rows = json.loads((MODELS / name / "config.json").read_bytes())["vocab_size"]
    ones = np.ones((2, 3), np.int64)
    for wrong in (rows, -1):
        ids = ones.copy()
        ids[1, 1] = wrong
        with pytest.raises(ValueError, match="vocabulary"):
            backend.embed(TokenBatch(ids, ones), exclusive=True)
    assert np.isfinite(backend.embed(TokenBatch(ones, ones), exclusive=True)).all()
    if name == "bert-mean":
        long = np.ones((1, 161), np.int64)
        with pytest.raises(ValueError, match="161 tokens"):
            backend.embed(TokenBatch(long, long), exclusive=True)


@needs_mlx
def test_lanes_may_call_at_once_from_any_thread() -> None:
    model = load(MODELS / "qwen3-last")
    cases = EXPECTED["qwen3-last"]["cases"][:8]
    expected = [embed(model, case, together=True) for case in cases]
    together = threading.Barrier(4)

    def lane(first: int) -> list[Float32]:
        together.wait(30)
        return [embed(model, cases[(first + step) % len(cases)], together=True) for step in range(len(cases))]

    with ThreadPoolExecutor(4) as lanes:
        for first, found in enumerate(lanes.map(lane, range(4))):
            for step, vectors in enumerate(found):
                np.testing.assert_array_equal(vectors, expected[(first + step) % len(cases)])


@needs_mlx
def test_changing_lengths_leave_nothing_behind_and_an_unloaded_model_neither() -> None:
    gc.collect()
    before = mx.get_active_memory()
    model = load(MODELS / "bert-mean")
    loaded = mx.get_active_memory()
    assert loaded > before
    for length in range(1, 121, 3):
        ids = np.full((1 + length % 5, length), 7, np.int64)
        model.engine.backend.embed(TokenBatch(ids, np.ones_like(ids)), exclusive=True)
    assert mx.get_active_memory() == loaded
    # It tells the limit only as it is changed.
    assert mx.set_cache_limit(mlx_backend._CACHE_BYTES) == mlx_backend._CACHE_BYTES
    assert mx.get_cache_memory() <= mlx_backend._CACHE_BYTES
    del model
    gc.collect()
    assert mx.get_active_memory() == before


class Witness:
    """A model that notes the threads that call it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def forward(self, ids: Int64, mask: Int64) -> Any:
        self.threads.add(threading.get_ident())
        return mx.ones((*ids.shape, 4))


@needs_mlx
def test_one_thread_does_all_because_streams_belong_to_threads() -> None:
    model = Witness()
    report = ProviderReport(asked="mlx", chosen="mlx", reason="")
    backend = MlxBackend(model, plan_for("bert-mean"), MlxPrecision.FLOAT32, report)
    ones = np.ones((2, 3), np.int64)
    with ThreadPoolExecutor(3) as lanes:
        for found in lanes.map(lambda _: backend.embed(TokenBatch(ones, ones), exclusive=False), range(9)):
            np.testing.assert_array_equal(found, np.ones((2, 4), np.float32))
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


class NoMemory:
    """A model for which there is no memory, in MLX's words."""

    def forward(self, ids: Int64, mask: Int64) -> Any:
        raise RuntimeError("[metal::malloc] Unable to allocate 17179869184 bytes.")


@needs_mlx
def test_a_failed_allocation_is_known_as_one() -> None:
    report = ProviderReport(asked="mlx", chosen="mlx", reason="")
    backend = MlxBackend(NoMemory(), plan_for("bert-mean"), MlxPrecision.FLOAT32, report)
    ones = np.ones((2, 3), np.int64)
    with pytest.raises(OutOfMemoryError, match=r"\(2, 3\)"):
        backend.embed(TokenBatch(ones, ones), exclusive=False)


# The proof ------------------------------------------------------------------------------------------------------------


@needs_mlx
def test_other_vectors_than_the_cpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mlx_models._ACTIVATIONS, "gelu", mlx_models._relu)
    with pytest.raises(
        ModelError, match=r"'bert-mean' cannot be run by MLX: it differs from the CPU: a cosine is 0\.9"
    ):
        load(MODELS / "bert-mean")
    monkeypatch.setitem(mlx_models._ACTIVATIONS, "gelu", lambda x: x * mx.array(float("nan")))
    with pytest.raises(ModelError, match="it gives values that are not finite"):
        load(MODELS / "bert-mean")


@needs_mlx
@pytest.mark.parametrize(("ratio", "end"), [(3.2, "it takes 3.20 of the CPU's time: the CPU is faster"), (0.5, "time")])
def test_slowness_is_told_and_not_refused(monkeypatch: pytest.MonkeyPatch, ratio: float, end: str) -> None:
    monkeypatch.setattr(mlx_backend, "_speed_ratio", lambda *_: ratio)
    report = report_of(load(MODELS / "bert-mean"))
    assert report.reason.endswith(end)
    assert report.speed_ratio == ratio


@needs_mlx
def test_the_cpu_is_let_go_after_the_proof() -> None:
    plan = plan_for("bert-mean")
    runtime = RuntimeOptions(provider="mlx")
    cpu = OnnxBackend.load(plan, runtime, threads=2)
    witness = weakref.ref(cpu)
    backend = choose_backend(cpu, plan, TextTokenizer.load(plan), runtime, 2)
    del cpu
    gc.collect()
    assert witness() is None
    backend.use_all_cores()
    ones = np.ones((1, 3), np.int64)
    assert backend.embed(TokenBatch(ones, ones), exclusive=True).shape == (1, 32)


@needs_mlx
def test_float32_is_not_cut_to_tensor_float() -> None:
    code = (
        "from pathlib import Path; from embed_worker.config import ModelOptions, RuntimeOptions; import os, sys;"
        "from embed_worker.loading import load_model; os.environ.pop('MLX_ENABLE_TF32', None);"
        f"load_model(Path({str(MODELS / 'bert-mean')!r}), ModelOptions(), RuntimeOptions(provider='mlx'), 1);"
        "assert os.environ['MLX_ENABLE_TF32'] == '0'"
    )
    assert "mlx.core" in loaded_after(code)


# What cannot run ------------------------------------------------------------------------------------------------------


def refusal_of(folder: Path, **options: Any) -> str:
    with pytest.raises((ModelError, ConfigError)) as refused:
        load(folder, **options)
    return str(refused.value)


def copy_of(name: str, folder: Path, **changes: Any) -> Path:
    """Copy a fixture and change its config.json."""
    shutil.copytree(MODELS / name, folder)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@needs_mlx
def test_a_model_whose_weights_do_not_tell_its_vectors_is_refused(tmp_path: Path) -> None:
    quantised = refusal_of(MODELS / "xenova-bare", variant="quantized")
    assert quantised.endswith("cannot be run by MLX: its graph is quantised, and MLX computes with floats")
    unknown = refusal_of(copy_of("bert-mean", tmp_path / "unknown", model_type="mpnet"))
    assert "'unknown' cannot be run by MLX: its architecture is 'mpnet', and those that are known" in unknown
    assert unknown.endswith("qwen3")
    own_code = refusal_of(copy_of("bert-mean", tmp_path / "own-code", auto_map={"AutoModel": "mine.Model"}))
    assert "auto_map" in own_code
    sliding = refusal_of(copy_of("qwen3-last", tmp_path / "sliding", layer_types=["sliding_attention"] * 2))
    assert "its weights cannot be used: a model with layer_types other than full_attention" in sliding


@needs_mlx
def test_weights_that_are_damaged_or_of_another_model_are_refused(tmp_path: Path) -> None:
    damaged = copy_of("bert-mean", tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:-5])
    assert "model.safetensors is no usable safetensors file" in refusal_of(damaged)
    # The vectors of the graph are those that are asked for, whatever other weights lie beside it.
    other = copy_of("bert-mean", tmp_path / "other")
    tensors = {name: np.array(tensor) for name, tensor in published_tensors("bert-mean").items()}
    tensors["encoder.layer.1.output.dense.weight"] *= -1
    write_folder(other, json.loads((other / "config.json").read_bytes()), tensors)
    assert "it differs from the CPU" in refusal_of(other)
    few = copy_of("onnx-only-max", tmp_path / "few", num_hidden_layers=3)
    assert "its weights cannot be used: model.onnx has no tensor 'encoder.layer.2" in refusal_of(few)


def test_without_mlx_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    assert refusal_of(DEFAULT) == (
        "--provider mlx: the package mlx.core is not installed: pip install 'embed-bridge[mlx]'"
    )


class MissingLibrary:
    """Fails as the loader of shared libraries does."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name == "mlx.core":
            raise ImportError("libmlx.so: cannot open shared object file: No such file or directory")
        return None


def test_an_mlx_that_cannot_be_loaded_is_told_from_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx", sys)  # a package must be there for its part to be looked for
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(sys, "__path__", [], raising=False)
    monkeypatch.setattr(sys, "meta_path", [MissingLibrary(), *sys.meta_path])
    refused = refusal_of(MODELS / "bert-mean")
    assert refused.startswith("--provider mlx: the package mlx cannot be loaded here: libmlx.so: cannot open shared")
    assert refused.endswith("pip install 'embed-bridge[mlx]'")


@needs_mlx
def test_without_onnx_a_folder_of_safetensors_runs_and_another_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "embed_worker.encoders.onnx_weights", raising=False)
    assert report_of(load(MODELS / "bert-mean")).weights == "model.safetensors"
    refused = refusal_of(MODELS / "qwen3-last")
    assert refused.endswith("reading them needs the package onnx: pip install 'embed-bridge[mlx]'")


def test_a_forecast_needs_no_mlx_and_agrees_with_the_load(monkeypatch: pytest.MonkeyPatch, graph_pooled: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    assert forecast_model(plan_for("bert-mean")) == {
        "weights": "model.safetensors",
        "sentences": ["MLX can run it, with the weights of model.safetensors"],
    }
    for plan in (
        read_model_folder(graph_pooled, ModelOptions()),
        plan_for("xenova-bare", graph=MODELS / "xenova-bare/onnx/model_quantized.onnx"),
    ):
        found = forecast_model(plan)
        assert found["weights"] is None
        assert found["sentences"][0].startswith("MLX cannot run it: its graph ")


def test_neither_mlx_nor_a_tool_is_loaded_unless_it_is_asked_for() -> None:
    code = (
        "from pathlib import Path; from embed_worker.config import ModelOptions, RuntimeOptions;"
        "from embed_worker.accelerators.mlx import backend as mlx_backend; from embed_worker.loading import load_model;"
        f"load_model(Path({str(MODELS / 'bert-mean')!r}), ModelOptions(), RuntimeOptions(provider='auto'), 1)"
    )
    assert [name for name in loaded_after(code) if name.partition(".")[0] == "mlx" or ".tools" in name] == []
