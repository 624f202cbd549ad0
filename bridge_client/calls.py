"""One call of a host and the chunks of it that travel: how inputs are cut, and how vectors are joined again.

No I/O, no threads, no clock. The caller's lock guards everything here but `deliver`, which runs without any.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, TypeAlias, TypedDict

import numpy as np

from bridge_client.embeddings import Embeddings, Matrix
from bridge_client.errors import PoisonedInputError, RequestError
from bridge_client.futures import CallFuture, Outlet, Promise
from bridge_client.handshake import Served
from embed_worker import protocol
from embed_worker.protocol import EncodingFormat, ErrorCode, Limits

# A chunk is a second or two of work on a small machine: long enough to be batched well, short enough that a bulk call
# neither outlives the time limit of its chunks in the worker's queue nor keeps others waiting behind it.
CHUNK_TOKENS = 16_384
SHORT_TOKENS = 512  # about one micro-batch of the worker
_MOST_INPUTS = Limits().max_inputs  # a worker with less says so, and its chunks are cut again
CHUNK_BYTES = 4 * 2**20  # times six, for the escapes of control characters, still a legal line
_BYTES_PER_TOKEN = 4
_MOST_TOKENS = 512  # a text is truncated at the model's limit, and few models go further


InputType: TypeAlias = Literal["query", "document"]
# The names under which models publish the prompt of each; the first that has one counts.
PROMPT_NAMES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What an `embed` asks for beside its inputs. None: what the model's folder says."""

    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    input_type: InputType | None = None
    truncate: bool = True
    model: str | None = None


class EmbedKeywords(TypedDict, total=False):
    """The names and types of `Parameters`, for the checkers of hosts; a test keeps the two equal."""

    normalize: bool | None
    dimensions: int | None
    prompt_name: str | None
    prompt: str | None
    input_type: InputType | None
    truncate: bool
    model: str | None


