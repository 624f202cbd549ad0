"""Cutting and joining, and the checks of an answer, without a worker."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_client import PoisonedInputError, RequestError
from bridge_client.handshake import Served, Unusable
from bridge_client.place import Place
from bridge_client.requests import PIECE_BYTES, PIECE_TOKENS, Job, Parameters, Piece, read_answer
from bridge_client.worker_process import LineBuffer, printable
from embed_worker.protocol import Limits, ProtocolError, Success, decode_response, encode_success

SERVED = Served(model="m", fingerprint="f", dimension=2, limits=Limits())


def job_of(count: int) -> Job:
    return Job([str(number) for number in range(count)], Parameters(), timeout_s=1.0)


def members_of(piece: Piece, **changes: Any) -> dict[str, Any]:
    rows = np.array([[number, -number] for number in range(piece.start, piece.stop)], np.float32).reshape(-1, 2)
    members = {
        "model": "m",
        "fingerprint": "f",
        "count": len(piece),
        "dimension": 2,
        "embeddings_base64": base64.b64encode(rows.tobytes()).decode(),
        "tokens": list(range(piece.start, piece.stop)),
        "truncated": [index - piece.start for index in range(piece.start, piece.stop) if index % 3 == 0],
        "timing_ms": {"total": 1.0},
    }
    return members | changes


@given(st.lists(st.integers(0, 20_000), max_size=300))
def test_pieces_cover_the_call_in_order_and_are_bounded(lengths: list[int]) -> None:
    job = Job(["x" * length for length in lengths], Parameters(), timeout_s=1.0)
    pieces = list(job.pieces())
    assert [index for piece in pieces for index in range(piece.start, piece.stop)] == list(range(len(lengths)))
    assert sum(piece.weight for piece in pieces) == job.missing
    for piece in pieces:
        assert len(piece) == 1 or (piece.tokens <= PIECE_TOKENS and piece.bytes <= PIECE_BYTES) or not lengths


@given(st.integers(1, 60), st.data())
def test_however_a_call_is_cut_it_is_joined_rightly(count: int, data: st.DataObject) -> None:
    job = job_of(count)
    [whole] = job.pieces()
    waiting, done = [whole], []
    while waiting:
        piece = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        if len(piece) > 1 and data.draw(st.booleans()):
            waiting.extend(piece.cut(data.draw(st.integers(1, len(piece) - 1))))
        else:
            done.append(piece)
    guilty = set()
    for piece in data.draw(st.permutations(done)):
        assert not job.conclude()
        if len(piece) == 1 and data.draw(st.booleans()):
            guilty.add(piece.start)
            job.convict(piece.start)
        else:
            assert job.take(piece, read_answer(members_of(piece), piece, SERVED))
    assert job.conclude()
    job.deliver()
    error = job.future.exception(0)
    kept = [index for index in range(count) if index not in guilty]
    if guilty:
        assert isinstance(error, PoisonedInputError)
        assert error.indexes == tuple(sorted(guilty))
        result = error.others
    else:
        result = job.future.result(0)
    assert (result is None) == (not kept)
    if result is not None:
        assert result.vectors[:, 0].tolist() == kept
        assert result.tokens == tuple(kept)
        assert [kept[index] for index in result.truncated] == [index for index in kept if index % 3 == 0]


def test_only_bulk_work_waits_for_the_window_of_bulk_work() -> None:
    place = Place(0, replay=True)
    place.served = SERVED
    bulk = next(Job(["x" * 2000] * 10, Parameters(), timeout_s=1.0).pieces())
    short = next(job_of(1).pieces())
    sent = []
    while place.has_room(bulk):
        place.load(bulk)
        sent.append(bulk)
    assert 4 < len(sent) < 100
    place.load(bulk)
    sent.append(bulk)
    assert place.has_room(short), "also when the window of bulk work is more than full"
    for piece in sent:
        place.unload(piece)
    assert (place.requests, place.tokens, place.bulk_tokens, place.bytes) == (0, 0, 0, 0)
    for _ in range(256):
        assert place.has_room(short)
        place.load(short)
    assert not place.has_room(short)


def test_a_window_stays_within_what_the_worker_allows() -> None:
    place = Place(0, replay=True)
    place.served = dataclasses.replace(SERVED, limits=Limits(max_in_flight=2, max_in_flight_bytes=100))
    large = next(Job(["x" * 2000], Parameters(), timeout_s=1.0).pieces())
    assert place.has_room(large), "a request that is larger is admitted when alone"
    place.load(large)
    assert not place.has_room(next(job_of(1).pieces()))


def test_an_outcome_is_decided_once_and_a_cancelled_call_has_none() -> None:
    job = job_of(1)
    first, second = (RequestError(code, "", retryable=False) for code in "ab")
    assert job.settle(first)
    assert not job.settle(second)
    job.deliver()
    assert job.future.exception(0) is first
    cancelled = job_of(1)
    cancelled.future.cancel()
    assert not cancelled.settle(first)


def test_a_call_never_mixes_two_vector_spaces() -> None:
    job = job_of(2)
    first, second = next(job.pieces()).cut(1)
    other = Served(model="m", fingerprint="g", dimension=2, limits=Limits())
    assert job.take(first, read_answer(members_of(first), first, SERVED))
    assert not job.take(second, read_answer(members_of(second, fingerprint="g"), second, other))


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
    piece = next(job_of(3).pieces())
    read_answer(members_of(piece), piece, SERVED)
    with pytest.raises(ProtocolError):
        read_answer(members_of(piece, **changes), piece, SERVED)


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


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_protocol_error(line: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_response(line)


def test_what_the_worker_writes_is_what_the_client_reads() -> None:
    piece = next(job_of(3).pieces())
    response = decode_response(encode_success(7, 1, members_of(piece)))
    assert isinstance(response, Success)
    assert response.id == 7
    assert read_answer(response.members, piece, SERVED).vectors.tolist() == [[0, 0], [1, -1], [2, -2]]


def test_control_characters_are_escaped_and_newlines_stay() -> None:
    assert printable("a\x1b[2J\r\nb\x00") == "a\\x1b[2J\\r\nb\\x00"
