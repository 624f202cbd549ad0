"""A look into an ONNX file without loading it: its operators, its large lookup tables, its data in other files.

Reads just enough of the protobuf encoding, with bounds checked: whatever it does not understand it leaves to
onnxruntime. Field numbers are those of `onnx.proto`.
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# What graphs call their outputs: a vector a token, by either name, and a vector a text.
HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
SENTENCE_OUTPUT = "sentence_embedding"
# What a graph is given where an inner hidden state is pooled.
HIDDEN_STATE = "embed-worker.hidden_state"

_MIN_TABLE_BYTES = 2**20
_EXTERNAL = 1  # TensorProto.DataLocation
_ITEM_BYTES = {1: 4, 10: 2}  # TensorProto.FLOAT, FLOAT16
# Of TensorProto.DataType, what weights are rounded to. Index tables and flags are of other types, scales have one axis.
_ROUNDED = {2: "uint8", 3: "int8", 17: "float8", 18: "float8", 19: "float8", 20: "float8", 21: "uint4", 22: "int4"}
_WEIGHTS = _ROUNDED | {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
_MIN_WEIGHTS = 256
# In the names of operators of graphs whose weights, or activations too, are integers.
_QUANTIZING = ("quantize", "qlinear", "qattention", "integer", "nbits")

_IR_VERSION_TAG = 0x08  # a number in field 1, which every writer puts first
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 2, 1, 1
# What exporters have made of the names of position tables in transformers; a relative one bounds no length.
_POSITION_TABLE = re.compile(r"position_?embedding|embed_positions|(^|[./])wpe([./]|$)")


@dataclass(frozen=True, slots=True)
class Table:
    """An initializer that only `Gather` reads: `item_bytes` is 4 for float32 and 2 for float16."""

    name: str
    shape: tuple[int, ...]
    item_bytes: int
    offset: int  # of its first byte in the file


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """An initializer whose data lie in another file.

    Attributes:
        kind: A number of `TensorProto.DataType`.
        location: The file as the graph names it, relative to the graph's folder.
        offset: In bytes.
        length: In bytes; None for what the shape takes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    location: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Node:
    """An operator with the names of what it reads and makes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """What a graph's file says without being loaded.

    Attributes:
        tables: Those that are worth sharing.
        external: Tensors in other files.
        rounded: The types of weights that were rounded to fewer bits than float16 has.
        inputs: Their names.
        outputs: Their names.
        sentence_outputs: Those of the outputs that have a row a text and no axis of tokens.
        positions: The rows of its table of positions; None where no table has such a name.
        stored: The type that most of its weights have in the file, `float16` for instance; None without any.
        width: The last dimension of what it gives, a token's or a text's vector; None where its type leaves it open.
    """

    operators: frozenset[str] = frozenset()
    tables: tuple[Table, ...] = ()
    external: tuple[ExternalTensor, ...] = ()
    rounded: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    sentence_outputs: frozenset[str] = frozenset()
    positions: int | None = None
    stored: str | None = None
    width: int | None = None

    @property
    def quantization(self) -> str | None:
        """The type that weights are rounded to, `int8` for instance; None for a float graph.

        Such weights may be computed with as they are or widened first, by `DequantizeLinear` or by `Cast` and `Mul`:
        the vectors are another space's either way.
        """
        if self.rounded:
            return min(self.rounded, key=lambda kind: (int(kind[-1]), kind))
        names = [operator.lower() for operator in self.operators]
        return "int8" if any(sign in name for name in names for sign in _QUANTIZING) else None

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


def is_whole(data: mmap.mmap) -> bool:
    """Return whether a file that begins as an ONNX graph goes on to the end of what it announces."""
    if data[0] != _IR_VERSION_TAG:
        return True  # or at least it is no part of one
    try:
        return any(field == _MODEL_GRAPH for field, _ in list(_fields(data, 0, len(data))))
    except (ValueError, IndexError):
        return False


def _outline(data: mmap.mmap) -> Outline:
    graph = next((span for field, span in _fields(data, 0, len(data)) if field == _MODEL_GRAPH), None)
    if not isinstance(graph, range):
        return Outline()
    operators: set[str] = set()
    gathered: set[str] = set()
    used_otherwise: set[str] = set()
    tables: list[Table] = []
    external: list[ExternalTensor] = []
    rounded: set[str] = set()
    ends: dict[int, dict[str, list[int | None]]] = {_GRAPH_INPUT: {}, _GRAPH_OUTPUT: {}}
    positions: list[int] = []
    stored: Counter[int] = Counter()
    for field, span in _fields(data, graph.start, graph.stop):
        if field == _GRAPH_NODE and isinstance(span, range):
            node = _node(data, span)
            operators.add(node.operator)
            first = 1 if node.operator == "Gather" else 0
            gathered.update(node.inputs[:first])
            used_otherwise.update(node.inputs[first:])
        elif field == _GRAPH_INITIALIZER and isinstance(span, range):
            kind, shape, tensor = _initializer(data, span)
            if len(shape) > 1 and _is_position_table(_text(data, span, _TENSOR_NAME)):
                positions.append(shape[-2])
            if len(shape) > 1:
                stored[kind] += math.prod(shape)
            if kind in _ROUNDED and len(shape) > 1 and math.prod(shape) >= _MIN_WEIGHTS:
                rounded.add(_ROUNDED[kind])
            match tensor:
                case Table():
                    tables.append(tensor)
                case ExternalTensor():
                    external.append(tensor)
                case None:
                    pass
        elif field in ends and isinstance(span, range):
            ends[field][_text(data, span, _VALUE_NAME)] = _shape(data, span)
    shared = gathered - used_otherwise
    found = tuple(table for table in tables if table.name in shared)
    return Outline(
        frozenset(operators),
        found,
        tuple(external),
        frozenset(rounded),
        inputs=frozenset(ends[_GRAPH_INPUT]),
        outputs=frozenset(ends[_GRAPH_OUTPUT]),
        sentence_outputs=frozenset(name for name, shape in ends[_GRAPH_OUTPUT].items() if len(shape) == 2),
        positions=min(positions, default=None),
        stored=_WEIGHTS.get(max(stored, key=stored.__getitem__, default=0)),
        width=_width(ends[_GRAPH_OUTPUT]),
    )


def _width(outputs: Mapping[str, list[int | None]]) -> int | None:
    usual = [outputs[name] for name in (*HIDDEN_OUTPUTS, SENTENCE_OUTPUT) if name in outputs]
    shapes = usual or list(outputs.values())
    return shapes[0][-1] if shapes and shapes[0] and len({tuple(shape[-1:]) for shape in shapes}) == 1 else None


def _is_position_table(name: str) -> bool:
    return _POSITION_TABLE.search(name.lower()) is not None and "relative" not in name.lower()


def _shape(data: mmap.mmap, value: range) -> list[int | None]:
    """Read the dimensions of an input or an output, None for those with a name; empty where its type has none."""
    shape = value
    for wanted in (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE):
        found = (inner for field, inner in _fields(data, shape.start, shape.stop) if field == wanted)
        inner = next(found, None)
        if not isinstance(inner, range):
            return []
        shape = inner
    sizes = (size for field, size in _fields(data, shape.start, shape.stop) if field == _SHAPE_DIM)
    return [_size(data, size) for size in sizes]


def _size(data: mmap.mmap, dimension: int | range) -> int | None:
    fields = _fields(data, dimension.start, dimension.stop) if isinstance(dimension, range) else iter(())
    return next((value for field, value in fields if field == _DIM_VALUE and isinstance(value, int)), None)


def read_nodes(path: Path) -> tuple[Node, ...]:
    """Read the nodes of a graph in their order; empty where the file is not understood."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = next(span for field, span in _fields(data, 0, len(data)) if field == _MODEL_GRAPH)
            assert isinstance(graph, range)
            return tuple(
                _node(data, span)
                for field, span in _fields(data, graph.start, graph.stop)
                if field == _GRAPH_NODE and isinstance(span, range)
            )
    except (OSError, ValueError, IndexError, StopIteration):
        return ()


