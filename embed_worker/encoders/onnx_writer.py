"""A writer of ONNX graphs, for every exported architecture. The package `onnx` is imported when a graph is begun."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embed_worker.encoders.checkpoint import CheckFailedError, ExportError, Floats, Int64
from embed_worker.errors import brief

# 17 is the first opset with LayerNormalization and what onnxruntime has read since 1.13; 21 is the last that the oldest
# onnxruntime we support reads.
DEFAULT_OPSET = 17
OPSETS = range(17, 22)

# Smaller tensors stay in the graph, where onnxruntime can look at shapes and scalars.
_MIN_EXTERNAL_BYTES = 1024
_EXTERNAL_ALIGNMENT = 64

# Constants, so that the same weights give the same bytes. The version is that of the graph's layout.
_PRODUCER = "embed-worker export"
_PRODUCER_VERSION = "1"


class Storage(StrEnum):
    """The type that weight matrices and tables have in the file; the graph computes in float32 either way."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


# Writing a graph ----------------------------------------------------------------------------------------------------


class GraphWriter:
    """Collects nodes and initializers. Each method adds one step and gives the name of the tensor that it makes."""

    def __init__(self, storage: Storage, opset: int = DEFAULT_OPSET, data: BinaryIO | None = None) -> None:
        """Start an empty graph.

        Args:
            storage: How weight matrices and tables are stored.
            opset: Of the default operator set.
            data: A file for the tensors' bytes, which the graph then names and must lie beside; None: in the graph.

        Raises:
            ExportError: The package `onnx` is not installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise ExportError("the package onnx is missing: pip install 'embed-bridge[tools]'") from error
        self._onnx = onnx
        self._storage = storage
        self._opset = opset
        self._data = data
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def node(self, name: str, operator: str, *inputs: str, **attributes: int | float | Sequence[int]) -> str:
        """Add an operator whose one output is called `name`."""
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def halves(self, name: str, tensor: str, width: int) -> tuple[str, str]:
        """Split the last axis, `width` long, in two."""
        sizes = self.constant(f"halves.{width}", np.array([width // 2, width // 2], np.int64))
        outputs = (f"{name}.first", f"{name}.second")
        self._nodes.append(self._onnx.helper.make_node("Split", [tensor, sizes], outputs, name=name, axis=-1))
        return outputs

    def mean(self, name: str, tensor: str) -> str:
        """Average over the last axis, which stays with length 1."""
        if self._opset < 18:
            return self.node(name, "ReduceMean", tensor, axes=[-1])
        return self.node(name, "ReduceMean", tensor, self.constant("last_axis", np.array([-1], np.int64)))

    def cast(self, name: str, tensor: str) -> str:
        """Convert a tensor to float32."""
        return self.node(name, "Cast", tensor, to=int(self._onnx.TensorProto.FLOAT))

    def integers(self, name: str, tensor: str) -> str:
        """Convert a tensor to int64."""
        return self.node(name, "Cast", tensor, to=int(self._onnx.TensorProto.INT64))

    def constant(self, name: str, values: Floats | Int64) -> str:
        """Store values as they are; the same name again is the same constant."""
        if name not in self._initializers:
            ordered: NDArray[Any] = np.asarray(values, order="C")
            if self._data is not None and ordered.nbytes >= _MIN_EXTERNAL_BYTES:
                self._initializers[name] = self._external(self._data, name, ordered)
            else:
                self._initializers[name] = self._onnx.numpy_helper.from_array(ordered, name)
        return name

    def _external(self, data: BinaryIO, name: str, values: NDArray[Any]) -> Any:
        data.write(bytes(-data.tell() % _EXTERNAL_ALIGNMENT))
        place = {"location": Path(data.name).name, "offset": str(data.tell()), "length": str(values.nbytes)}
        data.write(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
        tensor = self._onnx.TensorProto(
            name=name,
            dims=values.shape,
            data_type=self._onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    def scalar(self, value: float) -> str:
        """Store a float32 scalar."""
        return self.constant(f"scalar_{value:.9g}", np.array(value, np.float32))

    def stored(self, name: str, values: Floats) -> str:
        """Store a matrix in the storage type.

        Raises:
            ExportError: Its values do not fit.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self._storage.value)
        if not np.isfinite(stored).all():
            why = f"{self._storage} cannot hold" if np.isfinite(values).all() else "are not finite"
            raise ExportError(f"tensor {name!r} has values that {why}")
        return self.constant(name, stored)

    def weight(self, name: str, values: Floats) -> str:
        """Store a matrix and widen it; onnxruntime folds the two into one float32 constant as it loads."""
        stored = self.stored(name, values)
        return stored if self._storage is Storage.FLOAT32 else self.cast(f"{name}.float32", stored)

    def picked(self, name: str, rows: str) -> str:
        """Widen the rows picked from a stored table: after picking, so that the table is never widened as a whole."""
        return rows if self._storage is Storage.FLOAT32 else self.cast(f"{name}.float32", rows)

    def model(self, inputs: Sequence[str], output: str, width: int) -> Any:
        """Finish: int64 `inputs` of (batch_size, sequence_length), a float32 output with `width` more."""
        helper, types, axes = self._onnx.helper, self._onnx.TensorProto, ["batch_size", "sequence_length"]
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(name, types.INT64, axes) for name in inputs],
            [helper.make_tensor_value_info(output, types.FLOAT, [*axes, width])],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name=_PRODUCER,
            producer_version=_PRODUCER_VERSION,
        )
        if self._data is None:  # the checker would look for the data in the current folder
            self._onnx.checker.check_model(model)
        return model


def shown(items: range, what: str) -> Iterable[int]:
    """Iterate with a progress bar on standard error, where that is a terminal and the package tqdm is there."""
    if sys.stderr is None or not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return items
    bar: Iterable[int] = tqdm(items, desc=what, unit="layer", leave=False, file=sys.stderr)
    return bar


# Checking what was written ------------------------------------------------------------------------------------------


def open_session(graph: Path) -> Any:
    """Load a graph with onnxruntime, on the CPU.

    Raises:
        CheckFailedError: It cannot.
    """
    from embed_worker.inference import ort  # not needed to write a graph

    try:
        return ort.open_session(graph)
    except Exception as error:  # its exceptions have no narrower base
        raise CheckFailedError(f"onnxruntime cannot load the graph: {brief(error)}") from error
