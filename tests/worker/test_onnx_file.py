"""A look into graphs without onnxruntime, against what the package `onnx` reads; damage is never an error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.model_files.onnx_outline import Outline, read_outline
from tests.worker.harness import ROOT

onnx = pytest.importorskip("onnx")

DEFAULT = ROOT / "models" / "all-MiniLM-L6-v2" / "onnx" / "model.onnx"
FIXTURES = sorted((ROOT / "tests" / "models").glob("*/onnx/*.onnx"))


@pytest.mark.parametrize("graph", [DEFAULT, *FIXTURES], ids=lambda path: f"{path.parent.parent.name}/{path.name}")
def test_the_operators_are_those_of_the_graph(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    assert read_outline(graph).operators == {node.op_type for node in model.graph.node}


def test_the_table_of_the_default_model_is_found_where_its_bytes_are() -> None:
    (table,) = read_outline(DEFAULT).tables
    model = onnx.load(DEFAULT)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == table.name]
    expected = onnx.numpy_helper.to_array(tensor)
    assert (table.shape, table.item_bytes) == (expected.shape, expected.itemsize)
    found = np.fromfile(DEFAULT, expected.dtype, count=expected.size, offset=table.offset)
    np.testing.assert_array_equal(found.reshape(table.shape), expected)


def save(path: Path, *, other_use: bool, kind: int, packed_in_raw: bool = True) -> Path:
    """A graph with one table of 2 MiB or more that Gather reads, and perhaps somebody else."""
    values = np.arange(2**19, dtype=np.float32).reshape(1024, 512)
    values = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    table = onnx.numpy_helper.from_array(values, "table")
    if not packed_in_raw:
        table = onnx.helper.make_tensor("table", kind, values.shape, values.ravel().tolist())
    nodes = [onnx.helper.make_node("Gather", ["table", "ids"], ["rows"])]
    if other_use:
        nodes.append(onnx.helper.make_node("Identity", ["table"], ["copy"]))
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [None])
    rows = onnx.helper.make_tensor_value_info("rows", kind, [None, 512])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [ids], [rows], [table])), path)
    return path


@pytest.mark.parametrize(
    ("kind", "shape", "operators", "expected"),
    [
        ("INT8", (64, 64), ("Cast", "Mul", "MatMul"), "int8"),
        ("UINT8", (64, 64), ("Cast", "Sub", "Mul", "MatMul"), "uint8"),
        ("UINT4", (64, 64), ("DequantizeLinear", "MatMul"), "uint4"),
        ("FLOAT", (64, 64), ("DynamicQuantizeLinear", "MatMulInteger"), "int8"),
        ("FLOAT16", (64, 64), ("Cast", "MatMul"), None),
        ("INT8", (64,), ("Cast", "MatMul"), None),  # an axis of scales or flags
        ("INT64", (64, 64), ("Gather",), None),
    ],
)
def test_a_graph_is_quantised_if_its_weights_are_whatever_widens_them(
    tmp_path: Path, kind: str, shape: tuple[int, ...], operators: tuple[str, ...], expected: str | None
) -> None:
    bits = {"FLOAT": 32, "FLOAT16": 16, "INT64": 64, "INT8": 8, "UINT8": 8, "UINT4": 4}[kind]
    content = bytes(math.prod(shape) * bits // 8)
    weights = onnx.helper.make_tensor("w", getattr(onnx.TensorProto, kind), shape, content, raw=True)
    nodes = [onnx.helper.make_node(operator, ["w"], [f"out{place}"]) for place, operator in enumerate(operators)]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [weights])), tmp_path / "g.onnx")
    assert read_outline(tmp_path / "g.onnx").quantization == expected


def test_only_tables_that_nobody_else_reads_are_shared(tmp_path: Path) -> None:
    kind = onnx.TensorProto.FLOAT
    assert len(read_outline(save(tmp_path / "a.onnx", other_use=False, kind=kind)).tables) == 1
    assert not read_outline(save(tmp_path / "b.onnx", other_use=True, kind=kind)).tables
    assert not read_outline(save(tmp_path / "c.onnx", other_use=False, kind=onnx.TensorProto.INT32)).tables
    assert not read_outline(save(tmp_path / "d.onnx", other_use=False, kind=kind, packed_in_raw=False)).tables


def test_graphs_that_quantise_by_batch_are_known() -> None:
    folder = ROOT / "tests" / "models" / "xenova-bare" / "onnx"
    assert read_outline(folder / "model_quantized.onnx").scales_by_batch
    assert not read_outline(folder / "model.onnx").scales_by_batch


def test_a_file_that_is_not_there_or_empty_has_no_outline(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    assert read_outline(tmp_path / "empty.onnx") == read_outline(tmp_path / "missing.onnx") == Outline()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cut=st.integers(0, 20_000), flips=st.lists(st.tuples(st.integers(0, 19_999), st.integers(0, 255)), max_size=20))
def test_damage_is_never_an_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(FIXTURES[0].read_bytes()[:20_000])
    for place, value in flips:
        data[place] = value
    file = tmp_path_factory.getbasetemp() / "damaged.onnx"
    file.write_bytes(data[: cut or 1])
    assert isinstance(read_outline(file), Outline)
