"""A stream of texts, block by block: how it is cut, and how a block goes on when one of its texts cannot be embedded.

Pure: whoever drives a block, waiting or awaiting, makes the calls that it asks for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from bridge_client.chunks import plain_text, size_of
from bridge_client.embeddings import Embeddings
from bridge_client.errors import PoisonedInputError, RequestError
from embed_worker.protocol import ErrorCode

BLOCK_INPUTS = 256
BLOCKS_AHEAD = 16  # 4,096 texts, which the worker sorts by length

OnError: TypeAlias = Literal["raise", "null"]
Fault: TypeAlias = RequestError | PoisonedInputError  # an input is to blame, not the worker or its host


class Handle(Protocol):
    """What is held of a call that is under way."""

    def cancel(self) -> object:
        """Want it no more."""


class Awaitable(Handle, Protocol):
    """One that a thread can wait for."""

    def result(self) -> Embeddings:
        """Wait for the outcome."""


H = TypeVar("H", bound=Handle)
A = TypeVar("A", bound=Awaitable)


class BlockCall(Generic[H]):
    """One block on its way: `call` is under way until `result()` has something to return, or to raise.

    An error waits for that, too: blocks that come before are good.
    """

    def __init__(
        self, start: int, texts: Sequence[Any], on_error: OnError, begin: Callable[[Sequence[str]], H]
    ) -> None:
        self._begin = begin
        self._plan = _embed_block(start, texts, on_error)
        self.call: H | None = None
        self._outcome: Embeddings | TypeError | Fault | None = None
        self._go_on(functools.partial(next, self._plan))

    def succeed(self, result: Embeddings) -> None:
        """Go on with the vectors of the call."""
        self._go_on(functools.partial(self._plan.send, result))

    def fail(self, fault: Fault) -> None:
        """Go on after a call that failed."""
        self._go_on(functools.partial(self._plan.throw, fault))

    def result(self) -> Embeddings | None:
        """Return the vectors, or None while `call` is under way.

        Raises:
            RequestError: An input is at fault, named by its place in the stream; only where errors are to be raised.
            PoisonedInputError: Likewise.
            TypeError: Likewise.
        """
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Want nothing any more."""
        if self.call is not None:
            self.call.cancel()

    def _go_on(self, advance: Callable[[], Sequence[str]]) -> None:
        while True:
            try:
                texts = advance()
            except StopIteration as done:
                self._outcome = done.value
                return
            except (TypeError, RequestError, PoisonedInputError) as error:
                self._outcome = error
                return
            try:
                self.call = self._begin(texts)
                return
            except (RequestError, PoisonedInputError) as fault:  # refused at once, such as a text in quarantine
                advance = functools.partial(self._plan.throw, fault)


def finished(block: BlockCall[A]) -> Embeddings:
    """Wait for a block, and try again without what is at fault."""
    while (result := block.result()) is None:
        assert block.call is not None
        try:
            vectors = block.call.result()
        except (RequestError, PoisonedInputError) as fault:
            block.fail(fault)
        else:
            block.succeed(vectors)
    return result


def check_stream(inputs: object, block_inputs: int, on_error: str, precision: str = "float32") -> None:
    """Check the arguments of a stream.

    Raises:
        TypeError: It is one text.
        ValueError: An empty block, an unknown way with errors, or nulls among sign bits.
    """
    if isinstance(inputs, (str, bytes)):
        raise TypeError("`inputs` must be many texts: this is one")
    if block_inputs < 1:
        raise ValueError(f"`block_inputs` must be at least 1, not {block_inputs}")
    if on_error not in ("raise", "null"):
        raise ValueError(f"`on_error` must be 'raise' or 'null', not {on_error!r}")
    if on_error == "null" and precision == "ubinary":
        raise ValueError("`on_error='null'` needs numbers: sign bits have no null")


