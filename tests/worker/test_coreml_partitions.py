"""The forecast of CoreML's partitions: its rules one by one, its grouping, the counts of raw exports, and rule 6.

Where the counts come from. The provider's own partitioning was compiled on Linux from its source of August 2026 and run
over the raw exports under tests/models: what it claims, in how many pieces. One count is a Mac's own: 49 pieces in the
older format. The graphs that are counted are those that onnxruntime asked it about, kept in coreml_dumps.zip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.tools.mobile_helpers import usability_checker

from embed_worker.accelerators.coreml.graph_export import export_for_coreml
from embed_worker.tools.inspect.coreml_partitions import (
    CpuNode,
    Forecast,
    ForecastError,
    ModelFormat,
    bucket_overrides,
    forecast,
    forecast_optimized,
    optimized,
)
from embed_worker.tools.inspect.coreml_rules import Provider
from tests.worker.coreml_dumps import DEFAULT_MODEL, FIXTURES, dumped, raw, raw_bert

VERSIONS = tuple(f"1.{minor}" for minor in range(22, 33))
BUCKETS = [(batch, length) for batch in (1, 8) for length in (32, 64, 128, 256, 512)]

FLOAT, HALF, INT32, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)
Input = tuple[int, Sequence[Any]] | NDArray[Any]


# Rule 6: one partition and no node on the CPU -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def dedicated(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The dedicated graphs of the default model and of fixtures, by the models' names."""
    graphs = {}
    for folder in (DEFAULT_MODEL, *(FIXTURES / name for name in ("bert-mean", "xlmr-unigram", "qwen3-last"))):
        output = tmp_path_factory.mktemp(folder.name)
        graphs[folder.name] = Path(export_for_coreml(folder, output=output).folder, "model.onnx")
    return graphs


def assert_whole(found: Forecast) -> None:
    assert (found.cpu_nodes, found.breaking, found.trivial_sizes) == ((), (), ())
    assert found.partition_sizes == (found.nodes,)


@pytest.mark.parametrize(("batch", "length"), BUCKETS)
def test_rule_06_the_default_model_is_one_partition_in_every_bucket(
    dedicated: Mapping[str, Path], batch: int, length: int
) -> None:
    graph = optimized(dedicated[DEFAULT_MODEL.name], {"batch_size": batch, "sequence_length": length})
    for version in VERSIONS:
        assert_whole(forecast_optimized(graph, version=version))


@pytest.mark.parametrize("name", ["bert-mean", "xlmr-unigram", "qwen3-last"])
@pytest.mark.parametrize(("batch", "length"), BUCKETS)
def test_rule_06_fixture_models_are_one_partition_in_every_bucket(
    dedicated: Mapping[str, Path], name: str, batch: int, length: int
) -> None:
    graph = optimized(dedicated[name], {"batch_size": batch, "sequence_length": length})
    for version in VERSIONS:
        assert_whole(forecast_optimized(graph, version=version))


def test_a_dedicated_graph_without_its_bucket_is_refused_as_a_whole(dedicated: Mapping[str, Path]) -> None:
    found = forecast(dedicated["bert-mean"], overrides={})
    assert found.partitions == found.coreml_nodes == 0
    assert {node.reason for node in found.cpu_nodes} >= {"an input has a dynamic shape"}


# Raw exports --------------------------------------------------------------------------------------------------------


def counts(found: Forecast) -> tuple[int, int, int]:
    return found.partitions, found.coreml_nodes, found.nodes


def test_rule_06_a_raw_export_of_six_layers_has_the_counts_of_the_provider() -> None:
    dynamic = dumped("six-layers-dynamic")
    assert counts(forecast_optimized(dynamic, static=False)) == (16, 252, 290)
    assert counts(forecast_optimized(dynamic, static=True)) == (7, 43, 290)
    bucket = forecast_optimized(dumped("six-layers-1x128"))
    assert counts(bucket) == (2, 212, 215)
    assert Counter(node.operator for node in bucket.cpu_nodes) == {"Flatten": 1, "Gather": 1, "Reshape": 1}
    assert [node.operator for node in bucket.breaking] == ["Flatten"]


