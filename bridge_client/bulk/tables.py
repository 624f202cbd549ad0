"""Tables with typed columns, read and described with pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bridge_client.bulk.rows import CHUNK_COLUMNS, Block, CorpusError, Format, Source

_BLOCK_ROWS = 1024


class TableReader:
    """One table; `total` in rows."""

    unit = "rows"

    def __init__(self, source: Source) -> None:
        """Read what the file says of itself.

        Raises:
            CorpusError: It is not what its format says.
        """
        self._source = source
        self.schema, self.total = _describe(source)

    def names(self) -> list[str]:
        """Return the columns."""
        return list(self.schema.names)

    def blocks(self, text: str, kept: Sequence[str]) -> Iterator[Block]:
        """Yield all rows; kept columns are arrays, and nothing of them is copied."""
        done = 0
        try:
            for batch in _batches(self._source, list(dict.fromkeys([text, *kept]))):
                done += batch.num_rows
                columns = {name: [batch.column(name)] for name in kept}
                yield Block(texts=batch.column(text).to_pylist(), columns=columns, done=done)
        except pa.ArrowException as error:
            raise CorpusError(f"{self._source.name} is damaged: {error}") from error


def _describe(source: Source) -> tuple[Any, int]:
    """Return the schema and the number of rows."""
    try:
        if source.format is Format.PARQUET:
            file = pq.ParquetFile(source.path)
            with file:
                return file.schema_arrow, file.metadata.num_rows
        with pa.memory_map(source.path) as mapped, pa.ipc.open_file(mapped) as reader:
            return reader.schema, sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{source.name} is not a file of the format {source.format}: {error}") from error


def _batches(source: Source, columns: list[str]) -> Iterator[Any]:
    if source.format is Format.PARQUET:
        with pq.ParquetFile(source.path) as file:
            yield from file.iter_batches(batch_size=_BLOCK_ROWS, columns=columns)
        return
    with pa.memory_map(source.path) as mapped, pa.ipc.open_file(mapped) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number).select(columns)
            for start in range(0, batch.num_rows, _BLOCK_ROWS):
                yield batch.slice(start, _BLOCK_ROWS)


def strings(names: Sequence[str]) -> pa.Schema:
    """Return the schema of columns that come from text."""
    return pa.schema([pa.field(name, pa.string()) for name in names])


def chunked(kept: pa.Schema, text: str) -> pa.Schema:
    """Return the schema of kept columns where rows are chunks of the column `text`."""
    fields = [field if field.name != text else pa.field(text, pa.string()) for field in kept]
    return pa.schema([*(pa.field(name, pa.int64()) for name in CHUNK_COLUMNS), *fields])


def common_schema(sources: Sequence[Source], text: str, kept: Sequence[str]) -> pa.Schema:
    """Return the schema of the kept columns, which all tables must agree on.

    Raises:
        CorpusError: They do not, or the texts are no strings.
    """
    common: pa.Schema | None = None
    for source in sources:
        schema = _describe(source)[0]
        kind = schema.field(text).type
        if not _is_text(kind):
            raise CorpusError(f"the column {text!r} of {source.name} is of the type {kind}, not of strings")
        found = pa.schema([schema.field(name).remove_metadata() for name in kept])
        if common is not None and not found.equals(common):
            raise CorpusError(f"the columns of {source.name} have other types than those of {sources[0].name}")
        common = found
    assert common is not None
    return common


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
