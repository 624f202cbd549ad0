"""Forecast how onnxruntime's CoreML provider would cut a graph into partitions; no Mac is needed.

onnxruntime runs its level 1 passes with the dimensions of a bucket and dumps the graph that it would ask a provider
about. `coreml_rules.py` says which of its nodes are claimed, and here is the grouping that makes partitions of them. A
forecast tells what is claimed, not how fast or how right it is: that is proved on a Mac, when a worker starts.

Source of the grouping: microsoft/onnxruntime, `core/providers/partitioning_utils.cc`. Graphs that compute in float16
are dumped with the casts that the CPU needs, and are better forecast in float32.
"""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import onnx
from onnx import helper
from onnx.shape_inference import infer_shapes

from embed_worker.errors import brief
from embed_worker.inference import ort
from embed_worker.tools.inspect.coreml_rules import NEWEST, OLDEST, CandidateNode, Provider, Tensor, Version, refusal

_CAST_OF_THE_CPU = "InsertedPrecisionFreeCast_"

ModelFormat: TypeAlias = Literal["MLProgram", "NeuralNetwork"]

# What is forecast ---------------------------------------------------------------------------------------------------


class ForecastError(Exception):
    """The graph cannot be forecast; the message is one sentence."""


class CpuNode(NamedTuple):
    """A node that the provider does not claim, and the rule that says so."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How the provider would cut a graph. `nodes` = `coreml_nodes` + `cpu_nodes` + `trivial_nodes`.

    Attributes:
        partition_sizes: Nodes of each partition, in the order of their making.
        nodes: All nodes of the graph after level 1.
        cpu_nodes: What is not claimed, with the reason.
        breaking: Those of them behind which a partition ends and another begins.
        trivial_sizes: Nodes of each claimed group that is handed back because it computes nothing.
        has_casts_of_the_cpu: The graph computes in float16, which the CPU that dumped it does not: what is told of it
            is distorted.
        settings: The onnxruntime whose rules were applied, and the provider's options.
    """

    partition_sizes: tuple[int, ...]
    nodes: int
    cpu_nodes: tuple[CpuNode, ...]
    breaking: tuple[CpuNode, ...]
    trivial_sizes: tuple[int, ...]
    has_casts_of_the_cpu: bool
    settings: str

    @property
    def partitions(self) -> int:
        """How many CoreML models there would be: 1 is good, 0 is none."""
        return len(self.partition_sizes)

    @property
    def coreml_nodes(self) -> int:
        """Nodes in partitions."""
        return sum(self.partition_sizes)

    @property
    def trivial_nodes(self) -> int:
        """Nodes that are claimed and handed back."""
        return sum(self.trivial_sizes)

    def sentences(self) -> list[str]:
        """Return, for people, what CoreML would get, what breaks it and why."""
        sizes = f" of {_listed([str(size) for size in self.partition_sizes])} nodes" if self.partitions > 1 else ""
        said = [
            f"CoreML would take {self.coreml_nodes} of {_count(self.nodes, 'node')} "
            f"in {_count(self.partitions, 'partition')}{sizes} ({self.settings})"
        ]
        said += [
            f"A partition ends at {node.name or 'a node without a name'}, {node.operator}: {node.reason}"
            for node in self.breaking
        ]
        for (operator, reason), count in Counter((node.operator, node.reason) for node in self.cpu_nodes).most_common():
            said.append(f"On the CPU: {count} {operator}: {reason}")
        if self.trivial_sizes:
            groups = _count(len(self.trivial_sizes), "group")
            said.append(f"Handed back to the CPU: {groups} of {self.trivial_nodes} nodes in all that compute nothing")
        if self.has_casts_of_the_cpu:
            said.append("It computes in float16, and was dumped with the casts that the CPU needs: forecast float32")
        return said


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def forecast(
    model: Path | str | onnx.ModelProto,
    *,
    overrides: Mapping[str, int],
    version: str = "1.32",
    model_format: ModelFormat = "MLProgram",
    static: bool = True,
) -> Forecast:
    """Forecast one bucket of a graph.

    Args:
        model: The ONNX file, or what it holds.
        overrides: Lengths of the graph's symbolic dimensions; see `bucket_overrides`.
        version: The onnxruntime whose provider is meant, from 1.22; its later versions are taken for the last known.
        model_format: The provider's option `ModelFormat`.
        static: The provider's option `RequireStaticInputShapes`.

    Raises:
        ForecastError: onnxruntime cannot load it, the graph has no such dimension, or the version is not known.
    """
    return forecast_optimized(optimized(model, overrides), version=version, model_format=model_format, static=static)


