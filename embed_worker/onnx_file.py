"""Where the large lookup tables of an ONNX file lie, so that several sessions can share one copy of them.

Reads just enough of the protobuf encoding, with bounds checked. It is an optimisation: whatever it does not understand
it leaves to onnxruntime. Field numbers are those of `onnx.proto`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MIN_TABLE_BYTES = 2**20
_ITEM_BYTES = {1: 4, 10: 2}  # TensorProto.FLOAT, FLOAT16

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OPERATOR = 1, 4


@dataclass(frozen=True, slots=True)
class Table:
    """An initializer that only `Gather` reads: `item_bytes` is 4 for float32 and 2 for float16."""

    name: str
    shape: tuple[int, ...]
    item_bytes: int
    offset: int  # of its first byte in the file


@dataclass(frozen=True, slots=True)
class Outline:
    """The operators of a graph, and those of its lookup tables that are worth sharing."""

    operators: frozenset[str] = frozenset()
    tables: tuple[Table, ...] = ()

    @property
    def scales_by_batch(self) -> bool:
        """Whether activations are quantised by the values of the whole batch, so that neighbours matter."""
        return any(operator.startswith("DynamicQuantize") for operator in self.operators)


def read_outline(path: Path) -> Outline:
    """Look into a graph without loading it; empty where the file is not understood."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _outline(data)
    except (OSError, ValueError, IndexError):
        return Outline()


def _outline(data: mmap.mmap) -> Outline:
    graph = next((span for field, span in _fields(data, 0, len(data)) if field == _MODEL_GRAPH), None)
    if not isinstance(graph, range):
        return Outline()
    operators: set[str] = set()
    gathered: set[str] = set()
    used_otherwise: set[str] = set()
    tables: list[Table | None] = []
    for field, span in _fields(data, graph.start, graph.stop):
        if field == _GRAPH_NODE and isinstance(span, range):
            inputs, operator = _node(data, span)
            operators.add(operator)
            first = 1 if operator == "Gather" else 0
            gathered.update(inputs[:first])
            used_otherwise.update(inputs[first:])
        elif field == _GRAPH_INITIALIZER and isinstance(span, range) and len(span) >= _MIN_TABLE_BYTES:
            tables.append(_table(data, span))
    shared = gathered - used_otherwise
    found = tuple(table for table in tables if table is not None and table.name in shared)
    return Outline(frozenset(operators), found)


def _node(data: mmap.mmap, span: range) -> tuple[list[str], str]:
    inputs, operator = [], ""
    for field, value in _fields(data, span.start, span.stop):
        if isinstance(value, range) and field in (_NODE_INPUT, _NODE_OPERATOR):
            text = data[value.start : value.stop].decode("utf-8")
            if field == _NODE_INPUT:
                inputs.append(text)
            else:
                operator = text
    return inputs, operator


def _table(data: mmap.mmap, span: range) -> Table | None:
    shape: list[int] = []
    name, kind, raw = "", 0, range(0)
    for field, value in _fields(data, span.start, span.stop):
        match field, value:
            case 1, int():  # dims, one by one
                shape.append(value)
            case 1, range():  # dims, packed
                shape.extend(_varints(data, value))
            case 2, int():  # data_type
                kind = value
            case 8, range():  # name
                name = data[value.start : value.stop].decode("utf-8")
            case 9, range():  # raw_data
                raw = value
            case _:
                pass
    item_bytes = _ITEM_BYTES.get(kind)
    if item_bytes is None or len(raw) < _MIN_TABLE_BYTES or math.prod(shape) * item_bytes != len(raw):
        return None  # another type, or kept elsewhere
    return Table(name, tuple(shape), item_bytes, raw.start)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int | range]]:
    """Yield the fields of a message: a number as it is, bytes and messages as their place in the file."""
    while start < stop:
        key, start = _varint(data, start)
        value: int | range
        match key & 7:
            case 0:
                value, start = _varint(data, start)
            case 1:
                value, start = range(start, start + 8), start + 8
            case 2:
                length, start = _varint(data, start)
                value, start = range(start, start + length), start + length
            case 5:
                value, start = range(start, start + 4), start + 4
            case other:
                raise ValueError(f"unknown wire type {other}")
        if start > stop:
            raise ValueError("a field goes beyond its message")
        yield key >> 3, value


def _varints(data: mmap.mmap, span: range) -> Iterator[int]:
    position = span.start
    while position < span.stop:
        value, position = _varint(data, position)
        yield value


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
