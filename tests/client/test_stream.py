"""A stream of texts of which some cannot be embedded: each costs its own row, and its error names its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client import (
    AsyncEmbedClient,
    ClientOptions,
    EmbedClient,
    Embeddings,
    PoisonedInputError,
    RequestError,
    RequestTimeoutError,
)
from bridge_client.stream import _embed_block
from bridge_client.testing import fake_client
from tests.client.conftest import WAIT_S
from tests.client.test_client import expected

QUICK = ClientOptions(backoff_initial_s=0.01, restart_budget=1000)


def joined(results: Iterator[Embeddings]) -> tuple[np.ndarray, dict[int, Exception]]:
    """Return the vectors of a stream, and its failures by their place in it."""
    vectors: list[np.ndarray] = []
    failures: dict[int, Exception] = {}
    for result in results:
        start = sum(map(len, vectors))
        failures |= {start + row: error for row, error in result.failures.items()}
        vectors.append(result.vectors)
    return np.concatenate(vectors), failures


def check(texts: list[Any], vectors: np.ndarray, bad: set[int]) -> None:
    good = [row for row in range(len(texts)) if row not in bad]
    assert len(vectors) == len(texts)
    assert np.isnan(vectors[sorted(bad)]).all()
    assert np.array_equal(vectors[good], expected(*(texts[row] for row in good)))


def test_one_poisoned_text_among_six_thousand_costs_one_row() -> None:
    texts = [f"text {number}" for number in range(6000)]
    texts[4321] = "a poison text"
    with fake_client(QUICK, poison="poison") as client:
        vectors, failures = joined(client.embed_iter_detailed(iter(texts), on_error="null"))
        check(texts, vectors, {4321})
        error = failures[4321]
        assert isinstance(error, PoisonedInputError)
        assert error.indexes == (4321,)
        assert failures.keys() == {4321}
        # Known now: refused at once, also at the start of a block.
        again = np.concatenate(list(client.embed_iter([*texts[4300:4330], "a poison text"], on_error="null")))
        check([*texts[4300:4330], "a poison text"], again, {21, 30})
        with pytest.raises(PoisonedInputError) as caught:
            list(client.embed_iter(texts))
        assert caught.value.index == 4321


def test_what_is_no_text_and_what_is_too_long_are_rows_without_a_vector() -> None:
    texts: list[Any] = [str(number) for number in range(50)]
    texts[7], texts[8], texts[23], texts[49] = None, "\ud800", "x" * 3000, 7
    with fake_client(max_line_bytes=2000) as client:
        vectors, failures = joined(client.embed_iter_detailed(texts, block_inputs=10, on_error="null"))
        check(texts, vectors, {7, 8, 23, 49})
        assert {place: (error.code, error.index) for place, error in failures.items()} == {  # type: ignore[attr-defined]
            7: ("invalid_request", 7),
            8: ("invalid_request", 8),
            23: ("input_too_long", 23),
            49: ("invalid_request", 49),
        }
        assert str(failures[7]) == "invalid_request: input 7 must be a string, not NoneType"
        for kind, words, start in ((TypeError, "input 7 ", 0), (RequestError, "input 0 ", 8)):
            with pytest.raises(kind, match=words):
                list(client.embed_iter(texts[start:], block_inputs=10))
        stream = client.embed_iter(texts, block_inputs=7)
        assert np.array_equal(next(stream), expected(*texts[:7])), "what comes before an error is good"
        with pytest.raises(TypeError, match="input 7 "):
            next(stream)
        del texts[7:9]
        with pytest.raises(RequestError, match="input 21 makes a line") as caught:
            list(client.embed_iter(texts, block_inputs=10))
        assert caught.value.index == 21


def test_a_stream_of_bad_rows_has_the_models_dimension() -> None:
    with fake_client() as client:
        [result] = client.embed_iter_detailed([None, None], on_error="null")  # type: ignore[list-item]
        assert result.vectors.shape == (2, 8)
        assert (result.tokens, result.model, len(result.failures)) == ((0, 0), "fake-model", 2)
        assert list(client.embed_iter([])) == []


def answer(texts: Sequence[str], named: bool) -> Embeddings | RequestError:
    """Do as a worker that cannot embed "bad", and tells of the first such, or only that there is one."""
    if "bad" in texts:
        index = texts.index("bad") if named else None
        return RequestError("inference_failed", "as told", retryable=False, index=index)
    vectors = expected(*texts)
    tokens = tuple(range(len(texts)))
    return Embeddings(
        vectors=vectors, dimension=8, tokens=tokens, truncated=(), model="m", fingerprint="f", timing_ms={}
    )


@given(st.lists(st.sampled_from(["a", "b", "bad", None]), min_size=1, max_size=40), st.booleans())
def test_whoever_is_at_fault_is_found_with_and_without_a_name(texts: list[Any], named: bool) -> None:
    plan = _embed_block(100, texts, "null")
    asked = next(plan)
    result = None
    while result is None:
        outcome = answer(asked, named)
        try:
            asked = plan.throw(outcome) if isinstance(outcome, RequestError) else plan.send(outcome)
        except StopIteration as done:
            result = done.value
    bad = {row for row, text in enumerate(texts) if text in ("bad", None)}
    check(texts, result.vectors, bad)
    assert result.failures.keys() == bad
    for row, error in result.failures.items():
        assert getattr(error, "index", None) in ((100 + row,) if named or texts[row] is None else (None,))


def test_what_no_input_is_to_blame_for_is_raised_in_any_case() -> None:
    with fake_client(error_after="0:internal_error") as client, pytest.raises(RequestError, match="internal_error"):
        list(client.embed_iter(["a"], on_error="null"))
    with fake_client(ClientOptions(request_timeout_s=0.05), latency=3600.0) as client:
        client.info(timeout_s=WAIT_S)
        with pytest.raises(RequestTimeoutError):
            list(client.embed_iter(["a"], on_error="null"))


def test_results_tell_what_the_matrix_cannot() -> None:
    with fake_client() as client:
        [first, second] = client.embed_iter_detailed(["one two", "word " * 600, "three"], block_inputs=2)
    assert (first.tokens, first.truncated, second.tokens) == ((4, 602), (1,), (3,))
    assert second.fingerprint == "fake000000000001"


def test_awaited_streams_do_the_same_over_a_client_that_others_share() -> None:
    texts: list[Any] = [str(number) for number in range(50)]
    texts[7] = None

    async def scenario(client: EmbedClient) -> np.ndarray:
        shared = AsyncEmbedClient(client=client)
        blocks = [block async for block in shared.embed_iter(texts, block_inputs=10, on_error="null")]
        await asyncio.gather(*(shared.embed(str(number)) for number in range(3000)))
        await shared.close()
        return np.concatenate(blocks)

    with fake_client() as client:
        check(texts, asyncio.run(asyncio.wait_for(scenario(client), 3 * WAIT_S)), {7})
        assert np.array_equal(client.embed("still open"), expected("still open"))
        with pytest.raises(TypeError, match="either `client`"):
            AsyncEmbedClient(client=client, workers=2)
        with pytest.raises(TypeError, match="either `client`"):
            AsyncEmbedClient(client.options, client=client)
