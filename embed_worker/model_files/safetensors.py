"""Read a `.safetensors` file: a length, a JSON header, bytes. It owns the format's rules and trusts nothing in a file.

The data stay in the file (memory-mapped) until they are used. Every offset is checked before the first tensor is
given out, so that a damaged file fails at opening, with one sentence.

Reference: the format's description in the repository huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.model_files.damage import damage_of

Tensor: TypeAlias = NDArray[Any]

_LENGTH_BYTES = 8
# The format's own limit; a larger number is a file of another kind.
_MAX_HEADER_BYTES = 100_000_000
# Offsets beyond it are not offsets, and numbers without a bound could not even be printed in a message.
_MAX_SIZE = 2**63 - 1
_MAX_RANK = 32
_BFLOAT16 = "BF16"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    _BFLOAT16: np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class SafetensorsError(ValueError):
    """A file is not a whole safetensors file; the message is one sentence that names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One tensor of the header: `start` and `end` are offsets in bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a file by name, read-only. The mapping of the file lives as long as any of its tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], widened: frozenset[str]) -> None:
        """Hold checked tensors; `open` makes them.

        Args:
            tensors: Views into the file.
            widened: Names of those that hold bfloat16 bit patterns.
        """
        self._tensors = tensors
        self._widened = widened

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file and check the whole of its header.

        Raises:
            SafetensorsError: The file cannot be read, is damaged, or holds a type that is not read here.
        """
        if path.exists() and not path.is_file():
            raise SafetensorsError(f"{path.name} is not a regular file")  # a pipe would never end
        try:
            return cls._parse(_map(path))
        except OSError as error:
            raise SafetensorsError(f"{path.name} cannot be read: {error.strerror}") from error
        except SafetensorsError as error:
            otherwise = f"no usable safetensors file: {error}"
            raise SafetensorsError(f"{path.name} is {damage_of(path) or otherwise}") from error

    @classmethod
    def _parse(cls, content: mmap.mmap | bytes) -> Self:
        header_bytes = _header_bytes(content)
        entries = _entries(_header(content[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes]))
        data_start = _LENGTH_BYTES + header_bytes
        _check_layout(entries, len(content) - data_start)
        tensors = {entry.name: _view(content, data_start, entry) for entry in entries}
        return cls(tensors, frozenset(entry.name for entry in entries if entry.dtype == _BFLOAT16))

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor: a view into the file, or for bfloat16 a new float32 array.

        Raises:
            KeyError: The file has no such tensor.
        """
        tensor = self._tensors[name]
        if name not in self._widened:
            return tensor
        # bfloat16 is the upper half of a float32.
        return (tensor.astype("<u4") << 16).view("<f4")

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of their data in the file."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._tensors)


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        # An empty file cannot be mapped.
        empty = file.seek(0, 2) == 0
        return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _header_bytes(content: mmap.mmap | bytes) -> int:
    if len(content) < _LENGTH_BYTES:
        raise SafetensorsError(f"it is truncated to {len(content)} bytes; get it again")
    header_bytes = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise SafetensorsError(f"its header of {header_bytes} bytes exceeds the {_MAX_HEADER_BYTES} that are allowed")
    if header_bytes > len(content) - _LENGTH_BYTES:
        raise SafetensorsError(f"it is truncated within its header of {header_bytes} bytes; get it again")
    return header_bytes


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise SafetensorsError("its header is not a JSON object")
    return header


def _entries(header: dict[str, Any]) -> list[_Entry]:
    """Read the header's tensors, sorted by where their data lie."""
    entries = [_entry(name, fields) for name, fields in header.items() if name != "__metadata__"]
    return sorted(entries, key=lambda entry: (entry.start, entry.end))


def _entry(name: str, fields: Any) -> _Entry:
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]}:
            pass
        case _:
            raise SafetensorsError(f"tensor {name!r} needs dtype, shape and two data_offsets")
    if dtype not in _DTYPES:
        raise SafetensorsError(f"tensor {name!r} has the dtype {dtype!r}, which is not read here")
    if len(shape) > _MAX_RANK or not all(_is_size(length) for length in shape):
        raise SafetensorsError(f"tensor {name!r} has a shape that is no list of at most {_MAX_RANK} sizes")
    if not (_is_size(start) and _is_size(end) and start <= end):
        raise SafetensorsError(f"tensor {name!r} has data_offsets that are not a start and an end")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - start != expected:
        raise SafetensorsError(f"tensor {name!r} has {end - start} bytes where its shape {shape} takes {expected}")
    return _Entry(name=name, dtype=dtype, shape=tuple(shape), start=start, end=end)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_SIZE


def _check_layout(entries: list[_Entry], data_bytes: int) -> None:
    """Check that tensors lie one after another, without holes, to the very end, as the format demands.

    An overlap, a hole, offsets beyond the end and a truncated or overlong file all fail here.
    """
    end = 0
    for entry in entries:
        if entry.start != end:
            raise SafetensorsError(f"tensor {entry.name!r} begins at byte {entry.start} of the data and not at {end}")
        end = entry.end
    if end != data_bytes:
        raise SafetensorsError(f"it has {data_bytes} bytes of data and its header describes {end}; get it again")


def _view(content: mmap.mmap | bytes, data_start: int, entry: _Entry) -> Tensor:
    dtype, count = _DTYPES[entry.dtype], math.prod(entry.shape)
    try:
        if count == 0:
            return np.zeros(entry.shape, dtype)
        return np.frombuffer(content, dtype, count, data_start + entry.start).reshape(entry.shape)
    except ValueError as error:
        # An empty tensor whose other dimensions overflow.
        raise SafetensorsError(f"tensor {entry.name!r} has the shape {list(entry.shape)}") from error
