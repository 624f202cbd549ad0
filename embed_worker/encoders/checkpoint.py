"""Published folders that may be damaged: config.json, and the weights of safetensors files under their names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_worker.model_files.layout import MODULES, WEIGHTS, OutsideError, inner_path, read_json
from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile, Tensor

Floats: TypeAlias = NDArray[np.floating[Any]]
Int64: TypeAlias = NDArray[np.int64]

INDEX = "model.safetensors.index.json"


class ExportError(Exception):
    """The folder cannot be exported; the message is one sentence."""

    exit_status: ClassVar[int] = 78


class CheckFailedError(ExportError):
    """The graph does not compute what the weights say."""

    exit_status: ClassVar[int] = 1


class Weights(Mapping[str, Floats]):
    """The tensors of a model under the names that its class uses, checked; each is read whenever it is asked for.

    A bfloat16 tensor is widened at every reading, so that a model of many gigabytes is never in memory twice its size.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        shapes: Iterable[tuple[str, tuple[int, ...]]],
        checkpoint_name: Callable[[str], str],
    ) -> None:
        """Check that the tensors are there.

        Args:
            source: Tensors by their names in the checkpoint.
            shapes: Names and shapes; the first that is missing ends it.
            checkpoint_name: Gives the name of a tensor in the source.

        Raises:
            ExportError: A tensor is missing, or not of floating point and its shape.
        """
        self._source = source
        self._checkpoint_name = checkpoint_name
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes:
            tensor_of(source, checkpoint_name(name), shape)
            self._shapes[name] = shape

    @property
    def parameters(self) -> int:
        """The number of all values."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def __getitem__(self, name: str) -> Floats:
        """Read a tensor."""
        return tensor_of(self._source, self._checkpoint_name(name), self._shapes[name])

    def __contains__(self, name: object) -> bool:
        """Return whether the model has such a tensor, without reading it."""
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


def transformer_folder(folder: Path) -> Path:
    """Return where a folder has its config.json and its weights: of a module with a path, that path.

    Older versions of sentence-transformers put them into 0_Transformer.

    Raises:
        ExportError: The path leaves the folder.
    """
    try:
        modules = read_json(folder / MODULES)
    except (OSError, ValueError):
        return folder  # who serves the folder tells what is wrong with it
    match modules:
        case [{"path": str(path), "type": str(kind)}, *_] if path.strip("./") and kind.endswith(".Transformer"):
            try:
                return folder / inner_path(path)
            except OutsideError as error:
                raise ExportError(f"{folder / MODULES} names a path that leaves the folder: {error}") from error
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Return the files of the weights: model.safetensors, or the shards that its index names.

    Raises:
        ExportError: There is neither, or the index is damaged or names a file outside the folder.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(_shard_of_tensors(folder).values()))]


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """Open the tensors of a folder, in one file or in shards.

    Raises:
        ExportError: There are none, or a file is damaged.
    """
    try:
        if (folder / WEIGHTS).is_file():
            return SafetensorsFile.open(folder / WEIGHTS)
        if (folder / INDEX).exists():
            return _open_shards(folder)
    except SafetensorsError as error:
        raise ExportError(f"{folder}: {error}") from error
    if any(folder.glob("pytorch_model*.bin")):
        raise ExportError(
            f"{folder} has its weights in pytorch_model.bin, a pickle, which is never read; get the revision with "
            f"{WEIGHTS}, or save the model again with transformers"
        )
    raise ExportError(f"{folder} has no {WEIGHTS} and no {INDEX}")


def _open_shards(folder: Path) -> _Shards:
    shard_of_tensors = _shard_of_tensors(folder)
    files = {name: SafetensorsFile.open(folder / name) for name in sorted(set(shard_of_tensors.values()))}
    for tensor, name in shard_of_tensors.items():
        if tensor not in files[name]:
            raise ExportError(f"{folder}: {INDEX} says that {tensor!r} is in {name}, and it is not")
    return _Shards(files, shard_of_tensors)


def _shard_of_tensors(folder: Path) -> dict[str, str]:
    index = read_json_object(folder / INDEX)
    shard_of_tensors = index.get("weight_map")
    if not isinstance(shard_of_tensors, dict) or not shard_of_tensors:
        raise ExportError(f"{folder / INDEX} has no weight_map")
    for name in shard_of_tensors.values():
        # Shards lie beside their index: a plain name on every platform.
        if not isinstance(name, str) or not name.endswith(".safetensors") or any(sign in name for sign in "/\\:\0"):
            raise ExportError(f"{folder / INDEX} names {name!r}, which is not a safetensors file of the folder")
    return shard_of_tensors


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        ExportError: It cannot be read, or is not a JSON object.
    """
    try:
        value = read_json(file)
    except OSError as error:
        raise ExportError(f"{file.parent} has no readable {file.name}: {error.strerror or error}") from error
    except ValueError as error:
        raise ExportError(f"{file} is {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{file} is not a JSON object")
    return value


_Choice = TypeVar("_Choice")


def has_own_code(config: Mapping[str, Any]) -> bool:
    """Return whether config.json names code of the folder's own for its model, which is neither read nor run."""
    own_code = config.get("auto_map")
    return isinstance(own_code, dict) and "AutoModel" in own_code


def chosen(config: Mapping[str, Any], key: str, default: str | None, choices: Mapping[str, _Choice]) -> _Choice:
    """Return the choice that config.json names.

    Raises:
        ExportError: It names none of them.
    """
    value = config.get(key, default)
    if not isinstance(value, str) or value not in choices:
        other = "; for others, sentence-transformers with backend='onnx' writes a graph" if key == "model_type" else ""
        known = f"what can be: {', '.join(choices)}{other}"
        raise ExportError(f"a model whose {key} is {value!r} cannot be exported; {known}")
    return choices[value]


def epsilon(config: Mapping[str, Any], key: str = "layer_norm_eps", default: float = 1e-12) -> float:
    """Return the number that a norm adds to the variance.

    Raises:
        ExportError: It is not a number from 0 to below 1.
    """
    value = config.get(key, default)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ExportError(f"config.json needs a {key} of at least 0 and below 1, not {value!r}")
    return float(value)


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a size that config.json must state, unless there is a default.

    Raises:
        ExportError: It is not a positive integer.
    """
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExportError(f"config.json needs a positive integer {key}, not {value!r}")
    return value


def tensor_of(file: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Floats:
    """Return a tensor of the weights.

    Raises:
        ExportError: It is missing, or not of floating point and this shape.
    """
    tensor = file.get(name)
    if tensor is None:
        raise ExportError(f"{WEIGHTS} has no tensor {name!r}")
    if tensor.shape != shape or not np.issubdtype(tensor.dtype, np.floating):
        raise ExportError(
            f"{WEIGHTS} has {name!r} as {tensor.dtype} {list(tensor.shape)}, and config.json says float {list(shape)}"
        )
    return tensor
