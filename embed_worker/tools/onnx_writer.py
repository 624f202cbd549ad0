"""What every exported architecture needs: a writer of ONNX graphs, and readers of folders that may be damaged.

The package `onnx` is imported when the first graph is begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_worker.safetensors import SafetensorsFile

Floats: TypeAlias = NDArray[np.floating[Any]]
Int64: TypeAlias = NDArray[np.int64]

WEIGHTS = "model.safetensors"

# Constants, so that the same weights give the same bytes. The version is that of the graph's layout.
_PRODUCER = "embed-worker export"
_PRODUCER_VERSION = "1"


class ExportError(Exception):
    """The folder cannot be exported; the message is one sentence."""

    exit_status: ClassVar[int] = 78


class CheckFailedError(ExportError):
    """The graph does not compute what the weights say."""

    exit_status: ClassVar[int] = 1


class Storage(StrEnum):
    """The type that weight matrices and tables have in the file; the graph computes in float32 either way."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


# Writing a graph ----------------------------------------------------------------------------------------------------


class GraphWriter:
    """Collects nodes and initializers. Each method adds one step and gives the name of the tensor that it makes."""

    def __init__(self, storage: Storage) -> None:
        """Start an empty graph.

        Raises:
            ExportError: The package `onnx` is not installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise ExportError("The package onnx is missing: pip install 'embed-bridge[tools]'.") from error
        self._onnx = onnx
        self._storage = storage
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def node(self, name: str, operator: str, *inputs: str, **attributes: int | float | Sequence[int]) -> str:
        """Add an operator whose one output is called `name`."""
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def cast(self, name: str, tensor: str) -> str:
        """Convert a tensor to float32."""
        return self.node(name, "Cast", tensor, to=int(self._onnx.TensorProto.FLOAT))

    def constant(self, name: str, values: Floats | Int64) -> str:
        """Store values as they are; the same name again is the same constant."""
        if name not in self._initializers:
            self._initializers[name] = self._onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

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
            raise ExportError(f"Tensor {name!r} has values that {self._storage} cannot hold.")
        return self.constant(name, stored)

    def weight(self, name: str, values: Floats) -> str:
        """Store a matrix and widen it; onnxruntime folds the two into one float32 constant as it loads."""
        stored = self.stored(name, values)
        return stored if self._storage is Storage.FLOAT32 else self.cast(f"{name}.float32", stored)

    def picked(self, name: str, rows: str) -> str:
        """Widen the rows picked from a stored table: after picking, so that the table is never widened as a whole."""
        return rows if self._storage is Storage.FLOAT32 else self.cast(f"{name}.float32", rows)

    def model(self, inputs: Sequence[str], output: str, width: int, opset: int) -> Any:
        """Finish: int64 `inputs` of (batch_size, sequence_length), a float32 output with `width` more."""
        helper, types, axes = self._onnx.helper, self._onnx.TensorProto, ["batch_size", "sequence_length"]
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(name, types.INT64, axes) for name in inputs],
            [helper.make_tensor_value_info(output, types.FLOAT, [*axes, width])],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name=_PRODUCER,
            producer_version=_PRODUCER_VERSION,
        )
        self._onnx.checker.check_model(model)
        return model


# Reading a folder that may be damaged -------------------------------------------------------------------------------

_Choice = TypeVar("_Choice")


def chosen(config: Mapping[str, Any], key: str, default: str | None, choices: Mapping[str, _Choice]) -> _Choice:
    """Return the choice that config.json names.

    Raises:
        ExportError: It names none of them.
    """
    value = config.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise ExportError(f"A model whose {key} is {value!r} cannot be exported; what can be: {', '.join(choices)}.")
    return choices[value]


def epsilon(config: Mapping[str, Any]) -> float:
    """Return `layer_norm_eps`.

    Raises:
        ExportError: It is not a number from 0 to below 1.
    """
    value = config.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ExportError(f"config.json needs a layer_norm_eps of at least 0 and below 1, not {value!r}.")
    return float(value)


def size(config: Mapping[str, Any], key: str) -> int:
    """Return a size that config.json must state.

    Raises:
        ExportError: It is not a positive integer.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExportError(f"config.json needs a positive integer {key}, not {value!r}.")
    return value


def tensor_of(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> Floats:
    """Return a tensor of the weights.

    Raises:
        ExportError: It is missing, or not of floating point and this shape.
    """
    tensor = file.get(name)
    if tensor is None:
        raise ExportError(f"{WEIGHTS} has no tensor {name!r}.")
    if tensor.shape != shape or not np.issubdtype(tensor.dtype, np.floating):
        raise ExportError(
            f"{WEIGHTS} has {name!r} as {tensor.dtype} {list(tensor.shape)}, and config.json says float {list(shape)}."
        )
    return tensor
