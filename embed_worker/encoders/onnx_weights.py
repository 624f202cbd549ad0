"""The weights of an ONNX graph under the names of the checkpoint that it was exported from.

Exporters keep the names of tables, norms and biases, and fold the matrices of linear layers into anonymous, transposed
constants. Here those get their names back: from their own, from the bias that is added to their product, or from the
path of the node that multiplies, in this order. The graph itself is the reference of what was read. T and H are the
tokens of a text and the hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from embed_worker.encoders.checkpoint import ExportError, Floats, Int64
from embed_worker.errors import brief
from embed_worker.inference import ort
from embed_worker.inference.token_batch import position_ids
from embed_worker.model_files.onnx_outline import HIDDEN_OUTPUTS
from embed_worker.model_files.safetensors import Tensor

# Of the table of words, wherever a wrapper around the model has put it.
_TABLES = ("embeddings.word_embeddings.weight", "embed_tokens.weight")
# Where the path of a module in a layer begins.
_LAYER = re.compile(r"(?:(?:encoder|transformer)\.layer|layers)\.\d+\..+")
_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int32)": np.int32}


class GraphReference:
    """A graph run by onnxruntime on the CPU, one text at a time."""

    def __init__(self, graph: Path, padding_position: int | None = None) -> None:
        """Open a graph; `padding_position` is as for `position_ids`, which a graph may take.

        Raises:
            ExportError: onnxruntime cannot, or the graph does not give vectors of tokens.
        """
        try:
            self._session = ort.open_session(graph)
        except Exception as error:  # its exceptions have no narrower base
            raise ExportError(f"onnxruntime cannot load {graph}: {brief(error)}") from error
        outputs = [output.name for output in self._session.get_outputs()]
        output = next((name for name in HIDDEN_OUTPUTS if name in outputs), None)
        if output is None:
            raise ExportError(f"{graph} has no output {' or '.join(HIDDEN_OUTPUTS)}")
        self._output = output
        self._padding_position = padding_position

    def forward(self, ids: Int64) -> Floats:
        """Compute the (T, H) last hidden state of one text, (T,) ids."""
        ones = np.ones((1, len(ids)), np.int64)
        positions = position_ids(ids[None], ones, self._padding_position)
        known = {"input_ids": ids[None], "attention_mask": ones, "position_ids": positions}
        feeds = {}
        for value in self._session.get_inputs():
            # Types of tokens are 0. What a decoder carries from one token to the next is empty.
            empty = [size if isinstance(size, int) else int(axis == 0) for axis, size in enumerate(value.shape)]
            missing = 0 * ones if value.name == "token_type_ids" else np.zeros(empty)
            feeds[value.name] = known.get(value.name, missing).astype(_TYPES.get(value.type, np.int64))
        (hidden,) = self._session.run([self._output], feeds)
        vectors: Floats = hidden[0].astype(np.float64)
        return vectors


def graph_files(graph: Path) -> list[Path]:
    """Return a graph and the files with its external data."""
    model = onnx.load(graph, load_external_data=False)
    places = (place for tensor in model.graph.initializer for place in tensor.external_data)
    return [
        graph,
        *(graph.parent / name for name in sorted({place.value for place in places if place.key == "location"})),
    ]


def read_onnx_weights(graph: Path) -> dict[str, Tensor]:
    """Read the tensors of a graph: a checkpoint's names without a wrapper's prefix, linear weights (out, in).

    Raises:
        ExportError: It cannot be read, or has no table of words under a name that is known.
    """
    try:
        model = onnx.load(graph)
    except Exception as error:  # whatever protobuf and onnx raise for a damaged file
        raise ExportError(f"{graph} cannot be read: {brief(error)}") from error
    constants = _Constants(model.graph)
    prefix = next((name.removesuffix(table) for table in _TABLES for name in constants if name.endswith(table)), None)
    if prefix is None:
        raise ExportError(f"{graph} has no table of words that is named as in a checkpoint")
    tensors = dict(constants) | dict(_linear_weights(model.graph, constants))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


class _Constants(Mapping[str, Tensor]):
    """The constants of a graph, also behind casts and transpositions."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._stored[node.output[0]] = node.attribute[0].t

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, name: str) -> Tensor:
        values: Tensor = numpy_helper.to_array(self._stored[name])
        # bfloat16 is no type of numpy's own.
        return values if values.dtype.kind != "V" and values.dtype.isbuiltin else values.astype(np.float32)

    def origin(self, name: str) -> tuple[str, bool] | None:
        """Find the stored constant that a value is, and whether it is transposed on the way; None if it is computed."""
        if name in self._stored:
            return name, False
        node = self._producers.get(name)
        if node is None or node.op_type not in ("Cast", "Identity", "Transpose"):
            return None
        found = self.origin(node.input[0])
        return None if found is None else (found[0], found[1] != (node.op_type == "Transpose"))


def _linear_weights(graph: onnx.GraphProto, constants: _Constants) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and the values of the matrices of linear layers."""
    added = _biases(graph, constants)
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        found = constants.origin(node.input[1])
        module = None if found is None else _module(node, found[0], added)
        if found is None or module is None:
            continue
        name, is_transposed = found
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        is_out_in = is_transposed != bool(attributes.get("transB", 0))
        values = constants[name]
        if values.ndim == 2:
            yield f"{module}.weight", values if is_out_in else values.T


def _biases(graph: onnx.GraphProto, constants: _Constants) -> dict[str, str]:
    """Map every value to the name of the constant that is added to it."""
    added = {}
    for node in graph.node:
        if node.op_type == "Add":
            for value, other in (node.input, reversed(node.input)):
                if (found := constants.origin(other)) is not None:
                    added[value] = found[0]
    return added


def _module(node: Any, weight: str, added: dict[str, str]) -> str | None:
    """Return the name that checkpoints give to the linear layer that a multiplication is."""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    bias = node.input[2] if len(node.input) > 2 else added.get(node.output[0], "")
    if bias.endswith(".bias"):
        return bias.removesuffix(".bias")
    path = _LAYER.search(node.name.rpartition("/")[0].replace("/", "."))
    return None if path is None else path.group()
