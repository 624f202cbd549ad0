"""Export from safetensors to ONNX: tiny random models, the golden fixtures, and folders that cannot be exported."""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embed_worker.manifest import Manifest, Verify, verify
from embed_worker.tools import bert, export, onnx_writer
from embed_worker.tools.onnx_writer import Storage
from tests.worker.test_safetensors import file_of_tensors

FIXTURES = Path(__file__).parents[1] / "models"
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 70,
}


def random_tensors(config: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Make every published tensor of a BERT, pooler included."""
    random = np.random.default_rng(7)
    width, inner = config["hidden_size"], config["intermediate_size"]
    tensors: dict[str, NDArray[Any]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        tensors[f"{name}.weight"] = random.normal(0, 0.3, (outputs, inputs)).astype(np.float32)
        tensors[f"{name}.bias"] = random.normal(0, 0.1, outputs).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.LayerNorm.weight"] = random.normal(1, 0.1, width).astype(np.float32)
        tensors[f"{name}.LayerNorm.bias"] = random.normal(0, 0.1, width).astype(np.float32)

    for table, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        shape = (config[rows], width)
        tensors[f"embeddings.{table}_embeddings.weight"] = random.normal(0, 1, shape).astype(np.float32)
    norm("embeddings")
    for layer in range(config["num_hidden_layers"]):
        scope = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{scope}.attention.{part}", width, width)
        norm(f"{scope}.attention.output")
        linear(f"{scope}.intermediate.dense", inner, width)
        linear(f"{scope}.output.dense", width, inner)
        norm(f"{scope}.output")
    linear("pooler.dense", width, width)
    return tensors


def make_folder(
    folder: Path, *, tensors: Mapping[str, NDArray[Any]] | None = None, bfloat16: bool = False, **changes: Any
) -> Path:
    """Write config.json and model.safetensors; `changes` are the configuration's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(CONFIG | {"num_hidden_layers": 2} | changes) if tensors is None else tensors
    dtypes = {}
    if bfloat16:
        tensors = {name: (tensor.view(np.uint32) >> 16).astype(np.uint16) for name, tensor in tensors.items()}
        dtypes = dict.fromkeys(tensors, "BF16")
    (folder / "model.safetensors").write_bytes(file_of_tensors(tensors, dtypes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny")


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="embed-worker export")
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(argument) for argument in arguments]))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 78) -> str:
    """Run an export that must fail, and give its one sentence."""
    assert run(*arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("embed-worker export: ")
    return line.removeprefix("embed-worker export: ")


def session_of(graph: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def graph_of(folder: Path) -> Path:
    return folder / "onnx" / "model.onnx"


# What is written ----------------------------------------------------------------------------------------------------


def test_the_graph_has_the_interface_that_published_exports_have(folder: Path) -> None:
    assert run(folder) == 0
    session = session_of(graph_of(folder))
    axes = ["batch_size", "sequence_length"]
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", axes),
        ("attention_mask", "tensor(int64)", axes),
        ("token_type_ids", "tensor(int64)", axes),
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("last_hidden_state", "tensor(float)", [*axes, 24])
    ]


@pytest.mark.parametrize("weights", list(Storage))
@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_every_variant_agrees_with_the_witness(tmp_path: Path, weights: str, opset: int, activation: str) -> None:
    folder = make_folder(tmp_path / "tiny", hidden_act=activation)
    assert run(folder, "--weights", weights, "--opset", str(opset)) == 0
    imported = onnx.load(graph_of(folder)).opset_import
    assert [(entry.domain, entry.version) for entry in imported] == [("", opset)]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 1},
        {"num_attention_heads": 24},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 5},
        {"layer_norm_eps": 0.01},
        {"max_position_embeddings": 5},
        {"type_vocab_size": 1},
    ],
    ids=str,
)
def test_sizes_come_from_the_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert run(make_folder(tmp_path / "tiny", **changes), "--weights", "float32") == 0