def forecast_optimized(
    graph: onnx.ModelProto, *, version: str = "1.32", model_format: ModelFormat = "MLProgram", static: bool = True
) -> Forecast:
    """Forecast a graph that `optimized` made; the rest is as for `forecast`.

    Raises:
        ForecastError: The version is not known.
    """
    provider = Provider(version=_parsed(version), is_ml_program=model_format == "MLProgram", static=static)
    nodes = _Nodes(graph)
    reasons = [refusal(node, provider) for node in nodes.nodes]
    groups, borders = _grouped(nodes, [reason is None for reason in reasons])
    cpu = {
        index: CpuNode(nodes.nodes[index].name, nodes.nodes[index].operator, reason)
        for index, reason in enumerate(reasons)
        if reason is not None
    }
    kept = [provider.keeps(nodes.nodes[index].operator for index in group) for group in groups]
    ends = [border for border, is_kept in zip(borders, kept, strict=True) if is_kept][:-1]
    inputs = "static shapes required" if static else "dynamic shapes allowed"
    known = ".".join(str(part) for part in min(provider.version, NEWEST))
    return Forecast(
        partition_sizes=tuple(len(group) for group, is_kept in zip(groups, kept, strict=True) if is_kept),
        nodes=len(nodes.nodes),
        cpu_nodes=tuple(cpu.values()),
        breaking=tuple(cpu[index] for border in ends for index in border),
        trivial_sizes=tuple(len(group) for group, is_kept in zip(groups, kept, strict=True) if not is_kept),
        has_casts_of_the_cpu=any(node.name.startswith(_CAST_OF_THE_CPU) for node in nodes.nodes),
        settings=f"by the rules of onnxruntime {known}, {model_format}, {inputs}",
    )


def _parsed(version: str) -> Version:
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError as error:
        raise ForecastError(f"{version!r} is not a version of onnxruntime") from error
    if (major, minor) < OLDEST:
        raise ForecastError(f"The rules of onnxruntime {version} are not known; the oldest that are: 1.22")
    return major, minor


# The graph that a provider is asked about ---------------------------------------------------------------------------


def bucket_overrides(model: Path | str | onnx.ModelProto, *, batch: int, length: int) -> dict[str, int]:
    """Return the length in a bucket of every symbolic dimension of a graph's inputs, by what its name says.

    A dimension with `batch` in its name is the batch, one with `past` is empty, any other is the length of the texts.
    """
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model, load_external_data=False)
    lengths = {}
    for name in _symbolic_dimensions(proto):
        lengths[name] = batch if "batch" in name else 0 if "past" in name and "total" not in name else length
    return lengths


def _symbolic_dimensions(model: onnx.ModelProto) -> Iterator[str]:
    for value in model.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                yield dimension.dim_param


