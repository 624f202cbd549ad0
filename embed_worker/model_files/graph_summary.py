"""What an ONNX file says of itself: inputs, outputs, operators, weights. Read with the package `onnx`, never run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed_worker.model_files.onnx_outline import read_outline

# What a process takes before it has loaded a model: the interpreter, numpy, tokenizers and onnxruntime. Measured with
# the default model's tokenizer; other vocabularies take more.
_PROCESS_BYTES = 90_000_000


class SummaryError(Exception):
    """The graph cannot be read; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """An input or an output: `shape` has numbers, names of symbolic dimensions, and None for one without a name."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSummary:
    """An ONNX graph.

    Attributes:
        opset: Of the standard operators; `domains` has those of others.
        operators: How many nodes there are of each, the most frequent first.
        parameters: Numbers in the weights.
        weight_bytes: As they are stored, in the graph's file and others.
        table_rows: Rows of the table that token ids are looked up in; None where it is not recognised.
        quantization: What weights are rounded to, `int8` for instance; None for a float graph.
        external_files: Files beside it that hold weights.
        resident_bytes: About what a worker that serves it has resident when idle: the process, and per session the
            weights widened to float32, with lookup tables once.
    """

    opset: int
    domains: Mapping[str, int]
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: Mapping[str, int]
    parameters: int
    weight_bytes: int
    table_rows: int | None
    quantization: str | None
    external_files: tuple[str, ...]
    resident_bytes: int


def summarize(graph: Path, *, sessions: int) -> GraphSummary:
    """Read a graph.

    Args:
        graph: The ONNX file.
        sessions: How many sessions of it a worker opens: two where it has more than one thread.

    Raises:
        SummaryError: The package `onnx` is not installed, or the file is not a graph.
    """
    try:
        import onnx
    except ImportError as error:
        raise SummaryError("the package onnx is missing: pip install 'embed-bridge[tools]'") from error
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf has an exception of its own for every kind of damage
        raise SummaryError(f"{graph.name} is not an ONNX graph") from error
    body = model.graph
    constants = {tensor.name: tensor for tensor in body.initializer}
    ids = {"input_ids"} | {
        node.output[0] for node in body.node if node.op_type == "Cast" and node.input[0] == "input_ids"
    }
    gathered = {node.input[0]: node.input[1] for node in body.node if node.op_type == "Gather"}
    tables = [constants[name] for name, by in gathered.items() if name in constants and by in ids]
    operators = Counter(node.op_type for node in _nodes(body))
    sizes = {name: _stored_bytes(tensor) for name, tensor in constants.items()}
    once = sum(size for name, size in sizes.items() if name in gathered)
    widened = sum(_widened_bytes(tensor) for name, tensor in constants.items() if name not in gathered)
    return GraphSummary(
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        domains={entry.domain: entry.version for entry in model.opset_import if entry.domain not in ("", "ai.onnx")},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_info(value) for value in body.input if value.name not in constants),
        outputs=tuple(_info(value) for value in body.output),
        operators=dict(operators.most_common()),
        parameters=sum(math.prod(tensor.dims) for tensor in constants.values()),
        weight_bytes=sum(sizes.values()),
        table_rows=max((int(table.dims[0]) for table in tables if table.dims), default=None),
        quantization=read_outline(graph).quantization,
        external_files=tuple(sorted(set(_locations(body)))),
        resident_bytes=_PROCESS_BYTES + once + sessions * widened,
    )


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield nodes, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _info(value: Any) -> TensorInfo:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = tuple(
        size.dim_value if size.HasField("dim_value") else (size.dim_param or None) for size in tensor.shape.dim
    )
    return TensorInfo(name=value.name, type=str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=shape)


def _stored_bytes(tensor: Any) -> int:
    from onnx import TensorProto

    per_item = {TensorProto.INT4: 0.5, TensorProto.UINT4: 0.5, TensorProto.BFLOAT16: 2}.get(tensor.data_type)
    return math.ceil(int(math.prod(tensor.dims)) * (per_item or _item_bytes(tensor)))


def _widened_bytes(tensor: Any) -> int:
    from onnx import TensorProto

    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return 4 * int(math.prod(tensor.dims))
    return _stored_bytes(tensor)


def _item_bytes(tensor: Any) -> int:
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _locations(graph: Any) -> Iterator[str]:
    for tensor in graph.initializer:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
