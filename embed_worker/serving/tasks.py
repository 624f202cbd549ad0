"""An `embed` or a `tokenize` from its line to its answer: the texts that go in, what comes out, and how it is told.

A task is the answer that is owed to its line (`answers.py`). `work.py` decides what of it is done next, and `lanes.py`
does it.
"""

from __future__ import annotations

import abc
import functools
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from embed_worker.errors import RequestFailed
from embed_worker.protocol import Embed, ErrorCode, RequestId, Tokenize, encode_error, encode_tokens, encode_vectors
from embed_worker.serving.answers import Answer
from embed_worker.serving.metrics import WorkerMetrics
from embed_worker.serving.model_store import ModelEntry
from embed_worker.serving.packed_texts import PackedTexts, Texts
from embed_worker.serving.stdio import Line

if TYPE_CHECKING:  # the loader imports what is heavy, in its own time
    import numpy as np
    from numpy.typing import NDArray

    from embed_worker.inference.engine import LoadedModel
    from embed_worker.inference.pooling import Float32
    from embed_worker.inference.tokenizer import TokenizedText

_CHUNK_TEXTS = 128
_RANGES_BYTES = 128  # of an array without any
_CHUNK_CHARACTERS = 16 * 1024  # tokenising them takes a few milliseconds, so that a short request soon gets its turn

DEADLINE_PASSED = "the deadline passed before the answer was ready"


@dataclass(slots=True, eq=False, kw_only=True)
class Task(Answer, abc.ABC):
    """One request with texts. Its fields belong to the lock of `Answers`, but for what one thread at a time touches.

    Attributes:
        request: Without its inputs where `texts` has them packed.
        entry: The model that it means, kept from being unloaded until the answer is written.
        arrived_s, deadline_s: On the worker's clock.
        model: That model, once it is ready and the request has been compared with it.
        next_text: How many of its texts are tokenised, or being so.
        expected_tokens: A rough guess, enough to tell a query from an import.
        is_one_chunk: All of its texts are tokenised at once.
        tokens: Of each text, before the cut.
        first_run_s: When the work on it began that its answer is made of.
        answered_s: When that was encoded.
    """

    request: Embed | Tokenize
    texts: Texts
    entry: ModelEntry
    clock: Callable[[], float]
    arrived_s: float
    deadline_s: float | None
    model: LoadedModel | None = None
    prompt: str = ""
    has_begun: bool = False
    next_text: int = 0
    characters_left: int = 0
    expected_tokens: int = 0
    is_one_chunk: bool = False
    tokens: array[int] = field(default_factory=functools.partial(array, "I"))
    truncated: list[int] = field(default_factory=list)
    tokenize_s: float = 0.0
    first_run_s: float | None = None
    answered_s: float = 0.0

    @classmethod
    def of_line(
        cls, line: Line, request_id: RequestId, request: Embed | Tokenize, entry: ModelEntry, clock: Callable[[], float]
    ) -> Self:
        """Return the task of a line; the entry is acquired for it."""
        arrived_s = clock() if line.completed_s is None else line.completed_s
        size_bytes = len(line.data or b"")
        characters = sum(map(len, request.inputs))
        texts = pack_where_it_pays(request.inputs, size_bytes)
        return cls(
            request_id=request_id,
            line_number=line.number,
            size_bytes=size_bytes,
            request=replace(request, inputs=[]) if texts is not request.inputs else request,
            texts=texts,
            characters_left=characters,
            entry=entry,
            clock=clock,
            arrived_s=arrived_s,
            deadline_s=None if request.deadline_ms is None else arrived_s + request.deadline_ms / 1e3,
        )

    def meet(self, model: LoadedModel) -> None:
        """Compare the request with its model, and learn from it what is to be done.

        Raises:
            RequestFailed: The model cannot answer it.
        """
        plan = model.engine.plan
        self.prompt = _prompt(self.request, plan.prompts, plan.default_prompt_name)
        count = len(self.texts)
        self.tokens = array("I", bytes(count * array("I").itemsize))
        self.characters_left += count * len(self.prompt)
        self.expected_tokens = self.characters_left // 4 + 4 * count
        self.is_one_chunk = count <= _CHUNK_TEXTS and self.characters_left <= _CHUNK_CHARACTERS
        self.model = model

    @property
    @abc.abstractmethod
    def result_bytes(self) -> int:
        """The size of what it collects, about; it has met its model."""

    def next_chunk(self) -> tuple[int, list[str]]:
        """Take the next texts to tokenise, at least one: the index of the first, and the texts."""
        first = self.next_text
        chunk: list[str] = []
        characters = 0
        while first + len(chunk) < len(self.texts) and len(chunk) < _CHUNK_TEXTS:
            text = self.texts[first + len(chunk)]
            more = len(self.prompt) + len(text)
            if characters + more > _CHUNK_CHARACTERS and chunk:
                break
            characters += more
            chunk.append(text)
        self.next_text += len(chunk)
        self.characters_left -= characters
        return first, chunk

    @abc.abstractmethod
    def tokenize(self, model: LoadedModel, inputs: Sequence[str]) -> list[TokenizedText]:
        """Tokenise some of its texts, as far as its answer needs them; no lock is held."""

    @abc.abstractmethod
    def note_tokens(self, first: int, texts: list[TokenizedText]) -> None:
        """Note how long texts are, from the index `first` on.

        Raises:
            RequestFailed: One is not what the request allows.
        """

    def write_out(self) -> bytes:
        """Encode what has come out, unless it is too late, or cannot be used."""
        if self.line is not None:
            return self.line
        now = self.clock()
        if self.deadline_s is not None and self.deadline_s <= now:
            return self._refused(ErrorCode.DEADLINE_EXCEEDED, DEADLINE_PASSED)
        self.answered_s = now
        assert self.model is not None
        return self._encoded(self.model)

    @abc.abstractmethod
    def _encoded(self, model: LoadedModel) -> bytes:
        """Return the line of a task that nothing is missing of."""

    def _refused(self, code: ErrorCode, message: str, index: int | None = None) -> bytes:
        self.code = code
        return encode_error(self.request_id, self.line_number, code, message, index)

    def let_go(self) -> None:
        """Let go of the model, before it is written; no lock is held."""
        self.model = None
        self.entry.release()

    def count(self, metrics: WorkerMetrics) -> None:
        """Be counted where it was not when it was settled, just before the first byte; the lock is held."""
        if self.code is None:
            self._count_success(metrics)
        elif self.line is None:  # it was too late, or a vector could not be used
            metrics.count_error(self.code)

    @abc.abstractmethod
    def _count_success(self, metrics: WorkerMetrics) -> None:
        """Be counted as answered."""