def optimized(model: Path | str | onnx.ModelProto, overrides: Mapping[str, int]) -> onnx.ModelProto:
    """Let onnxruntime run its level 1 passes, and return the graph that it would ask a provider about, with all shapes.

    Large weights are left out: they are declared to lie in a file that is gone.

    Raises:
        ForecastError: onnxruntime cannot load it, or the graph has no such dimension.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(model) if not isinstance(model, onnx.ModelProto) else Path(folder, "source.onnx")
        try:
            if isinstance(model, onnx.ModelProto):
                onnx.save(model, path)
            declared = set(_symbolic_dimensions(onnx.load(path, load_external_data=False)))
            # onnxruntime ignores a wrong name without a word.
            if unknown := sorted(set(overrides) - declared):
                raise ForecastError(f"The graph has no dimension {unknown[0]!r}; it has: {_listed(sorted(declared))}")
            dumped = Path(folder, "dumped.onnx")
            ort.dump_optimized(path, dumped, overrides)
            return _with_shapes(dumped)
        except ForecastError:
            raise
        except Exception as error:  # those of onnxruntime and of protobuf have no narrower base
            raise ForecastError(f"{path.name} cannot be forecast: {brief(error)}") from error


def _with_shapes(dumped: Path) -> onnx.ModelProto:
    """Read a dumped graph and describe its values with the shapes that onnxruntime knows, which are fewer than onnx's.

    It does not infer through the bodies of functions, such as GreaterOrEqual of opset 12, and the provider asks it.
    """
    model = onnx.load(dumped, load_external_data=False)
    graph = infer_shapes(model, data_prop=True).graph
    by_onnx = {value.name: value for value in (*graph.value_info, *graph.output)}
    shapes = ort.inferred_shapes(dumped, [name for name in by_onnx if name not in {o.name for o in model.graph.output}])
    del model.graph.value_info[:]
    for name, shape in shapes.items():
        kind = by_onnx[name].type.tensor_type
        # onnxruntime gives no dimension for a number and for a value whose rank it does not know.
        is_known = bool(shape) or (kind.HasField("shape") and not kind.shape.dim)
        model.graph.value_info.append(helper.make_tensor_value_info(name, kind.elem_type, shape if is_known else None))
    return model


@dataclass(slots=True)
class _Nodes:
    """The nodes of a graph as the rules see them; `consumers` has an entry for every edge."""

    model: onnx.ModelProto
    nodes: list[CandidateNode] = field(init=False)
    consumers: list[list[int]] = field(init=False)
    producers: list[int] = field(init=False)  # how many edges arrive at a node

    def __post_init__(self) -> None:
        graph = self.model.graph
        opsets = {entry.domain or "ai.onnx": entry.version for entry in self.model.opset_import}
        tensors = _tensors(graph)
        self.nodes = [_node(node, tensors, opsets) for node in graph.node]
        producer = {output: index for index, node in enumerate(graph.node) for output in node.output if output}
        self.consumers, self.producers = [[] for _ in graph.node], [0] * len(graph.node)
        for index, node in enumerate(graph.node):
            for name in _names_read(node):
                if name in producer:
                    self.consumers[producer[name]].append(index)
                    self.producers[index] += 1


def _tensors(graph: onnx.GraphProto) -> dict[str, Tensor]:
    inputs = {value.name for value in graph.input}
    tensors = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
        tensors[value.name] = Tensor(kind.elem_type, shape, None, value.name in inputs)
    for tensor in graph.initializer:
        tensors[tensor.name] = Tensor(tensor.data_type, tuple(tensor.dims), tensor)
    return tensors


def _node(node: onnx.NodeProto, tensors: Mapping[str, Tensor], opsets: Mapping[str, int]) -> CandidateNode:
    domain = node.domain or "ai.onnx"
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), "" if domain == "ai.onnx" else domain)
        since_version = schema.since_version
    except onnx.defs.SchemaError:  # an operator of onnxruntime's own
        since_version = 0
    return CandidateNode(
        name=node.name,
        operator=node.op_type,
        inputs=tuple(tensors.get(name, Tensor()) if name else None for name in node.input),
        outputs=len(node.output),
        attributes={attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute},
        since_version=since_version,
    )


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, and those that the graphs within it read from outside."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {output for child in graph.node for output in child.output}
            yield from (name for child in graph.node for name in _names_read(child) if name not in inner)


# The grouping of onnxruntime's partitioner --------------------------------------------------------------------------


def _grouped(nodes: _Nodes, is_claimed: Sequence[bool]) -> tuple[list[list[int]], list[list[int]]]:
    """Group claimed nodes as `CreateSupportedPartitionNodeGroups` does: greedily, in waves over the sorted graph.

    A wave takes every claimed node that no node outside the group separates from it. It stops at its border: nodes that
    read from the group and are not claimed. The next wave begins there.

    Returns:
        Groups of nodes, and for each the nodes at which it stopped.
    """
    waiting_for = list(nodes.producers)
    ready = deque(index for index, edges in enumerate(waiting_for) if edges == 0)
    stopped: deque[int] = deque()
    group: list[int] = []
    reads_from_group: set[int] = set()
    groups, borders = [], []
    while ready or stopped:
        if not ready:
            if group:
                groups.append(group)
                borders.append(list(stopped))
            group, reads_from_group = [], set()
            ready, stopped = stopped, deque()
        index = ready.popleft()
        if is_claimed[index]:
            group.append(index)
            reads_from_group.update(nodes.consumers[index])
        elif index in reads_from_group:
            stopped.append(index)
            continue
        for consumer in nodes.consumers[index]:
            waiting_for[consumer] -= 1
            if waiting_for[consumer] == 0:
                ready.append(consumer)
    if group:
        groups.append(group)
        borders.append([])
    return groups, borders
