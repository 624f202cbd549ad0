"""From a corpus to parts on disk: texts go to the worker ahead of the part that is written.

A part has a fixed number of rows, and each text of it is embedded once. While one part is written, the texts of the
next are at the worker already. Memory holds these few parts, whatever the corpus.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge_client.bulk.corpus import Corpus
from bridge_client.bulk.job import Counts, Job, PartRecord, RowError
from bridge_client.bulk.parts import Form, Rows
from bridge_client.bulk.rows import Block, CorpusError
from bridge_client.stream import Failure, Stream, Vector

INVALID_ROW = "invalid_row"  # the row itself has no text that could be embedded


@dataclass(slots=True, kw_only=True)
class _Part:
    """Rows whose texts are on their way.

    Attributes:
        first_row: The number of its first row in the corpus.
        places: Each text's place among the unique ones.
        results: What came back so far, in the order of the unique texts.
    """

    number: int
    first_row: int
    block: Block
    places: dict[str, int]
    results: list[Vector | Failure] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return len(self.results) == len(self.places)


class Pipeline:
    """One job's way from texts to finished parts.

    Attributes:
        counts: Of all parts that are finished, those of earlier runs too.
        errors: The rows without a vector, in order, but for null texts.
        done: How much of the corpus is read and finished, in its unit.
    """

    def __init__(
        self,
        job: Job,
        corpus: Corpus,
        form: Form,
        stream: Stream,
        *,
        part_rows: int,
        dimension: int,
        dtype: np.dtype[Any],
        is_strict: bool,
        on_part: Callable[[Pipeline], None],
    ) -> None:
        """Set up without reading.

        Args:
            job: Where parts are kept.
            corpus: The rows.
            form: How a part is written.
            stream: Embeds texts in order.
            part_rows: How many rows a part has.
            dimension: Of the vectors.
            dtype: What the numbers are stored as.
            is_strict: Stop at the first row that has no vector, though it has a text.
            on_part: Called after each part.
        """
        self._job = job
        self._corpus = corpus
        self._form = form
        self._stream = stream
        self._part_rows = part_rows
        self._dimension = dimension
        self._dtype = dtype
        self._is_strict = is_strict
        self._on_part = on_part
        self._waiting: deque[_Part] = deque()
        self.counts = Counts()
        self.errors: list[RowError] = []
        self.done = 0
        self.parts = 0

    def run(self) -> None:
        """Finish all parts, going on behind those that are finished.

        Raises:
            CorpusError: The corpus or the disk, or, if strict, a row.
            BridgeError: There is no worker that could go on.
        """
        records = self._job.finished()
        for record in records:
            self.counts.add(record.counts)
            self.errors += record.errors
        self.parts = len(records)
        for result in self._stream(self._texts(records)):
            self._finish_complete()
            self._waiting[0].results.append(result)
        self._finish_complete()

    def _finish_complete(self) -> None:
        while self._waiting and self._waiting[0].is_complete:  # a part without texts is complete at once
            self._finish(self._waiting.popleft())

    def _texts(self, records: list[PartRecord]) -> Iterator[str]:
        """Yield each text of each part once; the parts wait for their vectors."""
        number = len(records)
        for block in self._unfinished(records):
            texts = dict.fromkeys(text for text in block.texts if text is not None)
            places = {text: place for place, text in enumerate(texts)}
            self._waiting.append(_Part(number=number, first_row=number * self._part_rows, block=block, places=places))
            number += 1
            yield from places

    def _unfinished(self, records: list[PartRecord]) -> Iterator[Block]:
        """Yield the blocks behind the finished parts. What has neither size nor time is compared by its texts."""
        if not self._corpus.has_stdin:
            yield from self._corpus.blocks(self._part_rows, skip=len(records) * self._part_rows)
            return
        blocks = self._corpus.blocks(self._part_rows)
        for record in records:
            if _digest(next(blocks, Block(columns={}))) != record.digest:
                raise CorpusError("standard input has other texts than when the job was begun")
        yield from blocks

    def _finish(self, part: _Part) -> None:
        rows, record = self._assemble(part)
        if self._is_strict and record.errors:
            first = record.errors[0]
            raise CorpusError(f"row {first.row} has no vector: {first.code}: {first.message}")
        self._job.write_record(part.number, record)
        self._form.write(rows, self._job.part(part.number))
        self.counts.add(record.counts)
        self.errors += record.errors
        self.done = part.block.done
        self.parts += 1
        self._on_part(self)

    def _assemble(self, part: _Part) -> tuple[Rows, PartRecord]:
        texts, problems = part.block.texts, part.block.problems
        vectors = np.full((len(texts), self._dimension), np.nan, self._dtype)
        has_vector = np.zeros(len(texts), np.bool_)
        counts = Counts(rows=len(texts), unique=len(part.places))
        errors = []
        for row, text in enumerate(texts):
            if text is None:
                if row in problems:
                    errors.append(RowError(row=part.first_row + row, code=INVALID_ROW, message=problems[row]))
                else:
                    counts.null += 1
                continue
            match part.results[part.places[text]]:
                case Failure(code=code, message=message):
                    errors.append(RowError(row=part.first_row + row, code=code, message=message))
                case Vector(values=values, tokens=tokens, is_truncated=is_truncated):
                    vectors[row] = values
                    has_vector[row] = True
                    counts.tokens += tokens
                    counts.truncated += is_truncated
        counts.failed = len(errors)
        rows = Rows(vectors=vectors, has_vector=has_vector, columns=part.block.columns)
        return rows, PartRecord(counts=counts, digest=_digest(part.block), errors=errors)


def _digest(block: Block) -> str:
    """Hash the texts of a block, nulls too."""
    digest = hashlib.blake2b(digest_size=16)
    for text in block.texts:
        data = b"" if text is None else text.encode("utf-8", "surrogatepass")
        digest.update(b"-" if text is None else b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
