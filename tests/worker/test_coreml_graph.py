"""Rule 5, the dedicated graph: its form, the goldens in every bucket, what it is made of, and what it is fed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from embed_worker.accelerators.coreml import graph_export as coreml_graph
from embed_worker.accelerators.coreml import graph_layers as coreml_layers
from embed_worker.accelerators.coreml.graph import (
    BATCH_DIMENSION,
    LENGTH_DIMENSION,
    CoremlModel,
    CoremlModelError,
    pooling_weights,
)
from embed_worker.accelerators.coreml.graph_export import export_for_coreml
from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.encoders.checkpoint import ExportError
from embed_worker.encoders.onnx_weights import read_onnx_weights
from embed_worker.inference.pooling import Float32, Int64, finish_vectors, pool
from embed_worker.inference.tokenizer import TextTokenizer, TokenizedText
from embed_worker.loading import load_model
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.plan import ModelPlan, PoolingMode
from embed_worker.tools.inspect.coreml_partitions import optimized
from tests.worker import test_export_qwen3
from tests.worker.export_fixtures import (
    MODELS,
    expected_of,
    make_folder,
    publish,
    published_tensors,
    refusal,
    run,
    write_folder,
)
from tests.worker.harness import ROOT, cosines
from tests.worker.test_cases import CASES

DEFAULT_MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
GOLDEN = json.loads((ROOT / "tests" / "goldens" / "minilm_golden.json").read_text("utf-8"))
BUCKETS = [(batch, length) for batch in (1, 8) for length in (32, 64, 128, 256, 512)]
# By their pooling: mean, CLS, last token, mean with positions that are counted, weighted mean, mean without prompts.
FIXTURES = (
    "bert-mean",
    "bert-cls-new",
    "qwen3-last",
    "xlmr-unigram",
    "onnx-only-weightedmean",
    "extra-prompt-options",
)
LINEAR = [mode for mode in PoolingMode if mode is not PoolingMode.MAX]
PLAIN = {
    *("Add", "Concat", "Div", "Gelu", "LayerNormalization", "MatMul", "Mul", "ReduceMean", "Relu", "Reshape"),
    *("Sigmoid", "Softmax", "Split", "Sqrt", "Squeeze", "Transpose"),
}


@dataclass
class Made:
    """A model with its dedicated graph, and one session for every bucket that was run."""

    plan: ModelPlan
    tokenizer: TextTokenizer
    coreml: CoremlModel
    sessions: dict[tuple[int, int], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, output: Path) -> Made:
        plan = read_model_folder(folder, ModelOptions())
        coreml = CoremlModel.open(Path(export_for_coreml(folder, output=output).folder))
        return cls(plan, TextTokenizer.load(plan), coreml)

    def session(self, bucket: tuple[int, int]) -> Any:
        if bucket not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            for name, length in zip((BATCH_DIMENSION, LENGTH_DIMENSION), bucket, strict=True):
                options.add_free_dimension_override_by_name(name, length)
            self.sessions[bucket] = onnxruntime.InferenceSession(
                str(self.coreml.graph), options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[bucket]

    def run(self, ids: Int64, mask: Int64, weights: Float32, bucket: tuple[int, int]) -> Float32:
        """Run a batch in a bucket: (B, T), (B, T), (B, T) to (B, D)."""
        (pooled,) = self.session(bucket).run(None, self.coreml.feeds(ids, mask, weights, *bucket))
        assert pooled.shape[0] == bucket[0]
        return np.asarray(pooled[: len(ids)], np.float32)

    def embed(self, rows: Sequence[TokenizedText], bucket: tuple[int, int], *, pad_left: bool | None = None) -> Float32:
        """Embed tokenised texts in batches as large as the bucket allows, as the model's folder pools."""
        (mode,) = self.plan.pooling
        vectors = []
        for first in range(0, len(rows), bucket[0]):
            ids, mask, skipped = padded(
                rows[first : first + bucket[0]], self.plan.pad_left if pad_left is None else pad_left
            )
            weights = pooling_weights(mask, mode, skipped)
            assert weights is not None
            vectors.append(self.run(ids, mask, weights, bucket))
        return np.concatenate(vectors)