def test_the_older_format_has_the_count_that_a_mac_logged() -> None:
    """49 partitions for MiniLM: chroma-core/chroma#1701."""
    found = forecast_optimized(dumped("six-layers-dynamic"), version="1.22", model_format="NeuralNetwork", static=False)
    assert found.partitions == 49


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes that nothing reads; onnxruntime would keep them."""
    for node in reversed(list(graph.node)):
        read = {name for other in graph.node for name in other.input} | {value.name for value in graph.output}
        if not read.intersection(node.output):
            graph.node.remove(node)


def test_rule_06_a_raw_export_with_a_float_mask_is_one_partition() -> None:
    model = raw_bert(6)
    mask = "/model/Where_1_output_0"
    graph = model.graph
    graph.node.remove(next(node for node in graph.node if mask in node.output))
    remove_unread(graph)
    graph.input.append(helper.make_tensor_value_info(mask, FLOAT, ["batch_size", 1, 1, "sequence_length"]))
    assert counts(forecast(model, overrides={"batch_size": 1, "sequence_length": 128})) == (1, 209, 209)


RAW_COUNTS: Sequence[tuple[str, ModelFormat, bool, tuple[int, int, int]]] = [
    ("bert-mean-dynamic", "MLProgram", False, (6, 133, 166)),
    ("bert-mean-dynamic", "NeuralNetwork", False, (14, 85, 166)),
    ("bert-mean-1x64", "MLProgram", True, (3, 102, 122)),
    ("bert-mean-1x64", "NeuralNetwork", True, (13, 87, 122)),
    ("xlmr-unigram-dynamic", "MLProgram", False, (9, 116, 148)),
    ("xlmr-unigram-1x64", "MLProgram", True, (3, 80, 88)),
    ("gemma-graph-pooled-1x64", "MLProgram", True, (4, 85, 90)),
    ("qwen3-last-dynamic", "MLProgram", False, (9, 250, 300)),
    # 1 and 2 for each of 2 layers: Neg and Expand.
    ("qwen3-last-1x64", "MLProgram", True, (5, 146, 166)),
    ("qwen3-last-1x64", "NeuralNetwork", True, (13, 106, 166)),
    # A mask of plain arithmetic costs nothing: integers may be unsqueezed.
    ("default-1x128", "MLProgram", True, (1, 217, 217)),
]


@pytest.mark.parametrize("version", ["1.28", "1.31", "1.32"])
@pytest.mark.parametrize(("name", "model_format", "static", "expected"), RAW_COUNTS)
def test_rule_06_raw_exports_have_the_counts_of_the_provider(
    name: str, model_format: ModelFormat, static: bool, expected: tuple[int, int, int], version: str
) -> None:
    found = forecast_optimized(dumped(name), version=version, model_format=model_format, static=static)
    assert counts(found) == expected


@pytest.mark.parametrize(
    ("name", "partitions", "nodes"), [("all-MiniLM-L6-v2", 30, (102, 183)), ("qwen3-last", 13, None)]
)
def test_the_older_format_breaks_dedicated_graphs(
    dedicated: Mapping[str, Path], name: str, partitions: int, nodes: tuple[int, int] | None
) -> None:
    overrides = {"batch_size": 1, "sequence_length": 128}
    found = forecast(dedicated[name], overrides=overrides, model_format="NeuralNetwork")
    assert found.partitions == partitions
    assert nodes in (None, (found.coreml_nodes, found.nodes))


def test_what_the_installed_runtime_dumps_is_counted_too() -> None:
    """Whatever its version: every node is claimed, handed back or left."""
    graph = optimized(raw("bert-mean"), bucket_overrides(raw("bert-mean"), batch=1, length=64))
    found = forecast_optimized(graph)
    assert found.nodes == found.coreml_nodes + len(found.cpu_nodes) + found.trivial_nodes == len(graph.graph.node)
    assert found.partitions >= 1


def test_shapes_are_those_that_onnxruntime_knows(tmp_path: Path) -> None:
    """Before opset 16, and before 1.24, it does not look into the body of GreaterOrEqual; what follows has no shape."""
    is_recent = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 24)
    values = [helper.make_tensor_value_info(name, FLOAT, [2, 3]) for name in ("x", "y")]
    nodes = [
        helper.make_node("GreaterOrEqual", ["x", "x"], ["known"]),
        helper.make_node("Cast", ["known"], ["numbers"], to=FLOAT),
        helper.make_node("Relu", ["numbers"], ["y"]),
    ]
    for opset, is_known in ((12, False), (16, is_recent)):
        graph = helper.make_graph(nodes, "compared", values[:1], values[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), tmp_path / "model.onnx")
        found = forecast(tmp_path / "model.onnx", overrides={})
        reasons = {node.operator: node.reason for node in found.cpu_nodes}
        assert (reasons.get("Relu") == "an input has no shape that is known") is not is_known


# Rules, one by one --------------------------------------------------------------------------------------------------


def model_of(operator: str, *inputs: Input | None, outputs: int = 1, opset: int = 20, **attributes: Any) -> Any:
    """A graph of one node; arrays are its constants, and types with shapes are its inputs."""
    values, constants, names = [], [], []
    for place, value in enumerate(inputs):
        name = f"x{place}" if value is not None else ""
        names.append(name)
        if isinstance(value, np.ndarray):
            constants.append(numpy_helper.from_array(value, name))
        elif value is not None:
            values.append(helper.make_tensor_value_info(name, value[0], value[1]))
    results = [helper.make_tensor_value_info(f"y{place}", TensorProto.UNDEFINED, None) for place in range(outputs)]
    node = helper.make_node(operator, names, [result.name for result in results], name="it", **attributes)
    graph = helper.make_graph([node], "one", values, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def refusal_of(model: Any, version: str = "1.32", **options: Any) -> str | None:
    """Why the one node is not claimed."""
    found = forecast_optimized(model, version=version, **options)
    if found.cpu_nodes:
        ((name, operator, reason),) = found.cpu_nodes
        assert (name, operator) == ("it", model.graph.node[0].op_type)
        return reason
    assert found.coreml_nodes + found.trivial_nodes == found.nodes == 1
    return None


X = (FLOAT, [2, 3])
AXES = np.array([0], np.int64)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_is_of_floats_and_in_ml_programs_of_long_integers(operator: str) -> None:
    assert refusal_of(model_of(operator, X, X)) is None
    assert refusal_of(model_of(operator, (HALF, [2]), (HALF, [2]))) is None
    integers = model_of(operator, (INT64, [2]), (INT64, [2]))
    assert refusal_of(integers) is None
    assert refusal_of(integers, model_format="NeuralNetwork") == "its input 0 is int64"
    assert refusal_of(model_of(operator, (INT32, [2]), (INT32, [2]))) == "its input 0 is int32"
    assert refusal_of(model_of(operator, (HALF, [2]), (HALF, [2])), model_format="NeuralNetwork") is not None


@pytest.mark.parametrize("operator", ["Neg", "Expand", "Equal", "Not", "ReduceL2", "QuantizeLinear"])
@pytest.mark.parametrize("version", VERSIONS)
def test_some_operators_no_version_has(operator: str, version: str) -> None:
    assert refusal_of(model_of(operator, X), version) == "the provider has no such operator"


@pytest.mark.parametrize(
    ("operator", "since"),
    [
        ("Exp", "1.24"),
        ("QuickGelu", "1.26"),
        ("Tile", "1.27"),
        ("Identity", "1.27"),
        ("And", "1.28"),
        ("Where", "1.28"),
    ],
)
def test_operators_come_with_their_version(operator: str, since: str) -> None:
    """Those that the tables of the wheels name first."""
    for version in VERSIONS:
        has_it = refusal_of(model_of(operator, X), version) != "the provider has no such operator"
        assert has_it == (int(version[2:]) >= int(since[2:]))


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="the package onnx knows no revision 23 before 1.18")
def test_an_operator_newer_than_the_provider_is_refused() -> None:
    model = model_of("Reshape", X, np.array([6], np.int64), opset=23)
    assert refusal_of(model, "1.22") == "its revision 23 is newer than 21"
    assert refusal_of(model, "1.23") is None


def test_shapes_must_be_fixed_where_that_is_required() -> None:
    dynamic = model_of("Relu", (FLOAT, ["batch_size", 3]))
    assert refusal_of(dynamic) == "an input has a dynamic shape"
    assert refusal_of(dynamic, static=False) is None


def test_empty_deep_and_unknown_inputs_are_refused() -> None:
    assert refusal_of(model_of("Relu", (FLOAT, [0, 3]))) == "an input is empty"
    assert refusal_of(model_of("Relu", (FLOAT, [1] * 6))) == "an input has more than 5 dimensions"
    model = model_of("Relu", X)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert refusal_of(model) == "an input has no shape that is known"


def test_long_dimensions_were_refused_up_to_1_22() -> None:
    table = np.zeros((16_385, 1), np.float32)
    model = model_of("Gather", table, (INT64, [1, 4]))
    assert refusal_of(model, "1.22") == "an input has a dimension above 16384"
    assert refusal_of(model, "1.23") is None
    assert refusal_of(model_of("Gather", table[:-1], (INT64, [1, 4])), "1.22") is None


def test_gather_takes_floats_and_integers_and_lately_a_single_index() -> None:
    assert refusal_of(model_of("Gather", (INT64, [4]), (INT64, [2]))) is None
    assert refusal_of(model_of("Gather", (BOOL, [4]), (INT64, [2]))) == "its input 0 is bool"
    single = model_of("Gather", X, (INT64, []))
    assert refusal_of(single, "1.26") == "its index is a scalar"
    assert refusal_of(single, "1.27") is None
    deep = model_of("Gather", (FLOAT, [2] * 4), (INT64, [1, 1, 1]))
    assert refusal_of(deep) == "its result has too many dimensions"


def test_cast_knows_booleans_and_inputs_of_the_graph_since_1_27() -> None:
    to_bool = model_of("Cast", (INT64, [2]), to=BOOL)
    assert refusal_of(to_bool, "1.27") is None
    assert refusal_of(to_bool, "1.26") == "it casts an input of the graph"
    assert refusal_of(model_of("Cast", np.zeros(2, np.int64), to=BOOL), "1.26") == "it casts to bool"
    assert refusal_of(model_of("Cast", (TensorProto.UINT8, [2]), to=FLOAT)) == "its input 0 is uint8"
    assert refusal_of(model_of("Cast", X, to=INT32), model_format="NeuralNetwork") is not None


def test_a_matrix_product_takes_no_vector_but_two() -> None:
    assert refusal_of(model_of("MatMul", (FLOAT, [1, 2, 3]), (FLOAT, [1, 3, 2]))) is None
    assert refusal_of(model_of("MatMul", X, (FLOAT, [3]))) == "one of its inputs is a vector"
    assert refusal_of(model_of("MatMul", (FLOAT, [3]), (FLOAT, [3]))) is None
    weight = np.zeros((3, 4), np.float32)
    assert refusal_of(model_of("MatMul", X, weight), model_format="NeuralNetwork") is None
    deep = model_of("MatMul", (FLOAT, [1, 2, 3]), weight)
    assert refusal_of(deep, model_format="NeuralNetwork") == "its inputs are not two matrices"
    assert refusal_of(model_of("MatMul", X, (FLOAT, [3, 4])), model_format="NeuralNetwork") is not None


def test_gemm_takes_constants_and_does_not_scale() -> None:
    weight, bias = np.zeros((3, 4), np.float32), np.zeros(4, np.float32)
    assert refusal_of(model_of("Gemm", X, weight, bias)) is None
    assert refusal_of(model_of("Gemm", X, weight, (FLOAT, [4]))) == "its input 2 is not constant"
    assert refusal_of(model_of("Gemm", X, weight, bias, alpha=0.5)) == "it transposes A or scales"
    for shape, is_taken in (((), True), ((1,), True), ((1, 4), True), ((2, 1), False), ((2, 4), False)):
        found = refusal_of(model_of("Gemm", X, weight, np.zeros(shape, np.float32)))
        assert found == (None if is_taken else "its C is neither a number nor a row")
    turned = np.zeros((4, 3), np.float32)
    assert refusal_of(model_of("Gemm", X, turned, bias, transB=1)) is None


def test_a_reshape_needs_a_constant_shape_and_data_of_a_fixed_one() -> None:
    assert refusal_of(model_of("Reshape", X, np.array([0, -1], np.int64))) is None
    assert refusal_of(model_of("Reshape", (INT64, [2]), np.array([1, 2]))) is None
    assert refusal_of(model_of("Reshape", X, (INT64, [2]))) == "its new shape is not constant"
    assert refusal_of(model_of("Reshape", X, np.array([1, 1, 1, 1, 2, 3]))) is not None
    assert refusal_of(model_of("Reshape", (FLOAT, []), np.array([1]))) == "its data are a scalar"
    for target in ([0, 3], [-1, 3]):
        dynamic = model_of("Reshape", (FLOAT, ["batch_size", 3]), np.array(target, np.int64))
        assert refusal_of(dynamic, static=False) == "its data have a dynamic shape"


def test_a_slice_has_constant_ends_and_data_of_a_fixed_shape() -> None:
    ends = (np.array([0]), np.array([1]), np.array([1]))
    assert refusal_of(model_of("Slice", X, *ends)) is None
    assert refusal_of(model_of("Slice", (INT64, [2, 3]), *ends)) is None
    assert refusal_of(model_of("Slice", X, np.array([0]), (INT64, [1]))) == "its input 2 is not constant"
    dynamic = model_of("Slice", (FLOAT, ["batch_size", 3]), *ends)
    assert refusal_of(dynamic, static=False) == "its data have a dynamic shape"
    for start, end, step in ((2, 2, 1), (3, 9, 1), (0, 1, -1)):
        nothing = model_of("Slice", X, np.array([start]), np.array([end]), np.array([1]), np.array([step]))
        assert refusal_of(nothing) == "its result is empty"
    backwards = model_of("Slice", X, np.array([-1]), np.array([-9]), np.array([1]), np.array([-1]))
    assert refusal_of(backwards) is None


@pytest.mark.parametrize("operator", ["Unsqueeze", "Squeeze", "ReduceMean", "ReduceSum"])
def test_axes_are_constant(operator: str) -> None:
    data = (FLOAT, [1, 3])
    assert refusal_of(model_of(operator, data, AXES)) is None
    assert refusal_of(model_of(operator, data, (INT64, [1]))) == "its input 1 is not constant"
    assert refusal_of(model_of(operator, (INT64, [1, 3]), AXES)) is None
    assert refusal_of(model_of(operator, (INT32, [1, 3]), AXES)) == "its input 0 is int32"


def test_choices_are_by_booleans_between_floats() -> None:
    choice = model_of("Where", (BOOL, [2]), (FLOAT, [2]), (FLOAT, [2]))
    assert refusal_of(choice) is None
    assert refusal_of(choice, "1.28") is None
    assert refusal_of(choice, "1.27") is not None
    assert refusal_of(model_of("Where", (BOOL, [2]), (INT64, [2]), (INT64, [2]))) == "its input 1 is int64"
    assert refusal_of(model_of("Where", (BOOL, [2]), (FLOAT, [2]), (HALF, [2]))) is not None
    assert refusal_of(model_of("And", (BOOL, [2]), (BOOL, [2]))) is None
    assert refusal_of(choice, model_format="NeuralNetwork") == "only ML programs have such an operator"


def test_layer_normalisation_is_for_inference_with_constants() -> None:
    scale = np.ones(3, np.float32)
    assert refusal_of(model_of("LayerNormalization", X, scale, scale)) is None
    assert refusal_of(model_of("LayerNormalization", X, (FLOAT, [3]), scale)) == "its input 1 is not constant"
    half = model_of("LayerNormalization", (HALF, [2, 3]), scale)
    assert refusal_of(half) == "its inputs 0 and 1 are float16 and float"
    assert refusal_of(model_of("LayerNormalization", X, scale, outputs=2)) is not None


def test_the_formats_differ_in_operators() -> None:
    assert refusal_of(model_of("Flatten", X)) == "ML programs have no such operator"
    assert refusal_of(model_of("Flatten", X), model_format="NeuralNetwork") is None
    for operator in ("Erf", "Gelu", "Max", "LayerNormalization", "Exp", "Sin", "Cos", "Ceil", "Softplus", "Elu"):
        found = refusal_of(model_of(operator, X), model_format="NeuralNetwork")
        assert found == "only ML programs have such an operator"


def test_other_rules() -> None:
    assert refusal_of(model_of("Pow", X, np.array(2, np.int64))) == "its inputs 0 and 1 are float and int64"
    assert refusal_of(model_of("Split", X, np.array([1, 1]), outputs=2)) is None
    assert refusal_of(model_of("Split", X, outputs=1)) == "it has one output"
    assert refusal_of(model_of("Clip", X, np.array(0, np.float32))) is None
    assert refusal_of(model_of("Clip", X, None, (FLOAT, []))) == "its input 2 is not constant"
    assert refusal_of(model_of("Tile", (BOOL, [2]), np.array([2]))) is None
    assert refusal_of(model_of("Tile", X, (INT64, [2])), model_format="NeuralNetwork") is not None
    assert refusal_of(model_of("GatherND", X, (INT64, [1, 1]))) == "its input 1 is not constant"
    assert refusal_of(model_of("GatherND", X, np.array([[0]]))) is None
    assert refusal_of(model_of("GatherND", X, np.array([[0]]), batch_dims=1)) == "it has batch dimensions"
    indexed = model_of("GatherND", (FLOAT, ["batch_size", 3]), np.array([[0]]))
    assert refusal_of(indexed, static=False) == "it indexes a dynamic dimension"
    assert refusal_of(model_of("Clip", X, np.array(1, np.float32), np.array(1, np.float32))) == "its limits are equal"
    assert refusal_of(model_of("Tile", X, np.array([0, 1]))) == "it repeats less than once"
    deep = model_of("Unsqueeze", (FLOAT, [1] * 5), AXES)
    assert refusal_of(deep) == "its result has more than 5 dimensions"


def test_a_split_is_even_or_states_its_sizes() -> None:
    assert refusal_of(model_of("Split", (FLOAT, [4, 3]), outputs=2, opset=17)) is None
    assert refusal_of(model_of("Split", (FLOAT, [3, 3]), outputs=2, opset=17)) == "it splits unevenly"
    assert refusal_of(model_of("Split", (FLOAT, [3, 3]), np.array([1, 2]), outputs=2)) is None
    assert refusal_of(model_of("Split", (FLOAT, [3, 3]), np.array([1, 1]), outputs=2)) == "its sizes do not add up"
    assert refusal_of(model_of("Split", (FLOAT, [3, 3]), outputs=2, num_outputs=2)) is None
    dynamic = model_of("Split", (FLOAT, ["batch_size", 3]), outputs=2, opset=17)
    assert refusal_of(dynamic, static=False) == "it splits a dynamic dimension"


def test_a_concat_joins_two_and_in_the_older_format_along_one_axis() -> None:
    assert refusal_of(model_of("Concat", X, X, axis=0)) is None
    assert refusal_of(model_of("Concat", X, axis=0)) == "it has one input"
    four = (FLOAT, [1, 2, 3, 4])
    older = {"model_format": "NeuralNetwork"}
    assert refusal_of(model_of("Concat", four, four, axis=-3), **older) is None
    assert refusal_of(model_of("Concat", four, four, axis=1), **older) is None
    for wrong in (model_of("Concat", four, four, axis=0), model_of("Concat", X, X, axis=1)):
        assert refusal_of(wrong, **older) == "NeuralNetwork models join four dimensions along the second alone"


def test_a_shape_may_be_of_integers_and_of_some_dimensions() -> None:
    assert refusal_of(model_of("Shape", X)) is None
    assert refusal_of(model_of("Shape", (INT64, [2, 3]), start=1)) is None
    assert refusal_of(model_of("Shape", X, end=-1)) is None
    assert refusal_of(model_of("Shape", (BOOL, [2]))) == "its input 0 is bool"
    assert refusal_of(model_of("Shape", X, start=1, end=1)) == "it takes no dimension"
    whole = model_of("Shape", X, end=2)
    assert refusal_of(whole) == "its end is beyond the last dimension, which makes the provider fail"
    assert refusal_of(model_of("Shape", X, start=1), model_format="NeuralNetwork") == "it has a start or an end"


def test_a_reduction_of_nothing_is_an_identity_of_ml_programs() -> None:
    nothing = model_of("ReduceSum", X, noop_with_empty_axes=1)
    assert refusal_of(nothing) is None
    assert refusal_of(nothing, model_format="NeuralNetwork") == "it reduces nothing"


def test_the_newest_revision_that_is_understood_is_28_since_1_32() -> None:
    assert Provider(version=(1, 31), is_ml_program=True, static=True).max_since_version == 27
    assert Provider(version=(1, 32), is_ml_program=True, static=True).max_since_version == 28


# Grouping -----------------------------------------------------------------------------------------------------------


def chain(*operators: str) -> onnx.ModelProto:
    """A graph of operators with one input each, one behind the other."""
    values = [f"v{place}" for place in range(len(operators) + 1)]
    ends = [helper.make_tensor_value_info(name, FLOAT, [2, 3]) for name in (values[0], values[-1])]
    inner = [helper.make_tensor_value_info(name, FLOAT, [2, 3]) for name in values[1:-1]]
    nodes = [
        helper.make_node(operator, [values[place]], [values[place + 1]], name=f"{operator}_{place}")
        for place, operator in enumerate(operators)
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_a_node_on_the_cpu_ends_a_partition_only_if_another_follows() -> None:
    reason = "the provider has no such operator"
    found = forecast_optimized(chain("Neg", "Relu", "Neg", "Relu", "Tanh", "Neg"))
    assert found.partition_sizes == (1, 2)
    assert found.breaking == (CpuNode("Neg_2", "Neg", reason),)
    assert [node.name for node in found.cpu_nodes] == ["Neg_0", "Neg_2", "Neg_5"]


def test_a_group_that_computes_nothing_goes_back_since_1_27() -> None:
    model = chain("Relu", "Neg", "Squeeze", "Squeeze", "Neg", "Relu")
    old, new = (forecast_optimized(model, version=version) for version in ("1.26", "1.27"))
    assert (old.partition_sizes, old.trivial_sizes) == ((1, 2, 1), ())
    assert (new.partition_sizes, new.trivial_sizes) == ((1, 1), (2,))
    assert [node.name for node in old.breaking] == ["Neg_1", "Neg_4"]
    assert [node.name for node in new.breaking] == ["Neg_1"]


def test_people_are_told_what_breaks_it_and_why() -> None:
    found = forecast_optimized(chain("Relu", "Neg", "Squeeze", "Neg", "Relu", "Relu"))
    assert found.sentences() == [
        "CoreML would take 3 of 6 nodes in 2 partitions of 1 and 2 nodes "
        "(by the rules of onnxruntime 1.32, MLProgram, static shapes required)",
        "A partition ends at Neg_1, Neg: the provider has no such operator",
        "On the CPU: 2 Neg: the provider has no such operator",
        "Handed back to the CPU: 1 group of 1 nodes in all that compute nothing",
    ]


@st.composite
def random_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Up to 14 nodes that read the graph's input or earlier nodes; Sum is an operator that CoreML has not."""
    nodes, values = [], ["x"]
    for place in range(draw(st.integers(1, 14))):
        reads = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        operator = draw(st.sampled_from(["Max", "Sum"]))
        nodes.append(helper.make_node(operator, reads, [f"n{place}"], name=f"n{place}"))
        values.append(f"n{place}")
    value_info = [helper.make_tensor_value_info(name, FLOAT, [2]) for name in values]
    graph = helper.make_graph(nodes, "random", value_info[:1], value_info[-1:], value_info=value_info[1:-1])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


