"""One call of a host and the chunks of it that travel: how inputs are cut, and when a call is complete.

What is asked of the worker, and what its answers are joined to, `calls.py` has. No I/O, no threads, no clock. The
caller's lock guards everything here but `deliver`, which runs without any.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from bridge_client.errors import PoisonedInputError, RequestError
from bridge_client.futures import CallFuture, Outlet, Promise
from bridge_client.handshake import Served
from embed_worker import protocol
from embed_worker.protocol import ErrorCode, Limits

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


ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextParameters:
    """What every call may ask for beside its inputs. None: what the model's folder says."""

    prompt_name: str | None = None
    prompt: str | None = None
    input_type: InputType | None = None
    truncate: bool = True
    model: str | None = None

    def chosen_prompt(self, prompts: Mapping[str, str]) -> tuple[str | None, str | None]:
        """Return the `prompt_name` and the `prompt` of a request to a model with these prompts."""
        if self.input_type is None:
            return self.prompt_name, self.prompt
        names = PROMPT_NAMES[self.input_type]
        prompt_name = next((name for name in names if prompts.get(name)), None)
        # Without one of its own a text gets no prompt, also where the folder has one by default.
        return prompt_name, "" if prompt_name is None else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """The checked answer to a chunk: how long its inputs are, and who says so."""

    tokens: list[int]
    truncated: list[int]
    served: Served


AnswerT = TypeVar("AnswerT", bound=Answer)


class Call(Promise[ResultT], abc.ABC, Generic[ResultT, AnswerT]):
    """One call: its inputs, and what has come back so far.

    Raises:
        TypeError: An input is not a string.
        ValueError: An input type that there is not, or that contradicts the other parameters.
        RequestError: An input holds a lone surrogate, which no line can carry.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        parameters: TextParameters,
        *,
        timeout_s: float,
        deadline: float | None = None,
        waits_for_room: bool = False,
        outlet: Outlet[ResultT] | None = None,
    ) -> None:
        super().__init__(CallFuture() if outlet is None else outlet)
        if parameters.input_type is not None:
            _check_input_type(parameters)
        self.inputs = inputs
        self.model = parameters.model
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
        self._tokens = [0] * len(inputs)
        self._truncated: list[int] = []
        self._served: Served | None = None

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

    @abc.abstractmethod
    def request(self, start: int, stop: int, prompts: Mapping[str, str]) -> protocol.Request:
        """Return the request for a range of the inputs, to a model with these prompts."""

    @abc.abstractmethod
    def read(self, members: Mapping[str, Any], chunk: Chunk, served: Served) -> AnswerT:
        """Check an answer against what was asked for and what the worker promised, and decode it.

        Raises:
            ProtocolError: It does not fit: nothing of it may be used.
        """

    def take(self, chunk: Chunk, answer: AnswerT) -> bool:
        """Put the results of a chunk in their place; False where they would mix two vector spaces."""
        if self._served is not None and self._served.fingerprint != answer.served.fingerprint:
            return False
        self._keep(chunk, answer)
        self._tokens[chunk.start : chunk.stop] = answer.tokens
        self._truncated.extend(chunk.start + index for index in answer.truncated)
        self._served = answer.served
        self.missing -= chunk.weight
        return True

    @abc.abstractmethod
    def _keep(self, chunk: Chunk, answer: AnswerT) -> None:
        """Keep what only this kind of call has of an answer."""

    def blame(self, index: int) -> None:
        """Note a blamed input."""
        self._blamed.append(index)
        self.missing -= 1

    def conclude(self) -> bool:
        """Settle a call of which nothing is missing: with its results, or with the inputs that are blamed."""
        if self.missing:
            return False
        if not self._blamed:
            return self.settle(self._result)
        return self.settle(self._poisoned(tuple(sorted(self._blamed))))

    @abc.abstractmethod
    def _result(self) -> ResultT:
        """Return what the host waits for; nothing is missing."""

    def _poisoned(self, blamed: tuple[int, ...]) -> PoisonedInputError:
        """Return the error of a call with inputs that are blamed."""
        return PoisonedInputError(blamed, None)


AnyCall: TypeAlias = Call[Any, Any]


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

    call: AnyCall
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


def _cost(text_bytes: int) -> int:
    """Estimate the tokens of a text: its own and the two special ones."""
    return 2 + min(text_bytes // _BYTES_PER_TOKEN, _MOST_TOKENS)


def _check_input_type(wanted: TextParameters) -> None:
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