class EmbedCall(Promise[Embeddings]):
    """One call: its inputs, and what has come back so far.

    Raises:
        TypeError: An input is not a string.
        ValueError: An input type that there is not, or that contradicts the other parameters.
        RequestError: An input holds a lone surrogate, which no line can carry.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        parameters: Parameters,
        *,
        timeout_s: float,
        deadline: float | None = None,
        waits_for_room: bool = False,
        outlet: Outlet[Embeddings] | None = None,
    ) -> None:
        super().__init__(CallFuture() if outlet is None else outlet)
        if parameters.input_type is not None:
            _check_input_type(parameters)
        self.inputs = inputs
        self.parameters = parameters
        self.timeout_s = timeout_s  # for each chunk, from being sent first, and for room; the deadline goes before it
        self.deadline = deadline
        self.waits_for_room = waits_for_room  # instead of being refused when the queue is full
        self.sizes = [size_of(text, index) for index, text in enumerate(inputs)]
        self.bytes = sum(self.sizes)
        self.submitted_at = 0.0
        self.missing = max(1, len(inputs))  # inputs without a result; an empty call waits for one answer, too
        self.unsent = 0  # of those, the ones that wait here
        self.lone_deaths = 0  # of workers, with one of its chunks alone
        self._blamed: list[int] = []
        self._vectors: Matrix | None = None
        self._tokens = [0] * len(inputs)
        self._truncated: list[int] = []
        self._served: Served | None = None
        self._timing_ms: dict[str, float] = {}

    def chunks(self) -> Iterator[Chunk]:
        """Cut the call into chunks of bounded cost; at least one, also when there is no input."""
        start = tokens = size = 0
        for index, text_bytes in enumerate(self.sizes):
            cost = _cost(text_bytes)
            is_full = tokens + cost > CHUNK_TOKENS or size + text_bytes > CHUNK_BYTES
            if index > start and (is_full or index - start == _MOST_INPUTS):
                yield Chunk(call=self, start=start, stop=index)
                start, tokens, size = index, 0, 0
            tokens += cost
            size += text_bytes
        yield Chunk(call=self, start=start, stop=len(self.sizes))

    def request(self, start: int, stop: int, prompts: Mapping[str, str]) -> protocol.Embed:
        """Return the request for a range of the inputs, to a model with these prompts."""
        wanted = self.parameters
        prompt_name, prompt = wanted.prompt_name, wanted.prompt
        if wanted.input_type is not None:
            names = PROMPT_NAMES[wanted.input_type]
            prompt_name = next((name for name in names if prompts.get(name)), None)
            # Without one of its own a text gets no prompt, also where the folder has one by default.
            prompt = "" if prompt_name is None else None
        return protocol.Embed(
            inputs=list(self.inputs[start:stop]),
            normalize=wanted.normalize,
            dimensions=wanted.dimensions,
            prompt_name=prompt_name,
            prompt=prompt,
            model=wanted.model,
            truncate=wanted.truncate,
            encoding_format=EncodingFormat.BASE64,
        )

    def take(self, chunk: Chunk, answer: Answer) -> bool:
        """Put the vectors of a chunk in their place; False where they would mix two vector spaces."""
        if self._served is not None and self._served.fingerprint != answer.served.fingerprint:
            return False
        if self._vectors is None:
            self._vectors = np.zeros((len(self.inputs), answer.vectors.shape[1]), np.float32)
        self._vectors[chunk.start : chunk.stop] = answer.vectors
        self._tokens[chunk.start : chunk.stop] = answer.tokens
        self._truncated.extend(chunk.start + index for index in answer.truncated)
        self._served = answer.served
        if answer.timing_ms.get("total", 0.0) >= self._timing_ms.get("total", 0.0):
            self._timing_ms = dict(answer.timing_ms)
        self.missing -= chunk.weight
        return True

    def blame(self, index: int) -> None:
        """Note a blamed input."""
        self._blamed.append(index)
        self.missing -= 1

    def conclude(self) -> bool:
        """Settle a call of which nothing is missing: with its vectors, or with the inputs that are blamed."""
        if self.missing:
            return False
        if not self._blamed:
            return self.settle(self._embeddings)
        others = self._embeddings() if self._served is not None else None
        return self.settle(PoisonedInputError(tuple(sorted(self._blamed)), others))

    def _embeddings(self) -> Embeddings:
        assert self._vectors is not None
        assert self._served is not None
        blamed = set(self._blamed)
        kept = [index for index in range(len(self.inputs)) if index not in blamed]
        row = {index: number for number, index in enumerate(kept)} if blamed else None
        return Embeddings(
            vectors=self._vectors if row is None else self._vectors[kept],
            tokens=tuple(self._tokens if row is None else (self._tokens[index] for index in kept)),
            truncated=tuple(sorted(self._truncated if row is None else (row[index] for index in self._truncated))),
            model=self._served.model,
            fingerprint=self._served.fingerprint,
            timing_ms=self._timing_ms,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Chunk:
    """A range of a call's inputs that travels as one request.

    Attributes:
        lone_deaths: How often a worker died with this, or with the larger chunk that it was cut from, alone.
        sent_at: When its inputs were sent first; their time-out counts from then, whatever happens to the worker.
        tokens: Estimated.
        is_short: It is so small that it should not wait behind larger ones.
        weight: How much of its call it is; an empty call has one empty chunk.
    """

    call: EmbedCall
    start: int
    stop: int
    is_isolated: bool = False
    lone_deaths: int = 0
    attempts: int = 0
    sent_at: float | None = None
    tokens: int = field(init=False)
    bytes: int = field(init=False)
    is_short: bool = field(init=False)
    weight: int = field(init=False)

    def __post_init__(self) -> None:
        sizes = self.call.sizes[self.start : self.stop]
        self.tokens = sum(map(_cost, sizes))
        self.bytes = sum(sizes)
        self.is_short = self.tokens <= SHORT_TOKENS
        self.weight = max(1, len(sizes))

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def texts(self) -> Sequence[str]:
        """Its inputs."""
        return self.call.inputs[self.start : self.stop]

    @property
    def deadline(self) -> float:
        """When its time is over."""
        if self.call.deadline is not None:
            return self.call.deadline
        return math.inf if self.sent_at is None else self.sent_at + self.call.timeout_s

    def cut(self, size: int) -> tuple[Chunk, Chunk]:
        """Cut off the first `size` inputs; both parts keep the history."""
        return self._part(self.start, self.start + size), self._part(self.start + size, self.stop)

    def _part(self, start: int, stop: int) -> Chunk:
        return Chunk(
            call=self.call,
            start=start,
            stop=stop,
            is_isolated=self.is_isolated,
            lone_deaths=self.lone_deaths,
            attempts=self.attempts,
            sent_at=self.sent_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """The checked answer to a chunk: (B, D) vectors and what belongs to them."""

    vectors: Matrix
    tokens: list[int]
    truncated: list[int]
    timing_ms: Mapping[str, float]
    served: Served


def read_answer(members: Mapping[str, Any], chunk: Chunk, served: Served) -> Answer:
    """Check an answer against what was asked for and what the worker promised, and decode it.

    Raises:
        ProtocolError: It does not fit: nothing of it may be used.
    """
    if chunk.call.parameters.model is not None:
        served = _another_model(members, served)
    count, dimension = len(chunk), chunk.call.parameters.dimensions or served.dimension
    flat = np.frombuffer(protocol.decode_matrix(members, count, dimension), "<f4")
    if not np.isfinite(flat).all():
        _refuse("a vector is not finite")
    if (members.get("model"), members.get("fingerprint")) != (served.model, served.fingerprint):
        _refuse("the model or the fingerprint is not the one of `info`")
    tokens, truncated = members.get("tokens"), members.get("truncated")
    if not isinstance(tokens, list) or len(tokens) != count or not all(type(n) is int and n >= 0 for n in tokens):
        _refuse("`tokens` are not one number for each input")
    if not isinstance(truncated, list) or not all(type(index) is int and 0 <= index < count for index in truncated):
        _refuse("`truncated` are not indexes of inputs")
    timing_ms = members.get("timing_ms")
    told = timing_ms.items() if isinstance(timing_ms, dict) else ()
    return Answer(
        vectors=flat.reshape(count, dimension),
        tokens=tokens,
        truncated=truncated,
        timing_ms={name: value for name, value in told if isinstance(value, (int, float))},
        served=served,
    )


def _another_model(members: Mapping[str, Any], served: Served) -> Served:
    """Return what an answer says of its model, of which the worker promised nothing."""
    model, fingerprint, dimension = members.get("model"), members.get("fingerprint"), members.get("dimension")
    if not (isinstance(model, str) and isinstance(fingerprint, str) and model and fingerprint):
        _refuse("no model or no fingerprint is named")
    if type(dimension) is not int or dimension < 1:
        _refuse("no dimension is named")
    return replace(served, model=model, fingerprint=fingerprint, dimension=dimension)


def _refuse(message: str) -> NoReturn:
    raise protocol.ProtocolError(ErrorCode.PARSE_ERROR, message)


def _cost(text_bytes: int) -> int:
    """Estimate the tokens of a text: its own and the two special ones."""
    return 2 + min(text_bytes // _BYTES_PER_TOKEN, _MOST_TOKENS)


def _check_input_type(wanted: Parameters) -> None:
    if wanted.input_type not in PROMPT_NAMES:
        raise ValueError(f"`input_type` must be 'query' or 'document', not {wanted.input_type!r}")
    if wanted.prompt is not None or wanted.prompt_name is not None:
        raise ValueError("`input_type` chooses the prompt: leave out `prompt` and `prompt_name`")
    if wanted.model is not None:
        raise ValueError("`input_type` chooses among the prompts of the client's own model: give `prompt_name`")


def texts_of(inputs: object) -> tuple[str, ...]:
    """Return what a host gives as inputs as texts; one text is a tuple of one.

    Raises:
        TypeError: They are something else.
    """
    if isinstance(inputs, str):
        return (inputs,)
    if isinstance(inputs, (bytes, bytearray, Mapping, Set)) or not isinstance(inputs, Iterable):
        raise TypeError(f"`inputs` must be a text or a sequence of texts, not {type(inputs).__name__}")
    return tuple(text if type(text) is str else plain_text(text) for text in inputs)


def plain_text(text: Any) -> Any:
    """Return the string that numpy's or Arrow's stands for, and anything else as it is."""
    if isinstance(text, str):
        return str(text)
    return text.as_py() if hasattr(text, "as_py") else text


def size_of(text: object, index: int) -> int:
    """Return the bytes of an input.

    Raises:
        TypeError: It is not a string.
        RequestError: It holds a lone surrogate, which no line can carry.
    """
    if not isinstance(text, str):
        raise TypeError(f"input {index} must be a string, not {type(text).__name__}")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        message = f"input {index} holds a lone surrogate, which is not Unicode text"
        raise RequestError(ErrorCode.INVALID_REQUEST, message, retryable=False, index=index) from None