def padded(rows: Sequence[TokenizedText], pad_left: bool) -> tuple[Int64, Int64, Int64]:
    longest = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        here = slice(longest - len(row.ids), None) if pad_left else slice(len(row.ids))
        ids[place, here], mask[place, here] = row.ids, 1
    return ids, mask, np.array([row.skipped for row in rows])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Made]:
    folders = [DEFAULT_MODEL, *(MODELS / name for name in FIXTURES)]
    return {folder.name: Made.of(folder, tmp_path_factory.mktemp(folder.name)) for folder in folders}


# Its form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width"), [(DEFAULT_MODEL.name, 384), ("bert-mean", 32), ("xlmr-unigram", 32)])
def test_rule_05_a_bert_has_three_float_inputs_and_one_output(made: Mapping[str, Made], name: str, width: int) -> None:
    batch, length = "batch_size", "sequence_length"
    assert interface_of(made[name]) == {
        "inputs_embeds": ("tensor(float)", [batch, length, width]),
        "attention_bias": ("tensor(float)", [batch, 1, 1, length]),
        "pooling_weights": ("tensor(float)", [batch, 1, length]),
        "pooled": ("tensor(float)", [batch, width]),
    }


def test_rule_05_a_qwen3_has_a_causal_bias_and_its_rotations_as_inputs(made: Mapping[str, Made]) -> None:
    batch, length = "batch_size", "sequence_length"
    assert interface_of(made["qwen3-last"]) == {
        "inputs_embeds": ("tensor(float)", [batch, length, 32]),
        "attention_bias": ("tensor(float)", [batch, 1, length, length]),
        "pooling_weights": ("tensor(float)", [batch, 1, length]),
        "rotary_cos": ("tensor(float)", [1, 1, length, 16]),
        "rotary_sin": ("tensor(float)", [1, 1, length, 16]),
        "pooled": ("tensor(float)", [batch, 32]),
    }


def interface_of(model: Made) -> dict[str, tuple[str, list[int | str]]]:
    session = onnxruntime.InferenceSession(str(model.coreml.graph), providers=["CPUExecutionProvider"])
    return {value.name: (value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())}


@pytest.mark.parametrize("name", [DEFAULT_MODEL.name, *FIXTURES])
def test_rule_05_operators_are_plain_and_weights_are_constants_of_products(made: Mapping[str, Made], name: str) -> None:
    model = onnx.load(made[name].coreml.graph)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.op_type for node in model.graph.node} <= PLAIN
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    assert {tensor.data_type for tensor in constants.values()} == {TensorProto.FLOAT, TensorProto.INT64}
    for tensor in constants.values():
        if tensor.data_type == TensorProto.INT64:  # shapes, axes and halves
            assert tensor.dims[0] <= 4
        if len(tensor.dims) == 2:
            (reader,) = (node for node in model.graph.node if tensor.name in node.input)
            assert (reader.op_type, reader.input[1]) == ("MatMul", tensor.name)
    # No table of words or positions.
    assert max(tensor.dims[0] for tensor in constants.values() if tensor.dims) <= 1536


@pytest.mark.parametrize("name", ["bert-mean", "qwen3-last"])
@pytest.mark.parametrize("bucket", [(1, 32), (8, 512)])
def test_rule_05_a_bucket_fixes_every_shape(made: Mapping[str, Made], name: str, bucket: tuple[int, int]) -> None:
    overrides = dict(zip((BATCH_DIMENSION, LENGTH_DIMENSION), bucket, strict=True))
    graph = optimized(made[name].coreml.graph, overrides).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    assert len(values) > len(graph.node)
    for value in values:
        assert all(size.dim_value > 0 for size in value.type.tensor_type.shape.dim), value.name
    assert all(isinstance(size, int) for node in made[name].session(bucket).get_inputs() for size in node.shape)


def test_rule_05_tables_are_mapped_and_as_wide_as_their_source(made: Mapping[str, Made]) -> None:
    default, fixture, rotary = (made[name].coreml for name in (DEFAULT_MODEL.name, "bert-mean", "qwen3-last"))
    assert isinstance(default.words.base, np.memmap)
    assert default.positions is not None
    tables = [default.words, fixture.words, default.positions]
    assert [(table.shape, str(table.dtype)) for table in tables] == [
        ((30522, 384), "float16"),
        ((1000, 32), "float32"),
        ((512, 384), "float32"),
    ]
    assert rotary.positions is None


