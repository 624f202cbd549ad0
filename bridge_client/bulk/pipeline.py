"""From a corpus to parts on disk: texts go to the worker ahead of the part that is written.

A part has a fixed number of rows, or less where they are large, and each text of it is embedded once. While one part is
written, the texts of the next are at the worker already. Memory holds these few parts, whatever the corpus.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bridge_client.bulk.chunks import Chunker
from bridge_client.bulk.corpus import Corpus
from bridge_client.bulk.job import Counts, Job, PartRecord, RowError
from bridge_client.bulk.parts import Form, Rows
from bridge_client.bulk.rows import BLOCK_SIZE, Block, CorpusError
from bridge_client.embeddings import Embeddings
from bridge_client.errors import RequestError

POISONED = "poisoned_input"
INVALID_ROW = "invalid_row"  # the row itself has no text that could be embedded
_WAITING_SIZE = 4 * BLOCK_SIZE  # of the parts whose texts are at the worker


Embed: TypeAlias = Callable[[Iterable[str]], Iterator[Embeddings]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoFar:
    """How far a job is: rows with their vectors, also of earlier runs, and what that is in the unit of the corpus."""

    rows: int
    done: int


class _Part:
    """Rows whose texts are on their way. U is the number of its unique texts, D the dimension.

    Attributes:
        first_row: The number of its first row in the corpus.
        sources, size, digest: How many rows of the corpus it is made of, what they take, and a hash of their texts.
        places: Each text's place among the unique ones.
        vectors: (U, D) float32, filled from the first text on; NaN where a text has none.
        tokens, is_truncated: (U,).
        faults: Why a text has no vector, by its place.
    """

    def __init__(self, number: int, first_row: int, block: Block, chunker: Chunker | None, dimension: int) -> None:
        self.sources, self.size, self.digest = len(block.texts), sum(block.sizes), _digest(block)
        if chunker is not None:
            block = chunker.cut(block, first_row)
        texts = dict.fromkeys(text for text in block.texts if text is not None)
        self.number = number
        self.first_row = first_row
        self.block = block
        self.places = {text: place for place, text in enumerate(texts)}
        self.vectors = np.empty((len(texts), dimension), np.float32)
        self.tokens = np.zeros(len(texts), np.int64)
        self.is_truncated = np.zeros(len(texts), np.bool_)
        self.faults: dict[int, Exception] = {}
        self._filled = 0

    @property
    def is_complete(self) -> bool:
        return self._filled == len(self.places)

    @property
    def share(self) -> float:
        """How much of it has its vectors, from 0 to 1."""
        return self._filled / len(self.places) if self.places else 1.0

    def row(self, place: int) -> int:
        """Return the number in the corpus of a row of the block."""
        return self.first_row + place if self.block.sources is None else self.block.sources[place]

    def take(self, result: Embeddings, first: int) -> int:
        """Take the texts of a result from `first` on, as many as belong here; return how many."""
        count = min(len(self.places) - self._filled, len(result.vectors) - first)
        here, there = slice(self._filled, self._filled + count), slice(first, first + count)
        self.vectors[here] = result.vectors[there]
        self.tokens[here] = result.tokens[there]
        for row in result.truncated:
            if there.start <= row < there.stop:
                self.is_truncated[self._filled + row - first] = True
        for row, fault in result.failures.items():
            if there.start <= row < there.stop:
                self.faults[self._filled + row - first] = fault
        self._filled += count
        return count


class Pipeline:
    """One job's way from texts to finished parts.

    Attributes:
        counts: Of all parts that are finished, those of earlier runs too.
        errors: The rows without a vector, in order, but for null texts.
        parts: How many parts are finished.
    """

    def __init__(
        self,
        job: Job,
        corpus: Corpus,
        form: Form,
        embed: Embed,
        chunker: Chunker | None,
        *,
        part_rows: int,
        dimension: int,
        dtype: np.dtype[Any],
        is_strict: bool,
        on_progress: Callable[[SoFar], None],
    ) -> None:
        """Set up without reading.

        Args:
            job: Where parts are kept.
            corpus: The rows.
            form: How a part is written.
            embed: Embeds texts, in blocks and in order.
            chunker: Makes rows of chunks, if there is one.
            part_rows: How many rows of the corpus a part has.
            dimension: Of the vectors.
            dtype: What the numbers are stored as.
            is_strict: Stop at the first row that has no vector, though it has a text.
            on_progress: Told how far the job is, at its start and after each block of vectors.
        """
        self._job = job
        self._corpus = corpus
        self._form = form
        self._embed = embed
        self._chunker = chunker
        self._part_rows = part_rows
        self._dimension = dimension
        self._dtype = dtype
        self._is_strict = is_strict
        self._on_progress = on_progress
        self._waiting: deque[_Part] = deque()
        self.counts = Counts()
        self.errors: list[RowError] = []
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
        parts = self._unfinished(records)
        for part in parts:
            for result in self._embed(self._texts(itertools.chain([part], parts))):
                self._tell()  # also before the first vectors are taken, for the speed is counted from there
                first = 0
                while first < len(result.vectors):
                    self._finish_complete()
                    first += self._waiting[0].take(result, first)
            self._finish_complete()

    def _tell(self) -> None:
        part = self._waiting[0]
        block, share = part.block, part.share
        rows = self.counts.rows + round(share * len(block.texts))
        self._on_progress(SoFar(rows=rows, done=block.begun + round(share * (block.done - block.begun))))

    def _finish_complete(self) -> None:
        while self._waiting and self._waiting[0].is_complete:  # a part without texts is complete at once
            self._finish(self._waiting.popleft())

    def _texts(self, parts: Iterable[_Part]) -> Iterator[str]:
        """Yield each text of each part once; the parts wait for their vectors.

        The worker is asked for the texts of thousands of rows ahead: where these are too large for that, end before.
        """
        for part in parts:
            self._waiting.append(part)
            yield from part.places
            if sum(each.size for each in self._waiting) >= _WAITING_SIZE:
                return

    def _unfinished(self, records: list[PartRecord]) -> Iterator[_Part]:
        """Yield the parts behind the finished ones."""
        number, first_row = len(records), sum(record.sources for record in records)
        for block in self._blocks(records):
            part = _Part(number, first_row, block, self._chunker, self._dimension)
            yield part
            number += 1
            first_row += part.sources

    def _blocks(self, records: list[PartRecord]) -> Iterator[Block]:
        """Yield the blocks behind the finished parts. What has neither size nor time is compared by its texts."""
        if not self._corpus.has_stdin:
            yield from self._corpus.blocks(self._part_rows, skip=sum(record.sources for record in records))
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
        self.parts += 1

    def _assemble(self, part: _Part) -> tuple[Rows, PartRecord]:
        texts, problems = part.block.texts, part.block.problems
        place = np.array([-1 if text is None else part.places[text] for text in texts], np.int64)
        has_vector = place >= 0
        errors = []
        for row, text in enumerate(texts):
            if text is None and row in problems:
                errors.append(RowError(row=part.row(row), code=INVALID_ROW, message=problems[row]))
            elif (fault := part.faults.get(int(place[row]))) is not None:
                has_vector[row] = False
                errors.append(_row_error(part.row(row), fault))
        vectors = np.full((len(texts), self._dimension), np.nan, self._dtype)
        used = place[has_vector]
        vectors[has_vector] = part.vectors[used]
        counts = Counts(
            rows=len(texts),
            unique=len(part.places),
            null=texts.count(None) - len(problems),
            failed=len(errors),
            truncated=int(part.is_truncated[used].sum()),
            tokens=int(part.tokens[used].sum()),
        )
        rows = Rows(vectors=vectors, has_vector=has_vector, columns=part.block.columns)
        return rows, PartRecord(counts=counts, sources=part.sources, digest=part.digest, errors=errors)


def _row_error(row: int, fault: Exception) -> RowError:
    if isinstance(fault, RequestError):
        # A message may name a place in the stream of unique texts, which nobody can look up.
        message = str(fault).removeprefix(f"{fault.code}: ")
        return RowError(row=row, code=fault.code, message=re.sub(r"\binput \d+\b", "its text", message))
    return RowError(row=row, code=POISONED, message="its text kills the worker")


def _digest(block: Block) -> str:
    """Hash the texts of a block, nulls too."""
    digest = hashlib.blake2b(digest_size=16)
    for text in block.texts:
        data = b"" if text is None else text.encode("utf-8", "surrogatepass")
        digest.update(b"-" if text is None else b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
