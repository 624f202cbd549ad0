"""A stream of texts: order, what is in flight, and that a bad text costs itself alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client.embeddings import Embeddings
from bridge_client.errors import BridgeError, PoisonedInputError, RequestError
from bridge_client.stream import Failure, Vector, stream


def embeddings(texts: Sequence[str]) -> Embeddings:
    return Embeddings(
        vectors=np.array([[float(text.strip("!?*"))] for text in texts], np.float32).reshape(-1, 1),
        tokens=(1,) * len(texts),
        truncated=tuple(place for place, text in enumerate(texts) if text.endswith("*")),
        model="m",
        fingerprint="f",
        timing_ms={},
    )


def answer(texts: Sequence[str]) -> Embeddings:
    """Answer as a worker would: `!` kills it, `?` is refused, `??` is refused without an index."""
    if guilty := tuple(place for place, text in enumerate(texts) if text.endswith("!")):
        raise PoisonedInputError(guilty, None)
    for place, text in enumerate(texts):
        if text.endswith("?"):
            raise RequestError("input_too_long", "too long", retryable=False, index=None if "??" in text else place)
    return embeddings(texts)


def submitting(sent: list[int]) -> Callable[[Sequence[str]], Future[Embeddings]]:
    def submit(texts: Sequence[str]) -> Future[Embeddings]:
        sent.append(len(texts))
        future: Future[Embeddings] = Future()
        try:
            future.set_result(answer(texts))
        except BridgeError as error:
            future.set_exception(error)
        return future

    return submit


@given(st.lists(st.sampled_from(["", "!", "?", "??", "*"]), max_size=700))
def test_every_text_has_its_result_in_its_place(marks: list[str]) -> None:
    texts = [f"{number}{mark}" for number, mark in enumerate(marks)]
    results = list(stream(submitting([]), texts))
    assert len(results) == len(texts)
    for number, (mark, result) in enumerate(zip(marks, results, strict=True)):
        match result:
            case Vector(values=values, is_truncated=is_truncated):
                assert (values[0], is_truncated) == (number, mark == "*")
            case Failure(code=code):
                assert code == ("poisoned_input" if mark == "!" else "input_too_long")
                assert mark in ("!", "?", "??")


def test_one_bad_text_among_six_thousand_costs_one_row() -> None:
    texts = [str(number) for number in range(6000)]
    texts[4321] += "!"
    results = list(stream(submitting([]), texts))
    assert [place for place, result in enumerate(results) if isinstance(result, Failure)] == [4321]


def test_texts_are_read_a_few_thousand_ahead_and_no_more() -> None:
    sent: list[int] = []
    read = 0

    def texts() -> object:
        nonlocal read
        for number in range(100_000):
            read += 1
            yield str(number)

    results = stream(submitting(sent), texts())  # type: ignore[arg-type]
    next(results)
    assert read <= 17 * 256 + 1
    results.close()  # type: ignore[attr-defined]


def test_what_no_text_is_to_blame_for_ends_the_stream() -> None:
    def submit(texts: Sequence[str]) -> Future[Embeddings]:
        future: Future[Embeddings] = Future()
        future.set_exception(BridgeError("no worker"))
        return future

    with pytest.raises(BridgeError, match="no worker"):
        list(stream(submit, ["1"]))
