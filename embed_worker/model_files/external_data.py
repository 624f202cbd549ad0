"""Tensors that a graph keeps in other files: checked before onnxruntime sees them, and read where it refuses to.

onnxruntime follows no link out of the graph's folder, and the cache of the Hugging Face hub is made of such links.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import ModelError
from embed_worker.model_files.damage import damage_of
from embed_worker.model_files.layout import OutsideError, check_link, inner_path
from embed_worker.model_files.onnx_outline import ExternalTensor

# By `TensorProto.DataType`; bfloat16 as its bits. numpy has no name for types of less than a byte.
_DTYPES: Mapping[int, np.dtype[Any]] = {
    kind: np.dtype(name)
    for kind, name in {
        1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8",
        9: "?", 10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8", 16: "<u2",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class MappedTensor:
    """A tensor of another file: `values` are mapped from it, `kind` is its `TensorProto.DataType`."""

    name: str
    kind: int
    values: NDArray[Any]


def external_files(graph: Path, tensors: Sequence[ExternalTensor], *, home: Path | None = None) -> list[Path]:
    """Return the files that a graph needs beside itself, in order of their names.

    Args:
        graph: The graph.
        tensors: Those that it keeps elsewhere.
        home: The folder of the model, which no link may leave; None where links may lead anywhere.

    Raises:
        ModelError: One lies outside the graph's folder by its name, outside the model's as a link, is not there, or is
            shorter than the graph says.
    """
    needed: dict[str, int] = {}
    for tensor in tensors:
        end = tensor.offset + (tensor.length or 0)
        needed[tensor.location] = max(needed.get(tensor.location, 0), end)
    return [_checked(graph, location, size, home) for location, size in sorted(needed.items())]


def _checked(graph: Path, location: str, size: int, home: Path | None) -> Path:
    try:
        file = graph.parent / inner_path(location)
    except OutsideError as error:
        raise ModelError(f"the graph {graph.name!r} keeps data outside: {error}") from error
    if home is not None:
        check_link(file, home)
    try:
        found = file.stat().st_size
    except OSError as error:
        problem = f"the graph {graph.name!r} needs the file {location!r} beside it: {error.strerror or error}"
        raise ModelError(problem) from error
    if found < size:
        cut = f"truncated: {found} bytes, and the graph {graph.name!r} needs {size}; get it again"
        raise ModelError(f"the file {location!r} is {damage_of(file) or cut}")
    return file


def map_linked(graph: Path, tensors: Sequence[ExternalTensor]) -> list[MappedTensor]:
    """Map the tensors whose files are links to another folder than the graph's own.

    Raises:
        ModelError: A tensor's type cannot be mapped, or its numbers do not fit together.
    """
    home = os.path.dirname(os.path.realpath(graph))
    return [
        _map(graph, tensor)
        for tensor in tensors
        if os.path.dirname(os.path.realpath(graph.parent / tensor.location)) != home
    ]


def _map(graph: Path, tensor: ExternalTensor) -> MappedTensor:
    dtype = _DTYPES.get(tensor.kind)
    if dtype is None:
        raise ModelError(
            f"the file {tensor.location!r} is a link out of the folder of {graph.name!r} and has a type that can only "
            "be read beside the graph: copy the folder with its links followed, for instance with `cp -RL`"
        )
    size = math.prod(tensor.shape) * dtype.itemsize
    if tensor.length not in (None, size):
        raise ModelError(
            f"the graph {graph.name!r} gives {tensor.name!r} {tensor.length} bytes, and its shape takes {size}"
        )
    if size == 0:
        return MappedTensor(tensor.name, tensor.kind, np.zeros(tensor.shape, dtype))
    try:
        values = np.memmap(graph.parent / tensor.location, dtype, "r", tensor.offset, tensor.shape)
    except (OSError, ValueError) as error:
        raise ModelError(f"the file {tensor.location!r} of {graph.name!r} cannot be mapped: {error}") from error
    return MappedTensor(tensor.name, tensor.kind, np.require(values, requirements="A"))
