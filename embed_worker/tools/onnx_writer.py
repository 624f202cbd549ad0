"""What every exported architecture needs: a writer of ONNX graphs, and readers of folders that may be damaged.

The package `onnx` is imported when the first graph is begun.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_worker.safetensors import SafetensorsError, SafetensorsFile, Tensor

Floats: TypeAlias = NDArray[np.floating[Any]]
Int64: TypeAlias = NDArray[np.int64]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

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
            raise ExportError("The package onnx is missing: pip install 'embed-bridge[tools]'.") from error
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
            raise ExportError(f"Tensor {name!r} has values that {self._storage} cannot hold.")
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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no narrower base
        raise CheckFailedError(f"onnxruntime cannot load the graph: {error}") from error


# Reading a folder that may be damaged -------------------------------------------------------------------------------


class Weights(Mapping[str, Floats]):
    """The tensors of a model under the names that its class uses, checked; each is read whenever it is asked for.

    A bfloat16 tensor is widened at every reading, so that a model of many gigabytes is never in memory twice its size.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        shapes: Iterable[tuple[str, tuple[int, ...]]],
        published: Callable[[str], str],
    ) -> None:
        """Check that the tensors are there.

        Args:
            source: Tensors by their published names.
            shapes: Names and shapes; the first that is missing ends it.
            published: Gives the published name of a tensor.

        Raises:
            ExportError: A tensor is missing, or not of floating point and its shape.
        """
        self._source = source
        self._published = published
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes:
            tensor_of(source, published(name), shape)
            self._shapes[name] = shape

    @property
    def parameters(self) -> int:
        """The number of all values."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def __getitem__(self, name: str) -> Floats:
        """Read a tensor."""
        return tensor_of(self._source, self._published(name), self._shapes[name])

    def __contains__(self, name: object) -> bool:
        """Tell whether the model has such a tensor, without reading it."""
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which they were checked."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._shapes)


class _Shards(Mapping[str, Tensor]):
    """The tensors of several files."""

    def __init__(self, files: Mapping[str, SafetensorsFile], file_of: Mapping[str, str]) -> None:
        self._files = files
        self._file_of = file_of

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._file_of[name]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def weight_files(folder: Path) -> list[Path]:
    """List the files of the weights: model.safetensors, or the shards that its index names.

    Raises:
        ExportError: There is neither, or the index is damaged or names a file outside the folder.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(_shard_of_tensors(folder).values()))]


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """Open the tensors of a folder, in one file or in shards.

    Raises:
        ExportError: There are none, or a file is damaged.
    """
    try:
        if (folder / WEIGHTS).exists():
            return SafetensorsFile.open(folder / WEIGHTS)
        if (folder / INDEX).exists():
            return _open_shards(folder)
    except SafetensorsError as error:
        raise ExportError(f"{folder}: {error}") from error
    if any(folder.glob("pytorch_model*.bin")):
        raise ExportError(
            f"{folder} has its weights in pytorch_model.bin, a pickle, which is never read; get the revision with "
            f"{WEIGHTS}, or save the model again with transformers."
        )
    raise ExportError(f"{folder} has no {WEIGHTS} and no {INDEX}.")


def _open_shards(folder: Path) -> _Shards:
    shard_of_tensors = _shard_of_tensors(folder)
    files = {name: SafetensorsFile.open(folder / name) for name in sorted(set(shard_of_tensors.values()))}
    for tensor, name in shard_of_tensors.items():
        if tensor not in files[name]:
            raise ExportError(f"{folder}: {INDEX} says that {tensor!r} is in {name}, and it is not.")
    return _Shards(files, shard_of_tensors)


def _shard_of_tensors(folder: Path) -> dict[str, str]:
    index = read_json_object(folder / INDEX)
    shard_of_tensors = index.get("weight_map")
    if not isinstance(shard_of_tensors, dict) or not shard_of_tensors:
        raise ExportError(f"{folder / INDEX} has no weight_map.")
    for name in shard_of_tensors.values():
        # Shards lie beside their index: a plain name on every platform.
        if not isinstance(name, str) or not name.endswith(".safetensors") or any(sign in name for sign in "/\\:\0"):
            raise ExportError(f"{folder / INDEX} names {name!r}, which is not a safetensors file of the folder.")
    return shard_of_tensors


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        ExportError: It cannot be read, or is not a JSON object.
    """
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise ExportError(f"{file.parent} has no readable {file.name}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{file} is not JSON.") from error
    if not isinstance(value, dict):
        raise ExportError(f"{file} is not a JSON object.")
    return value


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


def epsilon(config: Mapping[str, Any], key: str = "layer_norm_eps", default: float = 1e-12) -> float:
    """Return the number that a norm adds to the variance.

    Raises:
        ExportError: It is not a number from 0 to below 1.
    """
    value = config.get(key, default)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ExportError(f"config.json needs a {key} of at least 0 and below 1, not {value!r}.")
    return float(value)


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a size that config.json must state, unless there is a default.

    Raises:
        ExportError: It is not a positive integer.
    """
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExportError(f"config.json needs a positive integer {key}, not {value!r}.")
    return value


def tensor_of(file: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Floats:
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