def test_the_description_tells_the_architecture_apart(made: Mapping[str, Made]) -> None:
    described = {name: made[name].coreml.description for name in ("bert-mean", "xlmr-unigram", "qwen3-last")}
    facts = {
        name: (found.architecture, found.max_tokens, found.padding_id, found.is_causal)
        for name, found in described.items()
    }
    assert facts == {
        "bert-mean": ("bert", 160, None, False),
        "xlmr-unigram": ("xlm-roberta", 88, 1, False),
        "qwen3-last": ("qwen3", 96, None, True),
    }
    assert described["bert-mean"].sources.keys() == {"config.json", "model.safetensors"}
    assert described["qwen3-last"].sources.keys() == {"config.json", "onnx/model.onnx"}


# The goldens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "name"), [*((8, name) for name in FIXTURES), (1, "bert-mean"), (1, "qwen3-last")])
def test_rule_05_all_texts_have_the_vectors_of_sentence_transformers(
    made: Mapping[str, Made], name: str, batch: int
) -> None:
    """Every case of the fixture in the smallest bucket that takes it; the last batch of most is partial."""
    model, expected = made[name], expected_of(name)
    partial = 0
    for case in expected["cases"]:
        prompt = case["prompt_name"] or model.plan.default_prompt_name
        rows = model.tokenizer.encode(case["texts"], model.plan.prompts[prompt] if prompt else "")
        longest = max(len(row.ids) for row in rows)
        bucket = next(bucket for bucket in BUCKETS if bucket[0] == batch and bucket[1] >= longest)
        normalize = model.plan.normalize if case["normalize"] is None else case["normalize"]
        vectors = finish_vectors(model.embed(rows, bucket), case["dimensions"], normalize=normalize)
        np.testing.assert_allclose(vectors, case["embeddings"], rtol=0, atol=1e-5, err_msg=case["name"])
        partial += len(rows) % batch > 0
    assert partial > 10 or batch == 1


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls-new", "qwen3-last"])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_rule_05_every_bucket_gives_the_goldens(made: Mapping[str, Made], name: str, bucket: tuple[int, int]) -> None:
    """Texts of up to 32 tokens, which are mostly padding in the longer buckets; the last batch of 8 is partial."""
    model = made[name]
    cases = [case for case in expected_of(name)["cases"] if case["dimensions"] is case["normalize"] is None]
    texts = {
        text: vector
        for case in cases
        if case["prompt_name"] is None
        for text, vector in zip(case["texts"], case["embeddings"], strict=True)
    }
    rows = model.tokenizer.encode(list(texts), "")
    count = 11 if bucket[0] == 8 else 3
    chosen = [(row, vector) for row, vector in zip(rows, texts.values(), strict=True) if len(row.ids) <= 32][:count]
    assert len(chosen) == count
    vectors = finish_vectors(model.embed([row for row, _ in chosen], bucket), None, normalize=True)
    np.testing.assert_allclose(vectors, [vector for _, vector in chosen], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FIXTURES)
def test_padding_may_be_on_either_side(made: Mapping[str, Made], name: str) -> None:
    model = made[name]
    rows = model.tokenizer.encode(
        ["one", "a few more words than that", "and some more of them, so that rows differ"], ""
    )
    left, right = (model.embed(rows, (8, 64), pad_left=pad_left) for pad_left in (True, False))
    np.testing.assert_allclose(left, right, rtol=0, atol=2e-6)


def test_rule_05_the_default_model_has_the_vectors_of_the_cpu_and_the_goldens(made: Mapping[str, Made]) -> None:
    model = made[DEFAULT_MODEL.name]
    cpu = load_model(DEFAULT_MODEL, ModelOptions(), RuntimeOptions(), 1)
    for bucket, places in (((8, 32), range(11)), ((8, 64), (18, 19, 21, 30)), ((1, 128), (71,)), ((1, 512), (76, 77))):
        texts = [GOLDEN["texts"][place] for place in places]
        rows = model.tokenizer.encode(texts, "")
        vectors = finish_vectors(model.embed(rows, bucket), None, normalize=True)
        np.testing.assert_allclose(vectors, cpu.finish(cpu.engine.embed(rows, exclusive=True), None, None), atol=1e-5)
        assert cosines(vectors, [GOLDEN["embeddings"][place] for place in places]).min() >= 0.99999


