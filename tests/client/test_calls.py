"""Cutting and joining, and the checks of an answer, without a worker."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client import PoisonedInputError, RequestError
from bridge_client.calls import EmbedCall, Parameters, TokenizeCall, TokenizeParameters
from bridge_client.chunks import CHUNK_BYTES, CHUNK_TOKENS, Chunk, InputType
from bridge_client.embeddings import Embeddings, Precision
from bridge_client.futures import CallFuture
from bridge_client.handshake import Served, Unusable
from bridge_client.worker_process import LineBuffer, WorkerProcess, printable
from bridge_client.worker_slot import Generation
from embed_worker.protocol import Limits, ProtocolError, Success, Tokenize, decode_response, encode_success

SERVED = Served(model="m", fingerprint="f", dimension=2, limits=Limits())


def future_of(call: EmbedCall) -> CallFuture[Embeddings]:
    assert isinstance(call.outlet, CallFuture)
    return call.outlet


def call_of(count: int) -> EmbedCall:
    return EmbedCall([str(number) for number in range(count)], Parameters(), timeout_s=1.0)


def members_of(chunk: Chunk, **changes: Any) -> dict[str, Any]:
    rows = np.array([[number, -number] for number in range(chunk.start, chunk.stop)], np.float32).reshape(-1, 2)
    members = {
        "model": "m",
        "fingerprint": "f",
        "count": len(chunk),
        "dimension": 2,
        "embeddings_base64": base64.b64encode(rows.tobytes()).decode(),
        "tokens": list(range(chunk.start, chunk.stop)),
        "truncated": [index - chunk.start for index in range(chunk.start, chunk.stop) if index % 3 == 0],
        "timing_ms": {"total": 1.0},
    }
    return members | changes


@given(st.lists(st.integers(0, 20_000), max_size=300))
def test_chunks_cover_the_call_in_order_and_are_bounded(lengths: list[int]) -> None:
    call = EmbedCall(["x" * length for length in lengths], Parameters(), timeout_s=1.0)
    chunks = list(call.chunks())
    assert [index for chunk in chunks for index in range(chunk.start, chunk.stop)] == list(range(len(lengths)))
    assert sum(chunk.weight for chunk in chunks) == call.missing
    for chunk in chunks:
        assert len(chunk) == 1 or (chunk.tokens <= CHUNK_TOKENS and chunk.bytes <= CHUNK_BYTES) or not lengths


@given(st.integers(1, 60), st.data())
def test_however_a_call_is_cut_it_is_joined_rightly(count: int, data: st.DataObject) -> None:
    call = call_of(count)
    [whole] = call.chunks()
    waiting, done = [whole], []
    while waiting:
        chunk = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        if len(chunk) > 1 and data.draw(st.booleans()):
            waiting.extend(chunk.cut(data.draw(st.integers(1, len(chunk) - 1))))
        else:
            done.append(chunk)
    blamed = set()
    for chunk in data.draw(st.permutations(done)):
        assert not call.conclude()
        if len(chunk) == 1 and data.draw(st.booleans()):
            blamed.add(chunk.start)
            call.blame(chunk.start)
        else:
            assert call.take(chunk, chunk.call.read(members_of(chunk), chunk, SERVED))
    assert call.conclude()
    call.deliver()
    error = future_of(call).exception(0)
    kept = [index for index in range(count) if index not in blamed]
    if blamed:
        assert isinstance(error, PoisonedInputError)
        assert error.indexes == tuple(sorted(blamed))
        result = error.others
    else:
        result = future_of(call).result(0)
    assert (result is None) == (not kept)
    if result is not None:
        assert result.vectors[:, 0].tolist() == kept
        assert result.tokens == tuple(kept)
        assert [kept[index] for index in result.truncated] == [index for index in kept if index % 3 == 0]


def generation_of(served: Served) -> Generation:
    generation = Generation(cast(WorkerProcess, None))  # nothing is sent
    generation.served = served
    return generation


def test_only_bulk_work_waits_for_the_window_of_bulk_work() -> None:
    generation = generation_of(SERVED)
    bulk = next(EmbedCall(["x" * 2000] * 10, Parameters(), timeout_s=1.0).chunks())
    short = next(call_of(1).chunks())
    sent = []
    while generation.has_room(bulk):
        generation.count(bulk, 1)
        sent.append(bulk)
    assert 4 < len(sent) < 100
    generation.count(bulk, 1)
    sent.append(bulk)
    assert generation.has_room(short), "also when the window of bulk work is more than full"
    for chunk in sent:
        generation.count(chunk, -1)
    assert (generation.requests, generation.tokens, generation.bulk_tokens, generation.bytes) == (0, 0, 0, 0)
    for _ in range(256):
        assert generation.has_room(short)
        generation.count(short, 1)
    assert not generation.has_room(short)


def test_a_window_stays_within_what_the_worker_allows() -> None:
    generation = generation_of(dataclasses.replace(SERVED, limits=Limits(max_in_flight=2, max_in_flight_bytes=100)))
    large = next(EmbedCall(["x" * 2000], Parameters(), timeout_s=1.0).chunks())
    assert generation.has_room(large), "a request that is larger is admitted when alone"
    generation.count(large, 1)
    assert not generation.has_room(next(call_of(1).chunks()))


def test_an_outcome_is_decided_once_and_a_cancelled_call_has_none() -> None:
    call = call_of(1)
    first, second = (RequestError(code, "", retryable=False) for code in "ab")
    assert call.settle(first)
    assert not call.settle(second)
    call.deliver()
    assert future_of(call).exception(0) is first
    cancelled = call_of(1)
    future_of(cancelled).cancel()
    assert not cancelled.settle(first)


def test_a_call_never_mixes_two_vector_spaces() -> None:
    call = call_of(2)
    first, second = next(call.chunks()).cut(1)
    other = Served(model="m", fingerprint="g", dimension=2, limits=Limits())
    assert call.take(first, first.call.read(members_of(first), first, SERVED))
    assert not call.take(second, second.call.read(members_of(second, fingerprint="g"), second, other))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 2},
        {"dimension": 3},
        {"dimension": None},
        {"model": "n"},
        {"fingerprint": "g"},
        {"embeddings_base64": None},
        {"embeddings_base64": "AAAA"},
        {"embeddings_base64": "not base64!"},
        {"embeddings_base64": "é"},
        {"embeddings_base64": base64.b64encode(np.full(6, np.nan, np.float32).tobytes()).decode()},
        {"embeddings_base64": base64.b64encode(np.full(6, np.inf, np.float32).tobytes()).decode()},
        {"tokens": [1, 2]},
        {"tokens": [1, 2, "3"]},
        {"tokens": [1, 2, -3]},
        {"tokens": None},
        {"truncated": [3]},
        {"truncated": None},
    ],
)
def test_an_answer_that_does_not_fit_is_refused_whole(changes: dict[str, Any]) -> None:
    chunk = next(call_of(3).chunks())
    chunk.call.read(members_of(chunk), chunk, SERVED)
    with pytest.raises(ProtocolError):
        chunk.call.read(members_of(chunk, **changes), chunk, SERVED)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": 2},
        {"protocol": None},
        {"protocol": "1"},
        {"protocol": True},
        {"model": None},
        {"model": ""},
        {"fingerprint": ""},
        {"dimension": 0},
        {"dimension": True},
        {"dimension": "384"},
    ],
)
def test_a_handshake_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    info = {"protocol": 1, "model": "m", "fingerprint": "f", "dimension": 2, "limits": {"max_inputs": 7, "new": 1}}
    assert Served.from_info(info).limits == Limits(max_inputs=7)
    with pytest.raises(Unusable):
        Served.from_info(info | changes)


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.data())
def test_lines_do_not_depend_on_how_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"a tail"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    buffer, got = LineBuffer(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got.extend(buffer.feed(stream[start:stop]))
    assert got == [line for line in lines if line.strip()]
    assert buffer.partial_bytes == len(b"a tail"), "only a newline completes a line"


def test_what_the_worker_writes_is_what_the_client_reads() -> None:
    chunk = next(call_of(3).chunks())
    response = decode_response(encode_success(7, 1, members_of(chunk)))
    assert isinstance(response, Success)
    assert response.id == 7
    assert chunk.call.read(response.members, chunk, SERVED).vectors.tolist() == [[0, 0], [1, -1], [2, -2]]


def test_control_characters_are_escaped_and_newlines_stay() -> None:
    assert printable("a\x1b[2J\r\nb\x00") == "a\\x1b[2J\\r\nb\\x00"


# Prompts and models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "input_type", "prompt_name"),
    [
        ({"query": "q: ", "document": "d: "}, "query", "query"),
        ({"query": "q: ", "document": "d: "}, "document", "document"),
        ({"query": "q: ", "document": "", "passage": "p: "}, "document", "passage"),
        ({"corpus": "c: ", "passage": "p: "}, "document", "passage"),
        ({"corpus": "c: "}, "document", "corpus"),
        ({"query": "", "document": ""}, "query", None),
        ({}, "document", None),
        ({"clustering": "x: "}, "query", None),
    ],
)
def test_queries_and_documents_get_the_first_prompt_that_is_not_empty_or_none(
    prompts: dict[str, str], input_type: InputType, prompt_name: str | None
) -> None:
    request = EmbedCall(["a"], Parameters(input_type=input_type), timeout_s=1.0).request(0, 1, prompts)
    assert (request.prompt_name, request.prompt) == (prompt_name, "" if prompt_name is None else None)


def test_what_contradicts_an_input_type_is_refused() -> None:
    with pytest.raises(ValueError, match="query"):
        EmbedCall(["a"], Parameters(input_type="question"), timeout_s=1.0)  # type: ignore[arg-type]
    for name in ("prompt", "prompt_name", "model"):
        with pytest.raises(ValueError, match="input_type"):
            EmbedCall(["a"], Parameters(input_type="query", **{name: "x"}), timeout_s=1.0)  # type: ignore[arg-type]


def test_an_answer_of_another_model_says_itself_which_it_is() -> None:
    call = EmbedCall(["a"], Parameters(model="other"), timeout_s=1.0)
    [chunk] = call.chunks()
    answer = chunk.call.read(members_of(chunk, model="other", fingerprint="g"), chunk, SERVED)
    assert (answer.served.model, answer.served.fingerprint, answer.vectors.shape) == ("other", "g", (1, 2))
    for change in ({"model": ""}, {"fingerprint": None}, {"dimension": 0}, {"dimension": True}, {"dimension": 3}):
        with pytest.raises(ProtocolError):
            chunk.call.read(members_of(chunk, **change), chunk, SERVED)


# Fewer bits, and tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype", "width"), [("float16", np.float16, 11), ("ubinary", np.uint8, 2)])
def test_vectors_of_fewer_bits_are_joined_as_they_are(precision: Precision, dtype: type, width: int) -> None:
    call = EmbedCall(["a", "b", "c"], Parameters(precision=precision, dimensions=11), timeout_s=1.0)
    right: np.ndarray = np.arange(3 * width).reshape(3, width).astype(dtype)
    request = call.request(0, 3, {})
    assert request.encoding_format == f"base64_{precision}"
    for chunk in next(call.chunks()).cut(2):
        packed = base64.b64encode(right[chunk.start : chunk.stop].tobytes()).decode()
        members = members_of(chunk, dimension=11, embeddings_base64=packed, truncated=[])
        call.take(chunk, chunk.call.read(members, chunk, SERVED))
        with pytest.raises(ProtocolError):
            chunk.call.read(members | {"embeddings_base64": packed[:-4]}, chunk, SERVED)
    assert call.conclude()
    call.deliver()
    result = future_of(call).result(0)
    assert (result.vectors.dtype, result.dimension) == (np.dtype(dtype), 11)
    assert np.array_equal(result.vectors, right)
    result.vectors[0] = 0


def test_half_precision_that_is_not_finite_is_refused() -> None:
    chunk = next(EmbedCall(["a"], Parameters(precision="float16"), timeout_s=1.0).chunks())
    packed = base64.b64encode(np.array([1, np.inf], np.float16).tobytes()).decode()
    with pytest.raises(ProtocolError, match="finite"):
        chunk.call.read(members_of(chunk, embeddings_base64=packed), chunk, SERVED)


def test_an_unknown_precision_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="`precision` must be one of 'float32', 'float16', 'ubinary', not 'int8'"):
        EmbedCall(["a"], Parameters(precision="int8"), timeout_s=1.0)  # type: ignore[arg-type]


def tokens_of(chunk: Chunk, **changes: Any) -> dict[str, Any]:
    members = {"model": "m", "fingerprint": "f", "count": len(chunk), "truncated": [], "tokens": [3] * len(chunk)}
    members["offsets"] = [[[0, 1], [1, 1], [1, len(text)]] for text in chunk.texts]
    return members | changes


def test_counts_and_ranges_are_joined_in_their_order() -> None:
    call = TokenizeCall(["ab", "😀c", "xyz"], TokenizeParameters(offsets=True, truncate=False), timeout_s=1.0)
    first, second = next(call.chunks()).cut(1)
    assert call.request(0, 1, {}) == Tokenize(inputs=["ab"], truncate=False, offsets=True)
    assert call.take(second, call.read(tokens_of(second, truncated=[1]), second, SERVED))
    assert call.take(first, call.read(tokens_of(first, tokens=[7]), first, SERVED))
    assert call.conclude()
    call.deliver()
    assert isinstance(call.outlet, CallFuture)
    result = call.outlet.result(0)
    assert (result.tokens, result.truncated, result.model, result.fingerprint) == ((7, 3, 3), (2,), "m", "f")
    assert result.offsets is not None
    assert [ranges.tolist() for ranges in result.offsets] == [
        [[0, 1], [1, 1], [1, 2]],
        [[0, 1], [1, 1], [1, 2]],
        [[0, 1], [1, 1], [1, 3]],
    ]
    assert all(ranges.dtype == np.int64 for ranges in result.offsets)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 1},
        {"tokens": [1]},
        {"tokens": [1, -1]},
        {"truncated": [2]},
        {"fingerprint": "g"},
        {"offsets": None},
        {"offsets": [[]]},
        {"offsets": [[], [[0, 1, 2]]]},
        {"offsets": [[], [[0, 1], [2]]]},
        {"offsets": [[], [0, 1]]},
        {"offsets": [[], [[0.0, 1.0]]]},
        {"offsets": [[], [["0", "1"]]]},
        {"offsets": [[], [[0, 3]]]},
        {"offsets": [[], [[-1, 1]]]},
        {"offsets": [[], [[2, 1]]]},
    ],
)
def test_an_answer_with_tokens_that_does_not_fit_is_refused_whole(changes: dict[str, Any]) -> None:
    call = TokenizeCall(["ab", "cd"], TokenizeParameters(offsets=True), timeout_s=1.0)
    [chunk] = call.chunks()
    call.read(tokens_of(chunk), chunk, SERVED)
    with pytest.raises(ProtocolError):
        call.read(tokens_of(chunk, **changes), chunk, SERVED)
