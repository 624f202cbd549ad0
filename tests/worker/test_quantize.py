"""`embed-worker quantize`: the rounding, the graphs that it makes, what becomes of folders, and what is refused."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.inference import ort
from embed_worker.inference.engine import LoadedModel
from embed_worker.loading import load_model
from embed_worker.model_files.manifest import Manifest, verify
from embed_worker.tools.quantize import command as quantize
from embed_worker.tools.quantize import int8
from embed_worker.tools.quantize.int8 import FloatGraph, QuantizeError
from embed_worker.tools.texts import TEXTS_BY_KIND
from tests.worker.harness import ROOT, cosines

MODELS = ROOT / "tests" / "models"
DEFAULT_MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
GOLDEN = json.loads((ROOT / "tests" / "goldens" / "minilm_golden.json").read_text("utf-8"))
TEXTS = ["hello world", "The quick brown fox jumps over the lazy dog.", "größer 東京", "a " * 40]

Float32 = NDArray[np.float32]


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="embed-worker quantize")
    quantize.add_arguments(parser)
    return quantize.run(parser.parse_args([str(argument) for argument in arguments]))


def make(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """Quantise without timing; return the report."""
    assert run(*arguments, "--no-speed", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert isinstance(report, dict)
    return report


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 78) -> str:
    """Run what must fail, and give its one sentence."""
    assert run(*arguments, "--no-speed") == status
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("embed-worker quantize: ")
    return line.removeprefix("embed-worker quantize: ")


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / name, tmp_path / name))


def load(folder: Path, **options: Any) -> LoadedModel:
    chosen = ModelOptions(name_or_path=str(folder), **options)
    return load_model(folder, chosen, RuntimeOptions(verify=Verify.ALWAYS), 1)


def vectors_of(model: LoadedModel, texts: list[str]) -> Float32:
    rows = model.engine.tokenizer.encode(texts, "")
    return np.concatenate([model.engine.embed([row], exclusive=False) for row in rows])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def graph_of(file: Path) -> Any:
    return onnx.load(file, load_external_data=False).graph


# The rounding -------------------------------------------------------------------------------------------------------

matrices = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1, 1e4]))


def matrix(shape: tuple[int, int, int, float]) -> Float32:
    rows, columns, seed, size = shape
    random = np.random.default_rng(seed)
    values = random.standard_t(2, (rows, columns)) * size * random.integers(0, 2, (1, columns))
    return values.astype(np.float32)


@given(matrices)
def test_no_two_neighbours_of_a_column_overflow_16_bits(shape: tuple[int, int, int, float]) -> None:
    values, scales = int8.quantize_columns(matrix(shape))
    wide = np.zeros((len(values) + len(values) % 2, values.shape[1]), np.int64)
    wide[: len(values)] = values
    for sign in (1, -1):
        assert 255 * np.maximum(sign * wide.reshape(-1, 2, values.shape[1]), 0).sum(axis=1).max() <= 2**15 - 1
    assert (np.abs(values * scales - matrix(shape)) <= scales / 2 * 1.001).all()


@given(matrices)
def test_a_table_is_rounded_to_its_rows_scale(shape: tuple[int, int, int, float]) -> None:
    values, scales = int8.quantize_table(matrix(shape))
    assert scales.shape == (len(values), 1)
    assert (np.abs(values * scales - matrix(shape)) <= scales / 2 * 1.001).all()


@given(matrices, st.integers(1, 254))
def test_every_row_fits_whatever_the_zero_point(shape: tuple[int, int, int, float], zero_point: int) -> None:
    rows = matrix(shape)
    rounded = int8.round_rows(rows, zero_point)
    scales = int8.row_scales(rows.max(axis=1, keepdims=True), rows.min(axis=1, keepdims=True), zero_point)
    assert (np.abs(rounded - rows) <= scales * 0.501).all()


def test_the_zero_point_leaves_room_where_the_values_are() -> None:
    normal = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    assert 110 < int8.choose_zero_point(normal) < 145
    assert int8.choose_zero_point(np.maximum(normal, -0.17)) < 40
    assert int8.choose_zero_point(-np.maximum(normal, -0.17)) > 215


def test_channels_are_evened_out_where_a_few_are_large_and_only_there() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(64, 32)).astype(np.float32)
    even = random.normal(size=(100, 64)).astype(np.float32)
    assert int8.choose_rounding(even, weights, may_divide=True).divisors is None
    uneven = even.copy()
    uneven[:, 5] *= 60
    plain = int8.choose_rounding(uneven, weights, may_divide=False)
    evened = int8.choose_rounding(uneven, weights, may_divide=True)
    assert plain.divisors is None
    assert evened.divisors is not None
    assert (np.log2(evened.divisors) % 1 == 0).all()
    assert evened.divisors.argmax() == 5
    assert evened.error < plain.error / 4


# Graphs -------------------------------------------------------------------------------------------------------------


def small_graph(opset: int = 17) -> Any:
    """x · A · B + x · B, where A is float16, cast and transposed, and B is used twice; and a table of 300 rows."""
    random = np.random.default_rng(1)
    constants = {
        "A": random.normal(size=(8, 8)).astype(np.float16),
        "B": random.normal(size=(8, 8)).astype(np.float32),
        "table": random.normal(size=(300, 8)).astype(np.float16),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["picked"]),
        helper.make_node("Cast", ["picked"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["A"], ["A32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["A32"], ["At"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "At"], ["xA"]),
        helper.make_node("MatMul", ["xA", "B"], ["xAB"]),
        helper.make_node("MatMul", ["x", "B"], ["xB"]),
        helper.make_node("Add", ["xAB", "xB"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", 8])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def output_of(model: Any, ids: NDArray[np.int64]) -> Float32:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: Float32 = session.run(["y"], {"ids": ids})[0]
    return output


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_cast_and_transposed_weights_shared_weights_and_tables_are_quantized(opset: int) -> None:
    model = small_graph(opset)
    ids = np.arange(12).reshape(3, 4)
    exact = output_of(model, ids)
    graph = FloatGraph(model)
    assert list(graph.products) == ["x", "xA"]
    assert graph.weights_of("x").shape == (8, 16)
    assert graph.shares_weights("x")
    sample = np.random.default_rng(2).normal(size=(64, 8)).astype(np.float32)
    roundings = {
        name: int8.choose_rounding(sample, graph.weights_of(name), may_divide=False) for name in graph.products
    }
    assert graph.quantize(roundings) == int8.Changed(products=3, tables=1)
    onnx.checker.check_model(model)
    assert {tensor.name for tensor in model.graph.initializer}.isdisjoint({"A", "B", "table"})
    assert not {"MatMul", "Transpose"} & {node.op_type for node in model.graph.node}
    rounded = output_of(model, ids)
    assert cosines(rounded, exact).min() > 0.999
    # A row of a batch is what it is alone, to the last bit.
    np.testing.assert_array_equal(rounded[1:2, 2:3], output_of(model, ids[1:2, 2:3]))


def test_rows_are_divided_as_the_weights_are_multiplied() -> None:
    model = small_graph()
    ids = np.arange(12).reshape(3, 4)
    exact = output_of(model, ids)
    graph = FloatGraph(model)
    divisors = np.array([1, 2, 4, 0.5, 1, 0.25, 8, 1], np.float32)
    graph.quantize({"xA": int8.Rounding(divisors=divisors, zero_point=128, error=0)})
    assert [node.op_type for node in model.graph.node].count("MatMul") == 2
    assert cosines(output_of(model, ids), exact).min() > 0.995


def test_a_row_of_zeros_stays_zero() -> None:
    model = small_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "table":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((300, 8), np.float16), "table"))
    graph = FloatGraph(model)
    graph.quantize({"x": int8.Rounding(divisors=None, zero_point=7, error=0)})
    assert not output_of(model, np.zeros((1, 2), np.int64)).any()


def test_what_only_a_branch_uses_is_kept() -> None:
    model = small_graph()
    branch = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"])],
        "branch",
        [],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT16, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["extra"], then_branch=branch, else_branch=branch))
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT16, None))
    graph = FloatGraph(model)
    changed = graph.quantize({"x": int8.Rounding(divisors=None, zero_point=128, error=0)})
    assert changed.tables == 0
    assert "table" in {tensor.name for tensor in model.graph.initializer}
    assert output_of(model, np.zeros((1, 2), np.int64)).shape == (1, 2, 8)


def test_a_graph_without_products_by_weights_is_refused() -> None:
    model = small_graph()
    del model.graph.node[4:]
    with pytest.raises(QuantizeError, match="no float32 products"):
        FloatGraph(model)


# Models -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "products"),
    [
        ("bert-mean", {}, 12),
        ("qwen3-last", {}, 14),
        ("xenova-bare", {"pooling": "mean"}, 12),
        ("gemma-graph-pooled", {}, 12),  # its Dense module comes after the pooling, and stays as it is
    ],
)
def test_a_variant_is_served_and_gives_nearly_the_same_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: dict[str, str], products: int
) -> None:
    folder = copied(name, tmp_path)
    arguments = [part for option, value in options.items() for part in (f"--{option}", value)]
    report = make(capsys, folder, *arguments)
    assert (report["products"], report["tables"]) == (products, 1)
    assert report["graph"] == str(folder / "onnx" / "model_int8.onnx")
    assert report["size"] < 0.65 * report["source_size"]
    assert 0.99 < report["likeness"]["min_cosine"] < report["likeness"]["mean_cosine"] <= 1
    assert report["is_batch_invariant"] is True
    assert report["likeness"]["batch_max_distance"] < 1e-6

    variant = load(folder, variant="int8", **options)
    assert (variant.engine.backend.precision, variant.engine.is_batch_invariant) == ("int8", True)
    exact = vectors_of(load(folder, **options), TEXTS)
    assert cosines(vectors_of(variant, TEXTS), exact).min() > 0.99
    operators = {node.op_type for node in graph_of(folder / "onnx" / "model_int8.onnx").node}
    assert "MatMulIntegerToFloat" in operators
    assert not any(operator.startswith("DynamicQuantize") for operator in operators)


def test_the_default_model_keeps_its_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / DEFAULT_MODEL.name
    before = contents(DEFAULT_MODEL)
    report = make(capsys, DEFAULT_MODEL, "--output", output)
    assert (report["products"], report["tables"]) == (36, 1)
    assert report["size"] < 0.55 * report["source_size"]
    assert report["likeness"]["min_cosine"] > 0.985
    assert report["likeness"]["mean_cosine"] > 0.995
    assert report["likeness"]["reference_min_cosine"] > 0.96
    kinds = report["likeness"]["kinds"]
    assert list(kinds) == sorted(kinds, key=kinds.__getitem__)
    assert kinds.keys() == TEXTS_BY_KIND.keys()
    assert min(kinds.values()) == report["likeness"]["min_cosine"]
    assert contents(DEFAULT_MODEL) == before
    cosine = cosines(vectors_of(load(output, variant="int8"), GOLDEN["texts"][:60]), GOLDEN["embeddings"][:60])
    assert cosine.min() > 0.985
    assert cosine.mean() > 0.995


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(capsys, copied("bert-mean", tmp_path / "first"))
    second = make(capsys, copied("bert-mean", tmp_path / "second"))
    assert first["sha256"] == second["sha256"]
    assert str(tmp_path).encode() not in Path(first["graph"]).read_bytes()


def test_data_in_another_file_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("qwen3-last", tmp_path)
    report = make(capsys, folder, "--onnx-file", "onnx/model_ext.onnx", "--output-name", "model_small.onnx")
    data = folder / "onnx" / "model_ext.onnx_data"
    assert report["source_size"] == (folder / "onnx" / "model_ext.onnx").stat().st_size + data.stat().st_size
    data.unlink()
    assert load(folder, variant="small").engine.dimension == 32


def test_a_variant_is_timed_against_its_float_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("bert-mean", tmp_path)
    assert run(folder, "--json") == 0
    speed = json.loads(capsys.readouterr().out)["speed"]
    assert speed["rounds"] >= 5
    assert 0 < speed["lowest_ratio"] <= speed["ratio"] * 1.5
    assert 0 < speed["ratio"] <= speed["highest_ratio"] * 1.5
    assert speed["ratio"] == pytest.approx(speed["int8_texts_per_s"] / speed["float_texts_per_s"], rel=0.01)


def test_the_readable_report_says_how_to_run_the_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(copied("bert-mean", tmp_path), "--no-speed", "--output-name", "model_q8.onnx") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "run it with: --variant q8"
    assert any("does not depend on its neighbours" in line for line in lines)
    assert any(line.startswith("smallest by kind of text, the worst first: ") for line in lines)


def test_the_sentence_on_neighbours_follows_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_MAX_BATCH_DISTANCE", -1.0)  # as if the figure were above it
    assert run(copied("bert-mean", tmp_path), "--no-speed") == 0
    assert "A TEXT'S VECTOR DEPENDS on its neighbours" in capsys.readouterr().out


# Folders ------------------------------------------------------------------------------------------------------------


def with_manifest(folder: Path) -> Path:
    Manifest.of_folder(folder, name=folder.name, source="a test", license="none").write(folder)
    return folder


def test_a_manifest_learns_of_the_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_manifest(copied("bert-mean", tmp_path))
    before = Manifest.read(folder)
    assert before is not None
    for min_cosine in ("0.9", "0.95"):  # the second time there is one to replace
        report = make(capsys, folder, "--min-cosine", min_cosine)
        manifest = Manifest.read(folder)
        assert manifest is not None
        assert manifest.files["onnx/model_int8.onnx"].sha256 == report["sha256"]
        assert len(manifest.files) == len(before.files) + 1
        verify(folder, manifest, Verify.ALWAYS)


def test_a_folder_without_a_manifest_gets_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("bert-mean", tmp_path)
    before = set(contents(folder))
    make(capsys, folder)
    assert set(contents(folder)) == before | {"onnx/model_int8.onnx"}


def test_output_makes_a_copy_and_leaves_the_model_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_manifest(copied("bert-mean", tmp_path))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()
    before = contents(folder)
    output = tmp_path / "made" / "copy"
    output.parent.mkdir()
    make(capsys, folder, "--output", output)
    assert contents(folder) == before
    made = contents(output)
    assert set(made) == (set(before) - {".cache/lock"}) | {"onnx/model_int8.onnx"}
    assert list(output.parent.iterdir()) == [output]
    assert load(output, variant="int8").engine.dimension == 32
    assert "exists" in refusal(capsys, folder, "--output", output)


@pytest.mark.parametrize("output", [False, True])
def test_a_variant_that_is_too_inexact_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: bool
) -> None:
    folder = with_manifest(copied("bert-mean", tmp_path))
    before = contents(tmp_path)
    arguments: list[str | Path] = ["--output", tmp_path / "copy"] if output else []
    sentence = refusal(capsys, folder, "--min-cosine", "0.9999999", *arguments, status=1)
    assert sentence.startswith("the smallest cosine to the float graph is 0.999")
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_written_is_refused_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied("e5-prefix", tmp_path)
    shutil.rmtree(folder / "onnx")
    (folder / "onnx").touch()  # where the variant's folder would be
    sentence = refusal(capsys, folder)
    assert "cannot be written" in sentence
    assert "--output DIR" in sentence


# What is refused ----------------------------------------------------------------------------------------------------


def test_graphs_that_cannot_be_quantized_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("xenova-bare", tmp_path)
    before = contents(folder)
    refused: list[tuple[list[str], str]] = [
        (["--pooling", "mean", "--variant", "quantized"], "model_quantized.onnx is quantised already"),
        (["--pooling", "mean", "--variant", "fp16"], "quantize the float32 graph"),
        (["--pooling", "mean", "--variant", "none"], "--variant asks for"),
        ([], "--pooling"),
    ]
    for arguments, sentence in refused:
        assert sentence in refusal(capsys, folder, *arguments)
    shutil.copyfile(folder / "onnx" / "model.onnx", folder / "onnx" / "model_int8.onnx")
    assert "another --output-name" in refusal(capsys, folder, "--pooling", "mean", "--variant", "int8")
    (folder / "onnx" / "model_int8.onnx").unlink()
    assert contents(folder) == before
    assert "no folder" in refusal(capsys, tmp_path / "nothing")


def test_a_damaged_model_is_not_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_manifest(copied("bert-mean", tmp_path))
    graph = folder / "onnx" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert "is not the file of its manifest" in refusal(capsys, folder)


def test_without_the_package_onnx_a_sentence_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(capsys, copied("bert-mean", tmp_path)).endswith("pip install 'embed-bridge[tools]'")


@pytest.mark.parametrize(
    "name", ["model.onnx", "int8.onnx", "model_.onnx", "model_a/b.onnx", "model_a", "../model_a.onnx"]
)
def test_a_name_that_variant_would_not_find_is_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("m", "--output-name", name)
    assert ended.value.code == 2
    assert "model_NAME.onnx" in capsys.readouterr().err


def test_what_cannot_gain_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    layers = helper.make_node("Gemm", ["input_ids", "weight"], ["last_hidden_state"])
    graph = helper.make_graph([layers], "of Gemm", [], [])
    with pytest.raises(QuantizeError, match="Gemm over the tokens of all texts at once, as GPT-2's"):
        FloatGraph(helper.make_model(graph))
    assert "is a table of vectors" in refusal(capsys, ROOT / "tests/layouts/potion-base-8M/model")


def test_the_session_that_told_the_activations_is_gone_before_its_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no file that is mapped."""
    opened: list[weakref.ref[Any]] = []
    open_session = ort.open_session

    def watched(*arguments: Any, **named: Any) -> Any:
        session = open_session(*arguments, **named)
        opened.append(weakref.ref(session))
        return session

    class Folder(tempfile.TemporaryDirectory[str]):
        def __exit__(self, *error: Any) -> None:
            assert opened
            assert not any(session() for session in opened)
            super().__exit__(*error)

    monkeypatch.setattr(ort, "open_session", watched)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", Folder)
    assert run(copied("bert-mean", tmp_path), "--no-speed") == 0