def blocks(inputs: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Cut any iterable into lists of `size`, each with its place in the stream."""
    start, block = 0, []
    for text in inputs:
        block.append(text)
        if len(block) == size:
            yield start, block
            start, block = start + size, []
    if block:
        yield start, block


def _embed_block(
    start: int, given: Sequence[Any], on_error: OnError
) -> Generator[Sequence[str], Embeddings, Embeddings]:
    """Ask for the vectors of texts until each has its own or is known to be at fault; return them all."""
    texts = list(map(plain_text, given))
    failures: dict[int, Fault] = {}
    for row, text in enumerate(texts):
        try:
            size_of(text, start + row)
        except (TypeError, RequestError) as error:
            if on_error == "raise":
                raise
            failures[row] = error if isinstance(error, RequestError) else _invalid(str(error), start + row)
    waiting = [[row for row in range(len(texts)) if row not in failures]]
    done: list[tuple[list[int], Embeddings]] = []
    while waiting:
        if not (rows := waiting.pop()):
            continue
        try:
            done.append((rows, (yield [texts[row] for row in rows])))
        except (RequestError, PoisonedInputError) as error:
            fault = moved(error, [start + row for row in rows])
            if on_error == "raise" or _is_passing(fault):
                raise fault from error
            waiting += _after(fault, start, rows, failures, done)
    if not done:  # the empty text knows the dimension and the fingerprint
        done.append(([], (yield [""])))
    return _joined(len(texts), done, failures)


def _invalid(message: str, index: int) -> RequestError:
    return RequestError(ErrorCode.INVALID_REQUEST, message, retryable=False, index=index)


def _is_passing(fault: Fault) -> bool:
    """Whether the same may succeed later: no input is to blame."""
    return isinstance(fault, RequestError) and fault.retryable


def moved(fault: Fault, places: Sequence[int]) -> Fault:
    """Return a fault with an input's place among others, such as in the stream, instead of that in the call."""
    if isinstance(fault, PoisonedInputError):
        return PoisonedInputError(tuple(places[index] for index in fault.indexes), fault.others)
    message = str(fault).removeprefix(f"{fault.code}: ")
    index = None if fault.index is None else places[fault.index]
    if index is not None:
        message = re.sub(r"\binput \d+\b", f"input {index}", message, count=1)
    return RequestError(fault.code, message, retryable=fault.retryable, index=index)


def _after(
    fault: Fault,
    start: int,
    rows: list[int],
    failures: dict[int, Fault],
    done: list[tuple[list[int], Embeddings]],
) -> list[list[int]]:
    """Note who is to blame for a call that failed; return the rows that have to be tried again, last ones first."""
    if isinstance(fault, RequestError) and fault.index is None and len(rows) > 1:
        middle = len(rows) // 2
        return [rows[middle:], rows[:middle]]
    if isinstance(fault, PoisonedInputError):
        blamed = {index - start for index in fault.indexes}
    else:
        blamed = {rows[0] if fault.index is None else fault.index - start}
    for row in blamed:
        single = isinstance(fault, PoisonedInputError)
        failures[row] = PoisonedInputError((start + row,), None) if single else fault
    rest = [row for row in rows if row not in blamed]
    if isinstance(fault, PoisonedInputError) and fault.others is not None:
        done.append((rest, fault.others))
        return []
    return [rest]


def _joined(count: int, done: Sequence[tuple[list[int], Embeddings]], failures: dict[int, Fault]) -> Embeddings:
    """Put rows in their places; one without a vector is not a number, and has no tokens."""
    first = done[0][1]
    if len(done) == 1 and not failures:
        return first
    missing = np.nan if first.vectors.dtype.kind == "f" else 0
    vectors = np.full((count, first.vectors.shape[1]), missing, first.vectors.dtype)
    tokens = [0] * count
    truncated: list[int] = []
    for rows, part in done:
        vectors[rows] = part.vectors[: len(rows)]
        truncated += [rows[index] for index in part.truncated if index < len(rows)]
        for row, number in zip(rows, part.tokens, strict=False):
            tokens[row] = number
    return Embeddings(
        vectors=vectors,
        dimension=first.dimension,
        tokens=tuple(tokens),
        truncated=tuple(sorted(truncated)),
        model=first.model,
        fingerprint=first.fingerprint,
        timing_ms=first.timing_ms,
        failures=failures,
    )