def test_a_text_that_spells_out_its_padding_token_is_counted_as_the_model_counts(made: Mapping[str, Made]) -> None:
    """RoBERTa gives a padding token no position of its own, wherever it stands."""
    model = made["xlmr-unigram"]
    ids = np.array([[0, 7, 1, 8, 9, 2]])
    ones = np.ones_like(ids)
    graph = onnxruntime.InferenceSession(str(model.plan.graph), providers=["CPUExecutionProvider"])
    (hidden,) = graph.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": ones})
    for place in range(6):
        weights = np.eye(6, dtype=np.float32)[place : place + 1]
        np.testing.assert_allclose(model.run(ids, ones, weights, (1, 32)), hidden[:, place], atol=1e-5)


# What it is made of -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a dedicated graph without its origin."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "coreml.json"}


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls-new"])
def test_a_raw_export_gives_the_same_files_as_the_safetensors(tmp_path: Path, name: str) -> None:
    """The matrices of its linear layers have lost their names, and are found by their biases."""
    bare = tmp_path / "bare"
    shutil.copytree(MODELS / name, bare)
    (bare / "model.safetensors").unlink()
    whole = export_for_coreml(MODELS / name, output=tmp_path / "whole")
    found = export_for_coreml(bare, output=bare)
    assert whole.sources == ["config.json", "model.safetensors"]
    assert found.sources == ["config.json", "onnx/model.onnx"]
    assert whole.graph_sha256 == found.graph_sha256
    assert contents(Path(whole.folder)) == contents(Path(found.folder))


def test_a_raw_qwen3_gives_the_same_files_as_its_safetensors(tmp_path: Path) -> None:
    """It has no biases: its matrices are found by the paths of the nodes."""
    folder = publish("qwen3-last", tmp_path / "published", published_tensors("qwen3-last"))
    whole = export_for_coreml(folder, output=tmp_path / "whole")
    found = export_for_coreml(MODELS / "qwen3-last", output=tmp_path / "found")
    assert contents(Path(whole.folder)) == contents(Path(found.folder))


@pytest.mark.parametrize("weights", ["float32", "float16"])
def test_our_own_export_serves_as_source(tmp_path: Path, weights: str) -> None:
    folder = make_folder(tmp_path / "tiny")
    whole = export_for_coreml(folder, output=tmp_path / "whole")
    assert run(folder, "--weights", weights) == 0
    (folder / "model.safetensors").unlink()
    found = export_for_coreml(folder, output=tmp_path / "found")
    assert (whole.graph_sha256 == found.graph_sha256) == (weights == "float32")
    assert str(CoremlModel.open(tmp_path / "found" / "coreml").words.dtype) == weights


def test_weights_behind_transpositions_and_in_gemms_are_turned_the_right_way(tmp_path: Path) -> None:
    """As torch's newer exporter writes them: with their own names and shapes, transposed by a node or by Gemm."""
    random = np.random.default_rng(3)
    stored = {f"layers.0.{part}.weight": random.normal(size=(3, 2)).astype(np.float32) for part in "abcd"}
    nodes = [
        helper.make_node("Transpose", ["layers.0.a.weight"], ["a.turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "a.turned"], ["ya"]),
        helper.make_node("Gemm", ["x", "layers.0.b.weight"], ["yb"], transB=1),
        helper.make_node("Gemm", ["x", "anonymous", "layers.0.c.bias"], ["yc"]),
        helper.make_node("Cast", ["val_7"], ["d.widened"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "d.widened"], ["yd"], name="/wrapper/layers.0/d/MatMul"),
    ]
    constants = {
        "layers.0.a.weight": stored["layers.0.a.weight"],
        "layers.0.b.weight": stored["layers.0.b.weight"],
        "anonymous": stored["layers.0.c.weight"].T.copy(),
        "layers.0.c.bias": np.zeros(3, np.float32),
        "val_7": stored["layers.0.d.weight"].T.astype(np.float16),
        "embed_tokens.weight": np.zeros((5, 2), np.float32),
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    outputs = [helper.make_tensor_value_info(f"y{part}", TensorProto.FLOAT, [1, 3]) for part in "abcd"]
    initializers = [numpy_helper.from_array(values, f"0.auto.{name}") for name, values in constants.items()]
    for node in nodes:
        node.input[:] = [f"0.auto.{name}" if name in constants else name for name in node.input]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], outputs, initializers)), path)
    found = read_onnx_weights(path)
    for name, values in stored.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"])
