"""`EmbedBatch`: one picklable callable for engines that map a function over batches of rows.

It takes tables and batches of pyarrow, frames of pandas and polars, and dicts of arrays, and returns the same kind with
one more column. Ray Data, Spark, Dask, datasets, polars and DuckDB are shown in docs/engines.md. N and D are rows and
dimension.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from bridge_client.calls import EmbedKeywords
from bridge_client.chunks import plain_text
from bridge_client.client import EmbedClient, options_of
from bridge_client.embeddings import Matrix
from bridge_client.errors import PoisonedInputError, RequestError
from bridge_client.options import ClientOptions, OptionKeywords
from bridge_client.shared import shared_client
from bridge_client.stream import Fault, moved


class EmbedBatch:
    """Add the vectors of a column of texts to batches of rows, over one worker for each process.

    A null text gives a null vector and does not touch its neighbours.
    """

    def __init__(
        self,
        model: str | ClientOptions | None = None,
        *,
        column: str = "text",
        output: str = "embedding",
        input_type: Literal["query", "document"] | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        fixed_size: bool = True,
        **options: Unpack[OptionKeywords],
    ) -> None:
        """Note what is to be done; nothing is started.

        Args:
            model: As `EmbedClient` takes it.
            column: Of the texts.
            output: The name of the new column.
            input_type: The model's prompt for queries, or for documents.
            prompt_name: A prompt of the model.
            dimensions: Keep so many (Matryoshka).
            on_error: What becomes of a text that has no vector: an error, or null.
            fixed_size: Columns of Arrow are `fixed_size_list<float>[D]`; without, `list<float>`, which Spark wants.
            options: Of the client.
        """
        if on_error not in ("raise", "null"):
            raise ValueError(f"`on_error` must be 'raise' or 'null', not {on_error!r}")
        self._client_options = options_of(model, options)
        self._column = column
        self._output = output
        self._parameters: EmbedKeywords = {
            "input_type": input_type,
            "prompt_name": prompt_name,
            "dimensions": dimensions,
        }
        self._on_error = on_error
        self._fixed_size = fixed_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._column!r} -> {self._output!r})"

    def __call__(self, batch: Any) -> Any:
        """Return the batch with its vectors; a column of the output's name is replaced.

        Args:
            batch: A `pyarrow.Table` or `RecordBatch`, a frame of pandas or polars, or a mapping of columns.

        Raises:
            TypeError: The batch is of another kind, or its texts are no strings.
            BridgeError: A text has no vector and `on_error` is `raise`, or there is no worker.
        """
        kind = type(batch).__module__.partition(".")[0]
        match kind:
            case "pyarrow":
                return self._arrow(batch)
            case "pandas":
                return self._pandas(batch)
            case "polars":
                return self._polars(batch)
            case _ if isinstance(batch, Mapping):
                return self._mapping(batch)
            case _:
                raise TypeError(f"a batch of the type {type(batch).__name__} is not known")

    def over(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Map batches one by one: what Spark's `mapInArrow` takes."""
        return map(self, batches)

    def client(self) -> EmbedClient:
        """Return the client of this process."""
        return shared_client(self._client_options)

    def vectors(self, texts: Sequence[Any]) -> tuple[Matrix, NDArray[np.bool_]]:
        """Embed texts of which some are null.

        Returns:
            (N, D) float32 in which rows without a vector are NaN, and (N,) whether a row has one.

        Raises:
            TypeError: A text is no string and `on_error` is `raise`; it names the row, as the two below do.
            RequestError: A text is refused, likewise.
            PoisonedInputError: A text kills the worker, likewise.
            BridgeError: There is no worker.
        """
        present = np.array([not _is_null(text) for text in texts], np.bool_)
        rows = np.flatnonzero(present).tolist()
        wanted = [plain_text(text) for text, there in zip(texts, present, strict=True) if there]
        if self._on_error == "raise":
            for row, text in zip(rows, wanted, strict=True):
                if not isinstance(text, str):
                    raise TypeError(f"row {row} must be a string, not {type(text).__name__}")
        client = self.client()

        try:
            parts = list(client.embed_iter_detailed(wanted, on_error=self._on_error, **self._parameters))
        except (RequestError, PoisonedInputError) as error:
            raise _of_rows(error, rows) from error
        # Without a text the worker says it of another one, and refuses what it would refuse.
        dimension = (parts[0].vectors if parts else client.embed("", **self._parameters)).shape[1]
        matrix = np.full((len(texts), dimension), np.nan, np.float32)
        if parts:
            matrix[present] = np.concatenate([part.vectors for part in parts])
        return matrix, ~np.isnan(matrix[:, 0])

    # Kinds of batches

    def _arrow(self, batch: Any) -> Any:
        import pyarrow as pa

        array = self._arrow_column(_strings(batch.column(self._column)))
        field, place = pa.field(self._output, array.type), batch.schema.get_field_index(self._output)
        return batch.append_column(field, array) if place < 0 else batch.set_column(place, field, array)

    def _arrow_column(self, texts: Sequence[Any]) -> Any:
        """Make an Arrow array over the matrix, without a copy of it."""
        import pyarrow as pa

        matrix, present = self.vectors(texts)
        mask = None if present.all() else pa.array(~present)
        array = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1], mask=mask)
        return array if self._fixed_size else array.cast(pa.list_(pa.float32()))

    def _pandas(self, batch: Any) -> Any:
        matrix, present = self.vectors(batch[self._column].tolist())
        return batch.assign(**{self._output: _objects(matrix, present)})

    def _polars(self, batch: Any) -> Any:
        import polars

        column = polars.from_arrow(self._arrow_column(batch[self._column].to_list()))
        return batch.with_columns(column.alias(self._output))

    def _mapping(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        column = batch[self._column]
        matrix, present = self.vectors(column if isinstance(column, list) else list(column))
        vectors: Any
        if isinstance(column, list):
            vectors = [row if there else None for row, there in zip(matrix.tolist(), present, strict=True)]
        else:
            vectors = matrix if present.all() else _objects(matrix, present)
        return {**batch, self._output: vectors}


def _strings(column: Any) -> list[Any]:
    """Return the values of an Arrow column, with bytes for a string that is not UTF-8: it is refused with its row."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_string(scalar) for scalar in column]


def _string(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return getattr(scalar, "value", scalar).as_buffer().to_pybytes()  # of a dictionary, or a string


def _is_null(text: Any) -> bool:
    # NaN and NA are what pandas has for None.
    return text is None or type(text).__name__ == "NAType" or (isinstance(text, float) and text != text)


def _of_rows(fault: Fault, rows: Sequence[int]) -> Fault:
    """Return a fault of a text that names its row, for texts that are null were not sent."""
    error = moved(fault, rows)
    error.args = (re.sub(r"\binput (?=\d)", "row ", str(error), count=1),)
    return error


def _objects(matrix: Matrix, present: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Make a column of rows, None where there is no vector."""
    column = np.empty(len(matrix), object)
    for row in np.flatnonzero(present):
        column[row] = matrix[row]
    return column
