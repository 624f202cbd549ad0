"""Forms of vectors on disk: how a part of the rows is written, and how parts become one file.

A part is written aside, synced and renamed, so that it is there whole or not at all. `ArrowParts` serves parquet and
arrow with pyarrow; `NpyParts` and `JsonlParts` need numpy and orjson alone. N and D are rows and dimension.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from bridge_client.bulk.rows import CorpusError
from embed_worker import atomic

VECTOR_COLUMN = "embedding"
Vectors: TypeAlias = NDArray[np.floating[Any]]  # float32 or float16


class Output(StrEnum):
    """What vectors can be written as."""

    PARQUET = "parquet"
    ARROW = "arrow"
    NPY = "npy"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A part's rows.

    Attributes:
        vectors: (N, D); rows without a vector are NaN.
        has_vector: (N,) whether a row has one.
        columns: The pieces of the kept columns by name.
    """

    vectors: Vectors
    has_vector: NDArray[np.bool_]
    columns: Mapping[str, Sequence[Any]]


class Form(Protocol):
    """How parts of one kind of output are written and joined."""

    suffix: str

    def write(self, rows: Rows, file: Path) -> None:
        """Write a part."""

    def join(self, parts: Sequence[Path], target: Path, dimension: int) -> None:
        """Write one file of all parts, in order; memory holds one part."""


class NpyParts:
    """One (N, D) array; rows without a vector are NaN, and there are no other columns."""

    suffix = ".npy"

    def write(self, rows: Rows, file: Path) -> None:
        """Write a part as an array of its own."""
        with written_whole(file) as out:
            _write_npy(out, [rows.vectors], rows.vectors.dtype, rows.vectors.shape)

    def join(self, parts: Sequence[Path], target: Path, dimension: int) -> None:
        """Copy the parts' numbers behind one header."""
        arrays = [np.load(part, mmap_mode="r", allow_pickle=False) for part in parts]
        dtype = arrays[0].dtype if arrays else np.dtype(np.float32)
        with written_whole(target) as out:
            _write_npy(out, arrays, dtype, (sum(map(len, arrays)), dimension))


def _write_npy(out: IO[bytes], arrays: Sequence[Vectors], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    # numpy's own `save` does not say that a disk is full, but how much of the array it took.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    for array in arrays:
        out.write(np.ascontiguousarray(array).data)


class JsonlParts:
    """One object a line: the kept columns and `embedding`, null where a row has no vector."""

    suffix = ".jsonl"

    def write(self, rows: Rows, file: Path) -> None:
        """Write a part as lines; numbers are the shortest that read back as the same float32."""
        vectors = rows.vectors.astype(np.float32, copy=False)
        columns = {name: _values(name, pieces) for name, pieces in rows.columns.items()}
        with written_whole(file) as out:
            for number, (vector, has_vector) in enumerate(zip(vectors, rows.has_vector, strict=True)):
                row = {name: values[number] for name, values in columns.items()}
                row[VECTOR_COLUMN] = vector if has_vector else None
                out.write(orjson.dumps(row, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def join(self, parts: Sequence[Path], target: Path, dimension: int) -> None:
        """Put the lines one behind the other."""
        with written_whole(target) as out:
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, out, 2**20)


def _values(name: str, pieces: Sequence[Any]) -> list[Any]:
    """Return a column's values as orjson takes them; the pieces are lists, or arrays of pyarrow.

    Raises:
        CorpusError: A value has no form in JSON.
    """
    values: list[Any] = []
    for piece in pieces:
        if isinstance(piece, list):
            values += piece
            continue
        from bridge_client.bulk.json_values import json_values  # pyarrow is there where a table is read

        try:
            values += json_values(piece)
        except ValueError as error:
            raise CorpusError(f"the column {name!r} cannot be written as JSON: {error}") from error
    return values


@contextmanager
def written_whole(file: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears whole and synced, or not at all.

    Raises:
        CorpusError: There is no room, or it cannot be written.
    """
    with told(f"{file} cannot be written"):
        with atomic.written_aside(file) as aside, aside.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        sync_folder(file.parent)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Make a sentence of what the system refuses: `what`, and why.

    Raises:
        CorpusError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{what}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Let a rename in a folder reach the disk; Windows has no such call and does not need it."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