def test_names_may_have_the_prefix_bert_and_the_pooler_may_be_absent(folder: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    other = make_folder(tmp_path / "prefixed", tensors=prefixed | {"cls.predictions.bias": np.zeros(70, np.float32)})
    assert run(folder) == run(other) == 0
    assert graph_of(folder).read_bytes() == graph_of(other).read_bytes()


def test_a_model_without_token_types_has_no_such_input(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["embeddings.token_type_embeddings.weight"]
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert run(folder) == 0
    assert [value.name for value in session_of(graph_of(folder)).get_inputs()] == ["input_ids", "attention_mask"]


def test_bfloat16_and_float16_weights_are_read(tmp_path: Path) -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in random_tensors(CONFIG).items()}
    assert run(make_folder(tmp_path / "bfloat16", bfloat16=True)) == 0
    assert run(make_folder(tmp_path / "float16", tensors=halves), "--weights", "float32") == 0


def test_the_same_weights_give_the_same_bytes_anywhere(folder: Path, tmp_path: Path) -> None:
    assert run(folder) == 0
    first = graph_of(folder).read_bytes()
    assert run(make_folder(tmp_path / "elsewhere"), "--output", tmp_path / "out") == 0
    assert graph_of(tmp_path / "out").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_tables_stay_float16_and_matrices_are_widened_and_fused_when_loaded(folder: Path, tmp_path: Path) -> None:
    assert run(folder) == 0
    session_of(graph_of(folder), tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    types = {tuple(tensor.dims): tensor.data_type for tensor in optimized.initializer if len(tensor.dims) == 2}
    assert types.pop((70, 24)) == types.pop((48, 24)) == types.pop((2, 24)) == onnx.TensorProto.FLOAT16
    assert set(types.values()) == {onnx.TensorProto.FLOAT}

    operators = collections.Counter(node.op_type for node in optimized.node)
    # What is left to convert: the rows of three tables, and the mask.
    assert operators["Cast"] == 4
    # Six projections a layer with their biases; the scale and the key's transposition go into the scores' product.
    assert (operators["Gemm"], operators["FusedMatMul"], operators["MatMul"]) == (12, 2, 2)
    assert (operators["Gelu"], operators["Erf"], operators["Div"]) == (2, 0, 0)


def test_a_vector_does_not_depend_on_padding_or_neighbours(folder: Path) -> None:
    assert run(folder) == 0
    session = session_of(graph_of(folder))
    ids = np.random.default_rng(3).integers(0, 70, (3, 20))
    mask = np.ones_like(ids)
    mask[0, 7:] = mask[1, 19:] = 0
    types = np.zeros_like(ids)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    (batch,) = session.run(None, feeds)
    (alone,) = session.run(None, {name: values[:1, :7] for name, values in feeds.items()})
    np.testing.assert_allclose(batch[0, :7], alone[0], atol=1e-6)


def test_a_text_beyond_the_position_table_fails_rather_than_wraps(folder: Path) -> None:
    assert run(folder) == 0
    ids = np.zeros((1, 49), np.int64)
    with pytest.raises(Exception, match=r"(?i)broadcast|dimension"):
        session_of(graph_of(folder)).run(None, {"input_ids": ids, "attention_mask": ids + 1, "token_type_ids": ids})


@pytest.mark.parametrize(("name", "pooling"), [("bert-mean", "mean"), ("bert-cls-new", "cls")])
@pytest.mark.parametrize("weights", list(Storage))
def test_the_goldens_of_sentence_transformers_come_out(
    tmp_path: Path, name: str, pooling: str, weights: Storage
) -> None:
    assert run(FIXTURES / name, "--output", tmp_path / name, "--weights", weights) == 0
    session = session_of(graph_of(tmp_path / name))
    expected = json.loads((FIXTURES / f"{name}.expected.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(expected["model"]["max_seq_length"])
    cases = [case for case in expected["cases"] if case["dimensions"] is None and case["normalize"] is None]
    assert len(cases) >= 10
    for case in cases:
        prompt = expected["model"]["prompts"][case["prompt_name"]] if case["prompt_name"] else ""
        for text, golden in zip(case["texts"], case["embeddings"], strict=True):
            ids = np.array([tokenizer.encode(prompt + text).ids])
            feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
            hidden = session.run(None, feeds)[0][0]
            vector = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
            vector = vector / np.linalg.norm(vector)
            if weights is Storage.FLOAT32:
                np.testing.assert_allclose(vector, golden, atol=expected["tolerance"], rtol=0)
            assert float(vector @ np.array(golden)) > 0.9999


# The folder and its manifest ----------------------------------------------------------------------------------------


def test_an_export_in_place_leaves_one_more_file_and_a_manifest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder) == 0
    assert sorted(file.name for file in folder.rglob("*") if file.is_file()) == [
        "config.json",
        "manifest.json",
        "model.onnx",
        "model.safetensors",
    ]
    out = capsys.readouterr().out
    assert "opset 17, weights stored as float16" in out
    assert "manifest.json lists 3 files" in out
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.source.startswith("model.safetensors SHA-256 ")
    assert manifest.license == "not stated"


def test_another_output_gets_tokenizer_configs_and_modules_but_no_published_weights(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "made" / "tiny"
    shutil.copytree(FIXTURES / "bert-cls-new", source)
    (source / "data_config.json").write_text("{}")
    assert run(source, "--output", output, "--source", "a hub", "--license", "MIT") == 0
    manifest = Manifest.read(output)
    assert manifest is not None
    verify(output, manifest, Verify.ALWAYS)
    assert (manifest.name, manifest.license) == ("tiny", "MIT")
    assert manifest.source.startswith("a hub, model.safetensors SHA-256 ")
    assert manifest.source.endswith(", exported by embed-worker export")
    assert list(manifest.files) == [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "onnx/model.onnx",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_report_in_json_names_what_was_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--json", "--weights", "float32") == 0
    report = json.loads(capsys.readouterr().out)
    manifest = Manifest.read(folder)
    assert manifest is not None
    record = manifest.files["onnx/model.onnx"]
    assert (report["sha256"], report["size"], report["files"]) == (record.sha256, record.size, 3)
    assert (report["opset"], report["weights"], report["graph"]) == (17, "float32", str(graph_of(folder)))
    assert 0 <= report["max_difference"] < 1e-5
    assert 0.999999 < report["min_cosine"] < 1.000001


def test_the_default_model_is_what_its_manifest_says() -> None:
    folder = Path(__file__).parents[2] / "models" / "all-MiniLM-L6-v2"
    manifest = Manifest.read(folder)
    assert manifest is not None
    verify(folder, manifest, Verify.ALWAYS)
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in manifest.source


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "qwen3"}, "model_type is 'qwen3' cannot be exported; what can be: bert."),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["bert"]}, "model_type is ['bert']"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish' cannot be exported; what can be: gelu, gelu_new, relu."),
        ({"is_decoder": True}, "decoder"),
        ({"num_attention_heads": 5}, "hidden_size of 24 that 5 attention heads do not divide"),
        ({"num_attention_heads": 0}, "positive integer num_attention_heads, not 0"),
        ({"hidden_size": "24"}, "positive integer hidden_size, not '24'"),
        ({"vocab_size": True}, "positive integer vocab_size, not True"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        (
            {"vocab_size": 71},
            "'embeddings.word_embeddings.weight' as float32 [70, 24], and config.json says float [71, 24]",
        ),
        ({"num_hidden_layers": 10**12}, "no tensor 'encoder.layer.2.attention.self.query.weight'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_that_cannot_be_exported_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    folder = make_folder(tmp_path / "tiny", tensors=random_tensors(CONFIG), **changes)
    assert sentence in refusal(capsys, folder)
    assert not (folder / "onnx").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_a_damaged_configuration_is_named(folder: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json is not " in refusal(capsys, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(capsys, folder)


def test_damaged_weights_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is no usable safetensors file" in refusal(capsys, folder)


def test_integer_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = random_tensors(CONFIG)
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((24, 40), np.int8)
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert "'encoder.layer.1.output.dense.weight' as int8 [24, 40]" in refusal(capsys, folder)


def test_weights_beyond_float16_are_refused_and_fit_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = random_tensors(CONFIG)
    tensors["encoder.layer.0.attention.self.value.weight"][0, 0] = 1e5
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert "'encoder.layer.0.attention.self.value.weight' has values that float16 cannot hold" in refusal(
        capsys, folder
    )
    assert run(folder, "--weights", "float32") == 0


def test_an_output_that_cannot_be_written_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "onnx").write_text("a file where the folder should be")
    assert "cannot be written" in refusal(capsys, folder)


def test_a_missing_onnx_package_names_the_extra(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(capsys, folder).endswith("pip install 'embed-bridge[tools]'.")


@pytest.mark.parametrize(
    "arguments", [[], ["DIR", "--opset", "16"], ["DIR", "--opset", "x"], ["DIR", "--weights", "int8"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2
    assert "usage: embed-worker export" in capsys.readouterr().err


# The check, tested by breaking what it guards -----------------------------------------------------------------------


def unmasked(self: bert.Bert, graph: onnx_writer.GraphWriter) -> str:
    return graph.scalar(0)


def misnormed(self: bert.Bert, graph: onnx_writer.GraphWriter, scope: str, x: str) -> str:
    scale = graph.constant(f"{scope}.weight", self.tensors[f"{scope}.weight"])
    return graph.node(scope, "LayerNormalization", x, scale, epsilon=0.1)


def not_a_number(self: bert.Bert, graph: onnx_writer.GraphWriter) -> str:
    return graph.scalar(float("nan"))


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        ("_write_attention_bias", unmasked),
        ("_write_attention_bias", not_a_number),
        ("_write_layer_norm", misnormed),
    ],
)
@pytest.mark.parametrize("weights", list(Storage))
def test_a_wrong_graph_fails_the_check_and_what_was_there_stays(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    broken: Any,
    weights: str,
) -> None:
    assert run(folder, "--weights", weights) == 0
    capsys.readouterr()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr(bert.Bert, method, broken)
    assert refusal(capsys, folder, "--weights", weights, status=1).startswith("The graph differs from its weights: ")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_graph_that_does_not_load_fails_the_check(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adding integers to floats passes the checker of onnx, which infers no types.
    monkeypatch.setattr(bert.Bert, "_write_attention_bias", lambda self, graph: "input_ids")
    assert refusal(capsys, folder, status=1).startswith("onnxruntime cannot load the graph: ")
    assert list((folder / "onnx").iterdir()) == []