class OnlyMax:
    """Of the wheel's own checker, the part that asks which operators there are."""

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        return str(node.op_type) == "Max"


@settings(max_examples=100, deadline=None)
@given(model=random_graphs())
def test_grouping_is_that_of_onnxruntimes_own_checker(model: onnx.ModelProto) -> None:
    """The wheel has a program that mirrors its partitioner, for operators' names alone."""
    witness = usability_checker.check_partitioning(model.graph, OnlyMax(), False)
    found = forecast_optimized(model)
    assert found.partition_sizes == tuple(len(group) for group in witness.supported_groups)


def test_a_graph_within_a_node_reads_from_outside() -> None:
    """Else the branch would seem to need nothing, and what it reads could be in a later group."""
    inner = helper.make_graph(
        [helper.make_node("Relu", ["v1"], ["branch"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch", FLOAT, [2])],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["v1"]),
        helper.make_node("If", ["which"], ["v2"], then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["v2"], ["y"]),
    ]
    values = {name: helper.make_tensor_value_info(name, FLOAT, [2]) for name in ("x", "v1", "v2", "y")}
    which = helper.make_tensor_value_info("which", BOOL, [1])
    graph = helper.make_graph(
        nodes, "outer", [values["x"], which], [values["y"]], value_info=[values["v1"], values["v2"]]
    )
    found = forecast_optimized(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert found.partition_sizes == (1, 1)
    assert [node.operator for node in found.breaking] == ["If"]


# What cannot be forecast --------------------------------------------------------------------------------------------


def test_a_dimension_that_the_graph_has_not_is_an_error() -> None:
    with pytest.raises(
        ForecastError, match="The graph has no dimension 'batch'; it has: batch_size and sequence_length"
    ):
        forecast(raw("bert-mean"), overrides={"batch": 1})


def test_a_bucket_settles_every_dimension_by_its_name() -> None:
    assert bucket_overrides(raw("qwen3-last"), batch=8, length=64) == {
        "batch_size": 8,
        "sequence_length": 64,
        "total_sequence_length": 64,
        "past_sequence_length": 0,
    }


def test_versions_before_1_22_and_other_words_are_errors() -> None:
    model = chain("Relu")
    for version in ("1.21.1", "0.9"):
        with pytest.raises(ForecastError, match=r"not known; the oldest that are: 1\.22"):
            forecast_optimized(model, version=version)
    with pytest.raises(ForecastError, match="'newest' is not a version"):
        forecast_optimized(model, version="newest")


def test_a_version_later_than_all_that_are_known_has_the_last_known_rules() -> None:
    assert "onnxruntime 1.32," in forecast_optimized(chain("Relu"), version="2.0.1").settings


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(raw("bert-mean").read_bytes()[:5000])
    with pytest.raises(ForecastError, match=r"model\.onnx cannot be forecast: "):
        forecast(damaged, overrides={})
    with pytest.raises(ForecastError, match=r"absent\.onnx cannot be forecast: "):
        forecast(tmp_path / "absent.onnx", overrides={})


def test_people_are_told_that_float16_distorts_a_forecast() -> None:
    for file, is_distorted in (("model_fp16.onnx", True), ("model.onnx", False)):
        path = FIXTURES / "xenova-bare" / "onnx" / file
        found = forecast(path, overrides=bucket_overrides(path, batch=1, length=64))
        assert found.has_casts_of_the_cpu == is_distorted
        assert any("float16" in sentence for sentence in found.sentences()) == is_distorted


def test_weights_in_another_file_are_found() -> None:
    path = FIXTURES / "qwen3-last" / "onnx" / "model_ext.onnx"
    overrides = bucket_overrides(path, batch=1, length=64)
    inside = forecast(raw("qwen3-last"), overrides=overrides)
    assert counts(forecast(path, overrides=overrides)) == counts(inside)
