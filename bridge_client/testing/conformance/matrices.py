"""What the conformance suite asks of vectors: `{"$matrix": {…}}` on an answer that has them. Pure, without numpy.

| member | meaning |
|---|---|
| `shape` | a pattern for `[count, dimension]` |
| `norms` | a pattern for the list of the rows' lengths |
| `rows` | look at these rows only |
| `save` | remember the matrix under a name |
| `equals` | the bits of the matrix of that name |
| `close_to` | each row points where its fellow of the matrix of that name does, to `within` in cosine distance (1e-6) |
| `differs_from` | no row does |
| `float16_of` | the matrix of that name, each number rounded to half precision |
| `signs_of` | 1 where the matrix of that name is greater than 0, else -1 |
| `of_fake` | the bits that the fake worker gives to these texts |

Packed vectors may be float32, half precision or sign bits; their length tells. A sign bit counts as 1 or -1.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge_client.testing import fake_vector

_WISHES = {
    "shape",
    "norms",
    "rows",
    "save",
    "equals",
    "close_to",
    "within",
    "differs_from",
    "float16_of",
    "signs_of",
    "of_fake",
}


@dataclass(frozen=True, slots=True)
class Matrix:
    """(count, dimension) numbers, each exactly a float32; `precision` is what they were written as."""

    rows: tuple[tuple[float, ...], ...]
    dimension: int
    precision: str = "float32"

    @property
    def shape(self) -> list[int]:
        """The count and the dimension."""
        return [len(self.rows), self.dimension]

    def bits(self) -> bytes:
        """Return it as row-major little-endian float32."""
        return b"".join(struct.pack(f"<{self.dimension}f", *row) for row in self.rows)

    def norms(self) -> list[float]:
        """Return the length of each row."""
        return [math.hypot(*row) for row in self.rows]

    def only(self, indexes: list[int]) -> Matrix:
        """Return some of the rows."""
        return replace(self, rows=tuple(self.rows[index] for index in indexes))

    def as_float16(self) -> Matrix:
        """Round each number to half precision."""
        form = f"<{self.dimension}e"
        return Matrix(tuple(struct.unpack(form, struct.pack(form, *row)) for row in self.rows), self.dimension)

    def signs(self) -> Matrix:
        """Return 1 for each number greater than 0, and -1 for the others."""
        return Matrix(tuple(tuple(1.0 if number > 0 else -1.0 for number in row) for row in self.rows), self.dimension)


def check_wish(wish: Mapping[str, Any]) -> None:
    """Look for an unknown member.

    Raises:
        ValueError: There is one.
    """
    if unknown := set(wish) - _WISHES:
        raise ValueError(f"`$matrix` has no {', '.join(sorted(unknown))}")


def read_matrix(answer: Any) -> Matrix:
    """Read the vectors of an answer, in whichever form they are, and check them against its count and dimension.

    Raises:
        ValueError: They do not fit, or are not finite.
    """
    if not isinstance(answer, dict):
        raise ValueError("there is no answer with vectors")
    count, dimension = answer.get("count"), answer.get("dimension")
    if type(count) is not int or type(dimension) is not int:
        raise ValueError("`count` and `dimension` are not integers")
    packed = answer.get("embeddings_base64", answer.get("vectors_base64"))
    if isinstance(packed, str):
        data = base64.b64decode(packed, validate=True)
        if base64.b64encode(data).decode("ascii") != packed:
            raise ValueError("the base64 is not in its standard, padded form")
        if len(data) == count * dimension * 2 and data:
            return _of_float16(data, count, dimension)
        if len(data) == count * (-(-dimension // 8)) and data:
            return _of_signs(data, count, dimension)
        if len(data) != count * dimension * 4:
            raise ValueError(f"{len(data)} bytes of vectors for {count} x {dimension}")
    else:
        data = _pack(answer.get("embeddings"), count, dimension)
    values = struct.unpack(f"<{count * dimension}f", data)
    if not all(map(math.isfinite, values)):
        raise ValueError("a vector is not finite")
    return Matrix(tuple(values[row * dimension : (row + 1) * dimension] for row in range(count)), dimension)


def _of_float16(data: bytes, count: int, dimension: int) -> Matrix:
    values = struct.unpack(f"<{count * dimension}e", data)
    if not all(map(math.isfinite, values)):
        raise ValueError("a vector is not finite")
    rows = tuple(values[row * dimension : (row + 1) * dimension] for row in range(count))
    return Matrix(rows, dimension, "float16")


def _of_signs(data: bytes, count: int, dimension: int) -> Matrix:
    row_bytes = len(data) // count
    rows = []
    for first in range(0, len(data), row_bytes):
        bits = f"{int.from_bytes(data[first : first + row_bytes], 'big'):0{8 * row_bytes}b}"
        if "1" in bits[dimension:]:
            raise ValueError("the bits behind the last component are not zero")
        rows.append(tuple(1.0 if bit == "1" else -1.0 for bit in bits[:dimension]))
    return Matrix(tuple(rows), dimension, "ubinary")


def _pack(rows: Any, count: int, dimension: int) -> bytes:
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f"`embeddings` is not a list of {count} vectors")
    if any(not isinstance(row, list) or len(row) != dimension for row in rows):
        raise ValueError(f"a vector does not have {dimension} numbers")
    try:
        return b"".join(struct.pack(f"<{dimension}f", *row) for row in rows)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"a vector is not made of float32: {error}") from None


def mismatch(wish: Mapping[str, Any], matrix: Matrix, memory: dict[str, Any]) -> str | None:
    """Return what a matrix lacks of what is wished beside its shape and norms; None where it has all of it."""
    if "rows" in wish:
        matrix = matrix.only(wish["rows"])
    if "of_fake" in wish:
        texts = wish["of_fake"]
        expected = Matrix(tuple(tuple(fake_vector(text, matrix.dimension)) for text in texts), matrix.dimension)
        if matrix.shape != expected.shape or matrix.bits() != expected.bits():
            return "the vectors are not the fake worker's, bit by bit"
    for name, precision in (("float16_of", "float16"), ("signs_of", "ubinary")):
        if name in wish:
            other = memory.get(wish[name])
            if not isinstance(other, Matrix):
                return f"no matrix was saved as {wish[name]!r}"
            if matrix.precision != precision:
                return f"the vectors are {matrix.precision}, not {precision}"
            if why := _compare("equals", matrix, other.as_float16() if precision == "float16" else other.signs(), 0):
                return why
    for name in ("equals", "close_to", "differs_from"):
        if name in wish:
            other = memory.get(wish[name])
            if not isinstance(other, Matrix):
                return f"no matrix was saved as {wish[name]!r}"
            if why := _compare(name, matrix, other, wish.get("within", 1e-6)):
                return why
    if "save" in wish:
        memory[wish["save"]] = matrix
    return None


def _compare(how: str, matrix: Matrix, other: Matrix, within: float) -> str | None:
    if matrix.shape != other.shape:
        return f"the matrix is {matrix.shape}, the other one {other.shape}"
    if how == "equals":
        return None if matrix.bits() == other.bits() else "the vectors differ in their bits"
    distances = [_cosine_distance(a, b) for a, b in zip(matrix.rows, other.rows, strict=True)]
    if how == "close_to":
        return None if max(distances, default=0.0) <= within else f"cosine distance {max(distances):.3g} > {within}"
    return None if min(distances, default=math.inf) > within else f"cosine distance {min(distances):.3g}: the same"


def _cosine_distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    # From the difference of the unit vectors: 1 - cos would lose what is asked for in rounding.
    norm_a, norm_b = math.hypot(*a) or 1.0, math.hypot(*b) or 1.0
    return 0.5 * math.fsum((x / norm_a - y / norm_b) ** 2 for x, y in zip(a, b, strict=True))