@dataclass(slots=True, eq=False, kw_only=True)
class EmbedTask(Task):
    """One `embed` request.

    Attributes:
        waiting: Texts that are tokenised and not taken to be run.
        vectors: (inputs, dimension) float32 as pooled, filled row by row.
        timing_ms: What it took, when its answer was written out.
    """

    request: Embed
    rows_missing: int = 0
    waiting: dict[int, TokenizedText] = field(default_factory=dict)
    vectors: Float32 | None = None
    last_run_s: float = 0.0
    timing_ms: Mapping[str, float] = field(default_factory=dict)

    # Texts in

    def meet(self, model: LoadedModel) -> None:
        """Compare the request with its model, and learn from it what is to be done.

        Raises:
            RequestFailed: The model cannot answer it.
        """
        request, engine = self.request, model.engine
        # Two arguments: with slots, the class that `super()` would look for is not the one that there is.
        super(EmbedTask, self).meet(model)
        if request.dimensions is not None and request.dimensions > engine.dimension:
            message = f"`dimensions` is {request.dimensions}, the model has {engine.dimension}"
            raise RequestFailed(ErrorCode.INVALID_REQUEST, message)
        if request.normalize is False and engine.normalizes_itself:
            message = "`normalize` cannot be false: the model's graph normalises by itself"
            raise RequestFailed(ErrorCode.INVALID_REQUEST, message)
        self.rows_missing = len(self.texts)

    @property
    def result_bytes(self) -> int:
        """The size of its vectors."""
        assert self.model is not None
        return len(self.texts) * self.model.engine.dimension * 4

    def tokenize(self, model: LoadedModel, inputs: Sequence[str]) -> list[TokenizedText]:
        """Tokenise some of its texts, cut as the model sees them."""
        return model.engine.tokenizer.encode(inputs, self.prompt)

    def note_tokens(self, first: int, texts: list[TokenizedText]) -> None:
        """Note how long texts are, from the index `first` on.

        Raises:
            RequestFailed: One has no tokens, or is longer than the request allows.
        """
        for index, text in enumerate(texts, first):
            self.tokens[index] = text.count
            if text.count > len(text.ids):
                self.truncated.append(index)
            if not len(text.ids):
                raise RequestFailed(ErrorCode.NON_FINITE_EMBEDDING, f"input {index} has no tokens", index=index)
        if self.truncated and not self.request.truncate:
            assert self.model is not None
            index = self.truncated[0]
            limit = self.model.engine.plan.max_tokens
            message = f"input {index} has {self.tokens[index]} tokens, the limit is {limit}"
            raise RequestFailed(ErrorCode.INPUT_TOO_LONG, message, index=index)

    # Vectors out

    def put(self, index: int, vector: Float32, now: float) -> bool:
        """Keep the (D,) vector of one text; return whether it was the last."""
        if self.vectors is None:
            assert self.model is not None
            self.vectors = self.model.engine.new_matrix(len(self.texts))
        self.vectors[index] = vector
        self.last_run_s = now
        self.rows_missing -= 1
        return not self.rows_missing

    def _encoded(self, model: LoadedModel) -> bytes:
        request = self.request
        raw = model.engine.new_matrix(0) if self.vectors is None else self.vectors
        self.timing_ms = self._timing_ms()
        encoding = request.encoding_format
        vectors, bad = model.finish_and_check(raw, request.dimensions, request.normalize, encoding.precision)
        if bad is not None:
            what = " as float16" if encoding.precision == "float16" else ""
            message = f"the model gave input {bad} a vector that is not finite or has no length{what}"
            return self._refused(ErrorCode.NON_FINITE_EMBEDDING, message, bad)
        before = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "dimension": request.dimensions or model.dimension,
            "count": len(vectors),
        }
        after = {"tokens": self.tokens.tolist(), "truncated": self.truncated, "timing_ms": self.timing_ms}
        return encode_vectors(self.request_id, self.line_number, before, vectors, encoding, after)

    def _timing_ms(self) -> dict[str, float]:
        """Split the time of a request, in milliseconds: `queue` is what neither of the others took."""
        total = self.answered_s - self.arrived_s
        inference = 0.0 if self.first_run_s is None else self.last_run_s - self.first_run_s
        queue = max(0.0, total - inference - self.tokenize_s)
        parts = {"queue": queue, "tokenize": self.tokenize_s, "inference": inference, "total": total}
        return {name: round(seconds * 1e3, 3) for name, seconds in parts.items()}

    def let_go(self) -> None:
        """Let go of the vectors and the model, before it is written; no lock is held."""
        self.waiting.clear()
        self.vectors = None
        super(EmbedTask, self).let_go()

    def _count_success(self, metrics: WorkerMetrics) -> None:
        metrics.count_embedded(self.tokens, len(self.truncated), self.timing_ms)


