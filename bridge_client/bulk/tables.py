"""Tables with typed columns, read and described with pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bridge_client.bulk.rows import BLOCK_SIZE, CHUNK_COLUMNS, Block, CorpusError, Format, Source

_BLOCK_ROWS = 1024
_READ_AHEAD = 2**20  # bytes of a column; by itself pyarrow reads a row group whole, which may be all of a file
_ARROW_FILE = b"ARROW1"  # how a file begins that has a footer; a stream has none


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

    def may_have(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.names()

    def blocks(self, text: str, kept: Sequence[str]) -> Iterator[Block]:
        """Yield all rows; kept columns are arrays, and what `plain` leaves as it is is not copied."""
        done = 0
        try:
            for batch in _batches(self._source, list(dict.fromkeys([text, *kept]))):
                done += batch.num_rows
                columns: dict[str, pa.Array] = {}
                problems: dict[int, str] = {}
                for name in dict.fromkeys([text, *kept]):
                    columns[name], faulty = _readable(_decoded(batch.column(name)))
                    problems |= dict.fromkeys(faulty, f"the value of {name!r} is not UTF-8")
                texts = columns[text].to_pylist()
                for row in problems:
                    texts[row] = None
                pieces = {name: [columns[name]] for name in kept}
                each = sum(columns[name].nbytes for name in kept if name != text) // max(1, len(texts))
                sizes = [len(value or "") + each for value in texts]
                yield Block(texts=texts, problems=problems, columns=pieces, sizes=sizes, done=done)
        except pa.ArrowNotImplementedError as error:
            raise CorpusError(f"{self._source.name} has what pyarrow cannot read: {error}") from error
        except pa.ArrowException as error:
            raise CorpusError(f"{self._source.name} is damaged: {error}") from error


def _describe(source: Source) -> tuple[Any, int]:
    """Return the schema and the number of rows."""
    try:
        if source.format is Format.PARQUET:
            file = pq.ParquetFile(source.path)
            with file:
                return file.schema_arrow, file.metadata.num_rows
        with _arrow_batches(source.path) as (schema, batches):
            return schema, sum(batch.num_rows for batch in batches)
    except UnicodeEncodeError:
        raise CorpusError(f"{source.name!a} has a name that is not UTF-8, and pyarrow opens no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{source.name} is not a file of the format {source.format}: {error}") from error


def _batches(source: Source, columns: list[str]) -> Iterator[Any]:
    if source.format is Format.PARQUET:
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_READ_AHEAD) as file:
            # A batch over two row groups would have two dictionaries, which pyarrow cannot join inside of lists.
            for group in range(file.num_row_groups):
                facts = file.metadata.row_group(group)
                rows = _block_rows(_bytes_of(facts, columns), facts.num_rows)
                yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)
        return
    with _arrow_batches(source.path) as (_, batches):
        for batch in batches:
            chosen = batch.select(columns)
            rows = _block_rows(chosen.nbytes, chosen.num_rows)
            for start in range(0, chosen.num_rows, rows):
                yield chosen.slice(start, rows)


def _block_rows(size: int, rows: int) -> int:
    """Return how many rows make a block where so many rows have so many bytes."""
    return max(1, min(_BLOCK_ROWS, rows * BLOCK_SIZE // max(1, size)))


def _bytes_of(group: Any, columns: Sequence[str]) -> int:
    """Return how many bytes a row group has in some columns, nested ones too, whose leaves have paths."""
    beginnings = tuple(f"{name}." for name in columns)
    leaves = map(group.column, range(group.num_columns))
    return sum(leaf.total_uncompressed_size for leaf in leaves if f"{leaf.path_in_schema}.".startswith(beginnings))


@contextmanager
def _arrow_batches(path: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a file of arrow, or a stream in a file, as datasets writes them; yield its schema and its batches."""
    with pa.memory_map(path) as mapped:
        if mapped.read(len(_ARROW_FILE)) == _ARROW_FILE:
            with pa.ipc.open_file(mapped) as reader:
                yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
            return
        mapped.seek(0)
        with pa.ipc.open_stream(mapped) as stream:
            yield stream.schema, iter(stream)


def _decoded(array: pa.Array) -> pa.Array:
    """Return an array of the type that `plain` says."""
    if pa.types.is_dictionary(array.type):
        return _decoded(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return _decoded(pc.run_end_decode(array))
    kind = plain(array.type)
    return array if array.type == kind else array.cast(kind)


def _readable(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return an array with nulls for what is not UTF-8, which pyarrow reads without a look, and the rows of those."""
    if _is_utf8(array):
        return array, []
    faulty = [row for row in range(len(array)) if not _is_utf8(array.take(pa.array([row])))]
    return array.take(pa.array([None if row in faulty else row for row in range(len(array))], pa.int64())), faulty


def _is_utf8(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):  # pyarrow has no type of its own for it
            raise
        return False
    return True


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column gets here and in the output: without dictionaries, runs and views, nested too.

    Each shard, and each row group, has a dictionary of its own, and a file of arrow may have one. pyarrow does not take
    rows from views of strings.
    """

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(plain(field.type))

    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pa.string() if types.is_string_view(kind) else pa.binary()
    if types.is_struct(kind):
        return pa.struct([inner(kind.field(number)) for number in range(kind.num_fields)])
    if types.is_map(kind):
        return pa.map_(inner(kind.key_field), inner(kind.item_field), keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(inner(kind.value_field))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(inner(kind.value_field))
    return kind


def strings(names: Sequence[str]) -> pa.Schema:
    """Return the schema of columns that come from text."""
    return pa.schema([pa.field(name, pa.string()) for name in names])


def chunked(kept: pa.Schema, text: str) -> pa.Schema:
    """Return the schema of kept columns where rows are chunks of the column `text`."""
    fields = [field if field.name != text else pa.field(text, pa.string()) for field in kept]
    return pa.schema([*(pa.field(name, pa.int64()) for name in CHUNK_COLUMNS), *fields])


def common_schema(sources: Sequence[Source], text: str, kept: Sequence[str]) -> pa.Schema:
    """Return the schema of the kept columns, which all tables must agree on.

    A column is of plain values, and may have nulls: a value that cannot be read is one.

    Raises:
        CorpusError: They do not, or the texts are no strings.
    """
    common: pa.Schema | None = None
    for source in sources:
        schema = _describe(source)[0]
        kind = schema.field(text).type
        if not _is_text(kind):
            raise CorpusError(f"the column {text!r} of {source.name} is of the type {kind}, not of strings")
        found = pa.schema([pa.field(name, plain(schema.field(name).type)) for name in kept])
        if common is not None and not found.equals(common):
            raise CorpusError(f"the columns of {source.name} have other types than those of {sources[0].name}")
        common = found
    assert common is not None
    return common


def _is_text(kind: pa.DataType) -> bool:
    kind = plain(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