def _node(data: mmap.mmap, span: range) -> Node:
    names: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_OUTPUT: [], _NODE_OPERATOR: []}
    for field, value in _fields(data, span.start, span.stop):
        if isinstance(value, range) and field in names:
            names[field].append(data[value.start : value.stop].decode("utf-8"))
    return Node("".join(names[_NODE_OPERATOR]), tuple(names[_NODE_INPUT]), tuple(names[_NODE_OUTPUT]))


def _initializer(data: mmap.mmap, span: range) -> tuple[int, list[int], Table | ExternalTensor | None]:
    """Read the type and the shape of an initializer, and more if it is large or lies elsewhere."""
    shape: list[int] = []
    name, kind, raw = "", 0, range(0)
    where: dict[str, str] = {}
    is_external = False
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
            case 13, range():  # external_data
                key, text = _entry(data, value)
                where[key] = text
            case 14, int():  # data_location
                is_external = value == _EXTERNAL
            case _:
                pass
    if is_external:
        length = int(where["length"]) if "length" in where else None
        place = where.get("location", ""), int(where.get("offset", "0")), length
        return kind, shape, ExternalTensor(name, tuple(shape), kind, *place)
    item_bytes = _ITEM_BYTES.get(kind)
    if item_bytes is None or len(raw) < _MIN_TABLE_BYTES or math.prod(shape) * item_bytes != len(raw):
        return kind, shape, None  # another type, or kept elsewhere
    return kind, shape, Table(name, tuple(shape), item_bytes, raw.start)


def _text(data: mmap.mmap, span: range, wanted: int) -> str:
    """Read a field of a message that is text; empty where it is not there."""
    found = (value for field, value in _fields(data, span.start, span.stop) if field == wanted)
    return next((data[value.start : value.stop].decode("utf-8") for value in found if isinstance(value, range)), "")


def _entry(data: mmap.mmap, span: range) -> tuple[str, str]:
    """Read a `StringStringEntryProto`."""
    texts = {
        field: data[value.start : value.stop].decode("utf-8")
        for field, value in _fields(data, span.start, span.stop)
        if isinstance(value, range)
    }
    return texts.get(1, ""), texts.get(2, "")


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