def test_every_activation_of_a_bert_agrees_with_the_reference(tmp_path: Path, activation: str) -> None:
    report = export_for_coreml(make_folder(tmp_path, hidden_act=activation), output=tmp_path)
    assert report.max_difference < 2e-5
    operators = {node.op_type for node in onnx.load(Path(report.folder, "model.onnx")).graph.node}
    assert operators <= PLAIN
    assert ("Gelu" in operators) == activation.startswith("gelu")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_causal": False},
        {"attention_bias": True},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
    ],
)
def test_every_variant_of_a_qwen3_agrees_with_the_reference(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = test_export_qwen3.CONFIG | changes
    tensors = {name: tensor.astype(np.float32) for name, tensor in test_export_qwen3.random_tensors(config).items()}
    report = export_for_coreml(write_folder(tmp_path, config, tensors), output=tmp_path)
    assert report.max_difference < 2e-5
    bias = next(
        value for value in onnx.load(Path(report.folder, "model.onnx")).graph.input if value.name == "attention_bias"
    )
    sizes = [size.dim_param or size.dim_value for size in bias.type.tensor_type.shape.dim]
    queries = 1 if config.get("is_causal") is False else "sequence_length"
    assert sizes == ["batch_size", 1, queries, "sequence_length"]


def test_bfloat16_words_become_a_float32_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, bfloat16=True)
    export_for_coreml(folder, output=folder)
    assert CoremlModel.open(folder / "coreml").words.dtype == np.float32


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_makes_the_folder_beside_the_model_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "tiny")
    assert run("--for", "coreml", folder) == 0
    out = capsys.readouterr().out
    assert "made of config.json, model.safetensors" in out
    assert "checked with onnxruntime: largest difference" in out
    names = {"coreml.json", "model.onnx", "position_embeddings.npy", "word_embeddings.npy"}
    assert {file.name for file in (folder / "coreml").iterdir()} == names
    assert {file.name for file in folder.iterdir()} == {"coreml", "config.json", "model.safetensors"}

    assert run("--for", "coreml", "--output", tmp_path / "elsewhere", "--json", folder) == 0
    report = json.loads(capsys.readouterr().out)
    assert Path(report["folder"]) == tmp_path / "elsewhere" / "coreml"
    assert report["graph_sha256"] == CoremlModel.open(folder / "coreml").description.graph_sha256
    assert contents(folder / "coreml") == contents(tmp_path / "elsewhere" / "coreml")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_graph_that_fails_its_check_leaves_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    folder = make_folder(tmp_path / "tiny")
    if not is_first:
        assert run("--for", "coreml", folder) == 0
        capsys.readouterr()
    before = sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    monkeypatch.setitem(coreml_layers._GELUS, "gelu", "tanh")
    assert refusal(capsys, "--for", "coreml", folder, status=1).startswith("the graph differs from what it was made of")
    assert sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()) == before


def test_a_weight_that_is_turned_the_wrong_way_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference of a raw export is its own graph: the weights that were read may be wrong."""
    shutil.copytree(MODELS / "onnx-only-weightedmean", tmp_path / "model")
    right = read_onnx_weights

    def wrong(graph: Path) -> dict[str, Any]:
        tensors = right(graph)
        name = "encoder.layer.1.attention.self.key.weight"
        return tensors | {name: tensors[name].T}

    monkeypatch.setattr("embed_worker.encoders.onnx_weights.read_onnx_weights", wrong)
    refusal(capsys, "--for", "coreml", tmp_path / "model", status=1)
    assert not (tmp_path / "model" / "coreml").exists()


def test_what_cannot_be_exported_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "xenova-bare", folder)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "does not serve in its place" in refusal(capsys, "--for", "coreml", folder)
    shutil.copy(folder / "onnx" / "model_quantized.onnx", folder / "onnx" / "model.onnx")
    assert "no table of words" in refusal(capsys, "--for", "coreml", folder)
    (folder / "onnx" / "model.onnx").write_bytes(b"no graph")
    assert "cannot be read" in refusal(capsys, "--for", "coreml", folder)
    shutil.rmtree(folder / "onnx")
    assert "has no model.safetensors" in refusal(capsys, "--for", "coreml", folder)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    assert "model_type is 't5'" in refusal(capsys, "--for", "coreml", folder)
    (folder / "config.json").unlink()
    assert "no readable config.json" in refusal(capsys, "--for", "coreml", folder)


def test_a_model_that_no_protobuf_holds_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreml_graph, "_MAX_GRAPH_BYTES", 1000)
    sentence = refusal(capsys, "--for", "coreml", make_folder(tmp_path / "tiny"))
    assert sentence.endswith("GB in one file, and a graph for CoreML can have 2 GB")
    assert not (tmp_path / "tiny" / "coreml").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_for_coreml(make_folder(tmp_path / "tiny"), output=tmp_path / "file" / "below")


# Its files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model's folder with its dedicated graph."""
    folder = make_folder(tmp_path / "tiny")
    export_for_coreml(folder, output=folder)
    return folder