@dataclass(slots=True, eq=False, kw_only=True)
class TokenizeTask(Task):
    """One `tokenize` request: nothing of it is run.

    Attributes:
        ranges: For each text that has been tokenised a (tokens, 2) array, where they are asked for.
        texts_missing: How many have not.
        max_tokens: The model's limit.
    """

    request: Tokenize
    ranges: list[NDArray[np.uint32]] = field(default_factory=list)
    texts_missing: int = 0
    max_tokens: int = 0

    def meet(self, model: LoadedModel) -> None:
        """Learn from the model what is to be done.

        Raises:
            RequestFailed: It has no prompt of that name.
        """
        super(TokenizeTask, self).meet(model)
        self.max_tokens = model.engine.plan.max_tokens
        self.texts_missing = len(self.texts)

    @property
    def result_bytes(self) -> int:
        """The size of its ranges where every character is a token; more where they are several."""
        return 8 * self.characters_left + _RANGES_BYTES * len(self.texts) if self.request.offsets else 0

    def tokenize(self, model: LoadedModel, inputs: Sequence[str]) -> list[TokenizedText]:
        """Tokenise some of its texts; they are cut where the ranges of the rest are not wanted."""
        wanted = self.request
        return model.engine.tokenizer.encode(
            inputs, self.prompt, cuts=wanted.offsets and wanted.truncate, ranges=wanted.offsets
        )

    def note_tokens(self, first: int, texts: list[TokenizedText]) -> None:
        """Note how long texts are, from the index `first` on, and where their tokens are."""
        for index, text in enumerate(texts, first):
            self.tokens[index] = text.count
            if self.request.truncate and text.count > self.max_tokens:
                self.truncated.append(index)
            if text.ranges is not None:
                self.ranges.append(text.ranges)
        self.texts_missing -= len(texts)

    def _encoded(self, model: LoadedModel) -> bytes:
        members = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "count": len(self.tokens),
            "tokens": self.tokens.tolist(),
            "truncated": self.truncated,
        }
        return encode_tokens(self.request_id, self.line_number, members, self.ranges if self.request.offsets else None)

    def let_go(self) -> None:
        """Let go of the ranges and the model, before it is written; no lock is held."""
        self.ranges = []
        super(TokenizeTask, self).let_go()

    def _count_success(self, metrics: WorkerMetrics) -> None:
        metrics.count_tokenized(len(self.tokens))


def _prompt(request: Embed | Tokenize, prompts: Mapping[str, str], default_name: str | None) -> str:
    if request.prompt is not None:
        return request.prompt
    name = default_name if request.prompt_name is None else request.prompt_name
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(sorted(prompts))
        raise RequestFailed(ErrorCode.INVALID_REQUEST, f"unknown prompt_name {name[:64]!a}; the model has: {known}")
    return prompts[name]


def pack_where_it_pays(texts: list[str], line_bytes: int) -> Texts:
    """Return texts packed where they hold more than twice the memory of their line, else as they are.

    Lines in flight are counted by their bytes, and so many tiny texts would hold twenty times what is counted.
    """
    return PackedTexts(texts) if sum(map(sys.getsizeof, texts)) > 2 * line_bytes + 4096 else texts
