"""Vectors as `fixed_size_list<float>` columns, in parquet and arrow files, with pyarrow.

Parts of a single output are arrow files without compression, which cost nothing to write and to read again; parts of a
folder are what was asked for. Numbers compress best when their bytes are stored apart (byte-stream split).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bridge_client.bulk.parts import VECTOR_COLUMN, Output, Rows, Vectors, written_whole
from bridge_client.bulk.rows import CorpusError

_LEAF = f"{VECTOR_COLUMN}.list.element"  # the numbers' own column in parquet


class ArrowParts:
    """Tables of the kept columns and the vectors."""

    def __init__(self, kept: pa.Schema, metadata: Mapping[str, str], output: Output, *, is_folder: bool) -> None:
        """Note what is to be written.

        Raises:
            CorpusError: Parquet has no such type as one of the kept columns.
        """
        if output is Output.PARQUET:
            _check_parquet(kept)
        self._kept = kept
        self._metadata = {f"embed_bridge.{name}": value for name, value in metadata.items()}
        self._output = output
        self._part = output if is_folder else Output.ARROW
        self.suffix = f".{self._part}"

    def write(self, rows: Rows, file: Path) -> None:
        """Write a part."""
        table = self._table(rows)
        with written_whole(file) as out, self._writer(out, table.schema, self._part) as writer:
            writer.write_table(table)

    def join(self, parts: Sequence[Path], target: Path, dimension: int) -> None:
        """Write the parts as row groups, or batches, of one file."""
        empty = Rows(
            vectors=np.empty((0, dimension), np.float32),
            has_vector=np.empty(0, np.bool_),
            columns={name: [[]] for name in self._kept.names},
        )
        with written_whole(target) as out:
            schema = self._table(empty).schema if not parts else _schema_of(parts[0])
            with self._writer(out, schema, self._output) as writer:
                for part in parts:
                    with pa.memory_map(str(part)) as mapped, pa.ipc.open_file(mapped) as reader:
                        writer.write_table(reader.read_all())

    def _table(self, rows: Rows) -> pa.Table:
        columns = [_column(rows.columns[field.name], field.type) for field in self._kept]
        columns.append(_vector_column(rows.vectors, rows.has_vector))
        fields = [*self._kept, pa.field(VECTOR_COLUMN, columns[-1].type)]
        return pa.table(columns, schema=pa.schema(fields, metadata=self._metadata))

    @contextmanager
    def _writer(self, out: IO[bytes], schema: pa.Schema, output: Output) -> Iterator[Any]:
        if output is Output.ARROW:
            with pa.ipc.new_file(out, schema) as writer:
                yield writer
            return
        others = [name for name in schema.names if name != VECTOR_COLUMN]
        # The bytes of 16-bit floats stay together: DuckDB 2.0 does not read them apart.
        apart = [_LEAF] if schema.field(VECTOR_COLUMN).type.value_type == pa.float32() else False
        with pq.ParquetWriter(
            out, schema, compression="zstd", use_dictionary=others, use_byte_stream_split=apart
        ) as writer:
            yield writer


def _check_parquet(kept: pa.Schema) -> None:
    for field in kept:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
        except pa.ArrowException as error:
            message = f"the column {field.name!r} is of the type {field.type}, which parquet does not have"
            raise CorpusError(f"{message}: leave it out of --keep, or write arrow") from error


def _schema_of(part: Path) -> pa.Schema:
    with pa.memory_map(str(part)) as mapped, pa.ipc.open_file(mapped) as reader:
        return reader.schema


def _column(pieces: Sequence[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """Make one column of pieces: arrays as they are, values of text files as strings, others as JSON."""
    convert = _as_text if pa.types.is_string(kind) else None
    arrays = [
        piece if isinstance(piece, pa.Array) else pa.array(map(convert, piece) if convert else piece, kind)
        for piece in pieces
    ]
    return pa.chunked_array(arrays, kind)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    import orjson

    return orjson.dumps(value).decode()


def _vector_column(vectors: Vectors, has_vector: Any) -> pa.Array:
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = None if has_vector.all() else pa.array(~has_vector)
    return pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1], mask=mask)