def test_a_graph_of_other_weights_or_another_configuration_is_noticed(tiny: Path) -> None:
    model = CoremlModel.open(tiny / "coreml")
    assert model.is_made_of(tiny)
    for file, change in (("config.json", b" "), ("model.safetensors", b"?")):
        content = (tiny / file).read_bytes()
        (tiny / file).write_bytes(content + change)
        assert not model.is_made_of(tiny)
        (tiny / file).write_bytes(content)
    assert model.is_made_of(tiny)
    (tiny / "model.safetensors").unlink()
    assert model.is_made_of(tiny)  # a folder may hold the graph without what it was made of


@pytest.mark.parametrize("name", ["coreml.json", "model.onnx", "word_embeddings.npy", "position_embeddings.npy"])
def test_a_missing_file_is_one_sentence(tiny: Path, name: str) -> None:
    (tiny / "coreml" / name).unlink()
    with pytest.raises(CoremlModelError, match=name.replace(".", r"\.")):
        CoremlModel.open(tiny / "coreml")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 1}, "has the format 1 and not 2: export it again"),
        ({"format": "1"}, "does not describe"),
        ({"hidden_size": "24"}, "does not describe"),
        ({"sources": None}, "does not describe"),
        ({"inv_freq": ["fast"]}, "does not describe"),
        ({"hidden_size": 25}, "no table of width 25"),
        ({"vocabulary": 71}, "has 70 rows and not 71"),
        ({"max_tokens": 49}, "has 48 rows, too few"),
        ({"padding_id": 1}, "has 48 rows, too few"),
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence(tiny: Path, change: dict[str, Any], problem: str) -> None:
    file = tiny / "coreml" / "coreml.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | change))
    with pytest.raises(CoremlModelError, match=problem):
        CoremlModel.open(tiny / "coreml")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": 1}'])
