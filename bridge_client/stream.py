"""A stream of texts through one client: results in order, calls in flight ahead, and a bad text costs itself alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bridge_client.client import BLOCK_INPUTS, BLOCKS_AHEAD, blocks
from bridge_client.embeddings import Embeddings
from bridge_client.errors import PoisonedInputError, RequestError

POISONED = "poisoned_input"  # the text kills the worker


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vector:
    """A text's (D,) float32 vector, its tokens before truncation, and whether it was cut."""

    values: NDArray[np.float32]
    tokens: int
    is_truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a text has no vector: an error code, and a sentence without the text."""

    code: str
    message: str


Result: TypeAlias = Vector | Failure
Stream: TypeAlias = Callable[[Iterable[str]], Iterator[Result]]
Submit: TypeAlias = Callable[[Sequence[str]], Future[Embeddings]]


def stream(submit: Submit, texts: Iterable[str]) -> Iterator[Result]:
    """Yield one result for each text, in order; texts are read a few thousand ahead.

    Args:
        submit: Begins a call.
        texts: Any number.

    Raises:
        BridgeError: No text is to blame: there is no worker.
    """
    calls: deque[tuple[list[str], Future[Embeddings]]] = deque()
    try:
        for block in blocks(texts, BLOCK_INPUTS):
            calls.append((block, _begun(submit, block)))
            if len(calls) > BLOCKS_AHEAD:
                yield from _results(submit, *calls[0])
                calls.popleft()
        while calls:
            yield from _results(submit, *calls[0])
            calls.popleft()
    finally:
        for _, future in calls:
            future.cancel()


def _begun(submit: Submit, texts: Sequence[str]) -> Future[Embeddings]:
    """Begin a call; what is refused before it is sent is an outcome like any other."""
    try:
        return submit(texts)
    except RequestError as error:
        refused: Future[Embeddings] = Future()
        refused.set_exception(error)
        return refused


def _results(submit: Submit, texts: Sequence[str], future: Future[Embeddings]) -> list[Result]:
    """Return the results of one call; where a text fails it, the others are sent again."""
    try:
        return _vectors(future.result())
    except PoisonedInputError as error:
        failed = dict.fromkeys(error.indexes, Failure(code=POISONED, message="it kills the worker"))
        others = None if error.others is None else _vectors(error.others)
    except RequestError as error:
        failure = Failure(code=error.code, message=str(error).removeprefix(f"{error.code}: "))
        if error.index is None and len(texts) > 1:
            middle = len(texts) // 2
            halves = (texts[:middle], texts[middle:])
            return [result for half in halves for result in _results(submit, half, _begun(submit, half))]
        failed = {error.index or 0: failure}
        others = None
    rest = [text for place, text in enumerate(texts) if place not in failed]
    if others is None:
        others = _results(submit, rest, _begun(submit, rest)) if rest else []
    good = iter(others)
    return [failed[place] if place in failed else next(good) for place in range(len(texts))]


def _vectors(embeddings: Embeddings) -> list[Result]:
    cut = set(embeddings.truncated)
    return [
        Vector(values=values, tokens=tokens, is_truncated=place in cut)
        for place, (values, tokens) in enumerate(zip(embeddings.vectors, embeddings.tokens, strict=True))
    ]