def test_a_damaged_description_is_one_sentence(tiny: Path, content: bytes) -> None:
    (tiny / "coreml" / "coreml.json").write_bytes(content)
    with pytest.raises(CoremlModelError, match=r"coreml\.json"):
        CoremlModel.open(tiny / "coreml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_description_that_is_a_pipe_is_refused_and_not_waited_for(tiny: Path) -> None:
    description = tiny / "coreml" / "coreml.json"
    description.unlink()
    os.mkfifo(description)
    with pytest.raises(CoremlModelError, match=r"coreml\.json is not a regular file"):
        CoremlModel.open(tiny / "coreml")


def test_a_damaged_table_is_one_sentence(tiny: Path) -> None:
    table = tiny / "coreml" / "word_embeddings.npy"
    for content in (b"", table.read_bytes()[:1000], b"\x93NUMPY nothing else"):
        table.write_bytes(content)
        with pytest.raises(CoremlModelError, match=r"word_embeddings\.npy cannot be read"):
            CoremlModel.open(tiny / "coreml")
    np.save(table, np.zeros((70, 24), np.int32))
    with pytest.raises(CoremlModelError, match="holds int32"):
        CoremlModel.open(tiny / "coreml")


# What it is fed -----------------------------------------------------------------------------------------------------


def batches() -> st.SearchStrategy[tuple[Int64, Int64]]:
    """Ids and masks of 1 to 8 texts of 1 to 16 tokens, padded on one side."""

    def of(lengths: list[int], pad_left: bool) -> tuple[Int64, Int64]:
        rows = [TokenizedText(np.arange(length) % 60 + 3, length) for length in lengths]
        ids, mask, _ = padded(rows, pad_left)
        return ids, mask

    return st.builds(of, st.lists(st.integers(1, 16), min_size=1, max_size=8), st.booleans())


@settings(max_examples=60, deadline=None)
@given(batch=batches(), name=st.sampled_from(["bert-mean", "xlmr-unigram", "qwen3-last"]))
def test_every_row_and_every_padding_token_sees_something(
    made: Mapping[str, Made], batch: tuple[Int64, Int64], name: str
) -> None:
    ids, mask = batch
    weights = pooling_weights(mask, PoolingMode.MEAN)
    assert weights is not None
    feeds = made[name].coreml.feeds(ids, mask, weights, 8, 32)
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in feeds.values())
    bias = feeds["attention_bias"]
    assert set(np.unique(bias)) <= {np.float32(0), np.float32(-1e4)}
    assert (bias == 0).any(axis=-1).all()
    np.testing.assert_allclose(feeds["pooling_weights"].sum(axis=-1), 1, rtol=1e-6)
    # What no text sees is an embedding all the same: zeros would be divided by their deviation.
    assert (np.abs(feeds["inputs_embeds"]).max(axis=-1) > 0).all()
    if name == "qwen3-last":
        later = np.triu(np.ones((32, 32), bool), 1)
        assert (bias[:, 0][:, later] < 0).all()


@pytest.mark.parametrize(("batch", "length"), [(2, 8), (3, 4), (0, 0)])
def test_a_batch_that_does_not_fit_is_refused(made: Mapping[str, Made], batch: int, length: int) -> None:
    ones = np.ones((3, 5), np.int64)
    with pytest.raises(ValueError, match="a batch of 3 texts, 5 tokens does not fit"):
        made["bert-mean"].coreml.feeds(ones, ones, ones.astype(np.float32), batch, length)


def test_ids_and_lengths_beyond_the_tables_are_errors(made: Mapping[str, Made]) -> None:
    model = made["bert-mean"].coreml
    ones = np.ones((1, 161), np.int64)
    with pytest.raises(IndexError):
        model.feeds(ones, ones, ones.astype(np.float32), 1, 256)
    few = ones[:, :4]
    with pytest.raises(IndexError):
        model.feeds(few * 1000, few, few.astype(np.float32), 1, 32)


@settings(max_examples=80, deadline=None)
@given(batch=batches(), mode=st.sampled_from(LINEAR), data=st.data())
def test_pooling_weights_give_what_pooling_gives(
    batch: tuple[Int64, Int64], mode: PoolingMode, data: st.DataObject
) -> None:
    _, mask = batch
    hidden = data.draw(arrays.arrays(np.float32, (*mask.shape, 3), elements=st.floats(-2, 2, width=32)))
    skipped = data.draw(st.none() | arrays.arrays(np.int64, len(mask), elements=st.integers(0, 5)))
    weights = pooling_weights(mask, mode, skipped)
    assert weights is not None
    assert weights.dtype == np.float32
    np.testing.assert_allclose(
        np.einsum("bt,btd->bd", weights, hidden), pool(hidden, mask, (mode,), skipped), rtol=0, atol=1e-5
    )


def test_the_largest_components_are_no_weighted_sum() -> None:
    assert pooling_weights(np.ones((1, 3), np.int64), PoolingMode.MAX) is None


def test_the_fixtures_are_what_the_tests_say() -> None:
    modes = {name: read_model_folder(MODELS / name, ModelOptions()).pooling for name in FIXTURES}
    assert [mode for (mode,) in modes.values()] == ["mean", "cls", "lasttoken", "mean", "weightedmean", "mean"]


def test_a_graph_that_takes_positions_is_the_reference_of_its_own_weights(tmp_path: Path) -> None:
    """Where there are no safetensors; RoBERTa's positions begin behind the padding's own."""
    folder = tmp_path / "xlmr"
    shutil.copytree(CASES / "12-roberta-position-ids" / "model", folder)
    report = export_for_coreml(folder, output=folder)
    assert report.sources == ["config.json", "onnx/model.onnx"]
    assert report.min_cosine > 0.999999
