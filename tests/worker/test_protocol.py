"""The codec: whatever the bytes are, a line is a request or a ProtocolError, and answers are what was promised."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embed_worker.inference.pooling import at_precision
from embed_worker.protocol import (
    METHODS,
    Cancel,
    Embed,
    EncodingFormat,
    ErrorCode,
    Failure,
    Info,
    Limits,
    LoadModel,
    Metrics,
    Ping,
    ProtocolError,
    Request,
    Shutdown,
    Success,
    Tokenize,
    UnloadModel,
    decode_matrix,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_success,
    encode_tokens,
    encode_vectors,
    parse_line,
)
from embed_worker.protocol.requests import kind_of

LIMITS = Limits(max_inputs=4, max_text_bytes=40)
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)


def decode(line: bytes | str | dict[str, Any]) -> Request:
    if isinstance(line, dict):
        line = json.dumps(line)
    return decode_request(parse_line(line.encode() if isinstance(line, str) else line), LIMITS)


def refusal(line: bytes | str | dict[str, Any]) -> ProtocolError:
    with pytest.raises(ProtocolError) as refused:
        decode(line)
    assert str(refused.value).isprintable()
    json.dumps(str(refused.value), ensure_ascii=False).encode()  # it can be written as it is
    return refused.value


# Requests that are fine


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ('{"inputs": "a"}', Embed(inputs=["a"])),
        ('{"inputs": ["a", ""]}', Embed(inputs=["a", ""])),
        ('{"inputs": []}', Embed(inputs=[])),
        ('{"method": "embed_batch", "inputs": []}', Embed(inputs=[])),
        ('{"params": {"inputs": "a"}}', Embed(inputs=["a"])),
        (
            '{"method": "embed", "params": {"inputs": "a", "model": "m", "normalize": false, "dimensions": 3, '
            '"prompt_name": "query", "truncate": false, "encoding_format": "base64", "deadline_ms": 0}}',
            Embed(
                inputs=["a"],
                model="m",
                normalize=False,
                dimensions=3,
                prompt_name="query",
                truncate=False,
                encoding_format=EncodingFormat.BASE64,
                deadline_ms=0.0,
            ),
        ),
        (
            '{"inputs": "a", "model": null, "normalize": null, "dimensions": null, "prompt_name": null, "prompt": null,'
            ' "truncate": null, "encoding_format": null, "deadline_ms": null}',
            Embed(inputs=["a"]),
        ),
        ('{"inputs": "a", "prompt": "p: "}', Embed(inputs=["a"], prompt="p: ")),
        ('{"inputs": "a", "prompt": "p", "prompt_name": null}', Embed(inputs=["a"], prompt="p")),
        ('{"method": "info"}', Info()),
        ('{"method": "info", "model": "m"}', Info(model="m")),
        ('{"method": "ping", "params": {}}', Ping()),
        ('{"method": "metrics"}', Metrics()),
        ('{"method": "cancel", "target": ""}', Cancel(target="")),
        ('{"method": "cancel", "target": 0}', Cancel(target=0)),
        ('{"method": "load_model", "model": "m", "cache_dir": [1, {}]}', LoadModel(model="m")),
        ('{"method": "unload_model", "model": "m"}', UnloadModel(model="m")),
        ('{"method": "shutdown"}', Shutdown()),
    ],
)
def test_a_line_becomes_its_request(line: str, request_: Request) -> None:
    assert decode(line) == request_


def test_the_last_of_duplicate_keys_wins() -> None:
    envelope = parse_line(b'{"id": 1, "inputs": "a", "id": "2", "inputs": "b"}')
    assert envelope.id == "2"
    assert decode_request(envelope, LIMITS) == Embed(inputs=["b"])
    # Also on the way that reads what orjson refuses.
    assert decode('{"inputs": "a", "method": "\\ud800", "method": "embed", "inputs": "b"}') == Embed(inputs=["b"])


@pytest.mark.parametrize("deadline", ["0", "1", str(2**63), str(2**64), "1" + "0" * 30, "1" + "0" * 300])
def test_a_deadline_of_any_size_is_a_number_of_milliseconds(deadline: str) -> None:
    request = decode(f'{{"inputs": "a", "deadline_ms": {deadline}}}')
    assert isinstance(request, Embed)
    assert request.deadline_ms == float(min(int(deadline), 10**18))


# Ids

IDS = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=64).filter(lambda text: len(text.encode()) <= 256),
)


@PROPERTY
@given(IDS)
@example(0)
@example("")
@example("1")
@example(2**53 - 1)
@example(1 - 2**53)
@example("é" * 128)
def test_an_id_is_echoed_exactly(request_id: int | str) -> None:
    envelope = parse_line(json.dumps({"id": request_id, "inputs": "a"}).encode())
    assert envelope.id == request_id
    assert type(envelope.id) is type(request_id)
    answer = json.loads(encode_success(envelope.id, 3, {}))
    assert answer == {"id": request_id, "status": "ok"}


@pytest.mark.parametrize(
    "request_id",
    ["true", "false", "1.0", "1e3", "[1]", "{}", str(2**53), str(-(2**53)), str(2**64), "9" * 5000, "1e400",
     '"' + "x" * 257 + '"', '"' + "é" * 129 + '"', '"\\ud800"'],
)  # fmt: skip
def test_anything_else_is_no_id(request_id: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_line(f'{{"id": {request_id}, "inputs": "a"}}'.encode())
    assert refused.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("line", ['{"id": null, "inputs": "a"}', '{"inputs": "a"}'])
def test_an_absent_or_null_id_is_unnumbered(line: str) -> None:
    assert parse_line(line.encode()).id is None


# Lines that are no requests


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff\xfe{}",
        b'{"inputs": "\xff"}',
        b'{"inputs": "\xed\xa0\x80"}',  # a surrogate in UTF-8 is not UTF-8
        b"{}{}",
        b"{'inputs': 'a'}",
        b'{"deadline_ms": NaN, "inputs": "a"}',
        b'{"deadline_ms": Infinity, "inputs": "a"}',
        b'{"deadline_ms": -Infinity, "inputs": "a"}',
        b'{"inputs": "a\x01b"}',
        b'{"inputs": "a",}',
        b'{"deadline_ms": 01, "inputs": "a"}',
        b"null",
        b"true",
        b"3",
        b'"text"',
        b"[]",
        b"\x00",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": ' * 3000 + b"1" + b"}" * 3000,
        b'{"a": ' * 3000 + rb'"\ud800"' + b"}" * 3000,
    ],
)
def test_what_is_not_a_json_object_is_a_parse_error(line: bytes) -> None:
    error = refusal(line)
    assert error.code is ErrorCode.PARSE_ERROR
    assert len(str(error)) < 200


@PROPERTY
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_a_protocol_error(line: bytes) -> None:
    try:
        decode_request(parse_line(line), LIMITS)
    except ProtocolError as error:
        encode_error(None, 1, error.code, str(error), error.index)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted({name for spec in METHODS.values() for name in spec.parameters} | {"id", "method", "params", "input"})
OBJECTS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=5)


@PROPERTY
@given(
    OBJECTS,
    st.none() | st.sampled_from(sorted(METHODS)) | JSON,
    st.none() | OBJECTS,
    st.booleans(),
)
def test_any_object_is_a_request_or_a_protocol_error(
    members: dict[str, Any], method: Any, params: Any, ensure_ascii: bool
) -> None:
    message = dict(members)
    if method is not None:
        message["method"] = method
    if params is not None:
        message["params"] = params
    line = json.dumps(message, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    try:
        request = decode_request(parse_line(line), LIMITS)
    except ProtocolError as error:
        encode_error(None, 1, error.code, str(error), error.index)
        return
    if isinstance(request, Embed):
        assert len(request.inputs) <= LIMITS.max_inputs
        assert all(len(text.encode()) <= LIMITS.max_text_bytes for text in request.inputs)


# Members


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "neither `method` nor `inputs`"),
        ('{"params": {}}', "neither `method` nor `inputs`"),
        ('{"params": 5}', "neither `method` nor `inputs`"),
        ('{"method": 5}', "`method` must be a string, not a number"),
        ('{"method": null, "inputs": "a"}', "`method` must be a string, not null"),
        ('{"method": "ping", "params": null}', "`params` must be an object, not null"),
        ('{"method": "ping", "params": []}', "`params` must be an object, not a list"),
        ('{"method": "embed", "params": {"inputs": "a"}, "model": "m"}', "'model': move it into `params`"),
        ('{"inputs": "a", "params": {}}', "'inputs': move it into `params`"),
        ('{"params": {"inputs": "a", "id": 1}}', "no member 'id'"),
        ('{"input": "a", "method": "embed"}', "did you mean `inputs`?"),
        ('{"text": "a", "method": "embed"}', "has no member 'text'; did you mean `inputs`?"),
        ('{"method": "embed_batch", "params": {"texts": ["a"]}}', "did you mean `inputs`?"),
        ('{"documents": ["a"], "method": "embed"}', "did you mean `inputs`?"),
        ('{"texts": ["a"]}', "neither `method` nor `inputs`; did you mean `inputs`?"),
        ('{"params": {"documents": ["a"]}}', "neither `method` nor `inputs`; did you mean `inputs`?"),
        ('{"inputs": "a", "Dimension": 3}', "did you mean `dimensions`?"),
        ('{"inputs": "a", "zzz": 3}', "`embed` has no member 'zzz'"),
        ('{"method": "ping", "inputs": "a"}', "`ping` has no member"),
        ('{"method": "embed"}', "`embed` needs the member `inputs`"),
        ('{"method": "cancel"}', "`cancel` needs the member `target`"),
        ('{"method": "cancel", "target": null}', "`target` must be"),
        ('{"method": "cancel", "target": true}', "`target` must be"),
        ('{"method": "load_model"}', "needs the member `model`"),
        ('{"method": "load_model", "model": null}', "`model` must be a string, not null"),
        ('{"method": "unload_model", "model": 3}', "`model` must be a string"),
        ('{"inputs": null}', "must be a string or a list of strings, not null"),
        ('{"inputs": {}}', "must be a string or a list of strings, not an object"),
        ('{"inputs": true}', "must be a string or a list of strings, not a boolean"),
        ('{"inputs": "a", "model": 5}', "`model` must be a string"),
        ('{"inputs": "a", "normalize": 1}', "`normalize` must be true or false, not a number"),
        ('{"inputs": "a", "normalize": "yes"}', "`normalize` must be true or false, not a string"),
        ('{"inputs": "a", "truncate": 0}', "`truncate` must be true or false"),
        ('{"inputs": "a", "dimensions": 0}', "`dimensions` must be an integer"),
        ('{"inputs": "a", "dimensions": true}', "`dimensions` must be an integer"),
        ('{"inputs": "a", "dimensions": 2.0}', "`dimensions` must be an integer"),
        ('{"inputs": "a", "dimensions": 1e400}', "`dimensions` must be an integer"),
        ('{"inputs": "a", "deadline_ms": -1}', "`deadline_ms` must be an integer"),
        ('{"inputs": "a", "deadline_ms": 1.5}', "`deadline_ms` must be an integer"),
        ('{"inputs": "a", "deadline_ms": true}', "`deadline_ms` must be an integer"),
        ('{"inputs": "a", "deadline_ms": "1"}', "`deadline_ms` must be an integer"),
        ('{"inputs": "a", "deadline_ms": 1e400}', "`deadline_ms` must be an integer"),
        ('{"inputs": "a", "deadline_ms": -1e400}', "`deadline_ms` must be an integer"),
        ('{"inputs": "a", "encoding_format": "hex"}', "`encoding_format` must be one of"),
        ('{"inputs": "a", "encoding_format": []}', "`encoding_format` must be one of"),
        ('{"inputs": "a", "encoding_format": {}}', "`encoding_format` must be one of"),
        ('{"inputs": "a", "prompt": 3}', "`prompt` must be a string"),
        ('{"inputs": "a", "prompt": "' + "p" * 41 + '"}', "`prompt` has more than 40 bytes"),
        ('{"inputs": "a", "prompt": "p", "prompt_name": "query"}', "exclude each other"),
    ],
)
def test_what_is_wrong_with_a_member_is_said(line: str, words: str) -> None:
    error = refusal(line)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert words in str(error)


def test_a_number_as_long_as_a_book_is_refused_or_bounded() -> None:
    digits = "9" * 100_000
    assert refusal(f'{{"inputs": "a", "dimensions": {digits}}}').code is ErrorCode.INVALID_REQUEST
    assert refusal(f'{{"inputs": "a", "dimensions": -{digits}}}').code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("method", ["Embed", "embedd", "", "x" * 100_000, "\u0000", "pïng"])
def test_an_unknown_method_is_quoted_in_a_short_message(method: str) -> None:
    error = refusal({"method": method})
    assert error.code is ErrorCode.UNKNOWN_METHOD
    assert len(str(error)) < 300


def test_a_misspelt_method_is_told_which_was_meant() -> None:
    assert "did you mean `embed`?" in str(refusal({"method": "embedd"}))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"method": "nonsense", "params": 5}', ErrorCode.UNKNOWN_METHOD),
        ('{"method": "nonsense", "inputs": ["\\ud800"]}', ErrorCode.UNKNOWN_METHOD),
        ('{"method": "embed", "inputs": [1, 2, 3, 4, 5]}', ErrorCode.TOO_MANY_INPUTS),
        ('{"id": true, "method": "nonsense"}', ErrorCode.INVALID_REQUEST),
    ],
)
def test_the_first_check_that_fails_answers(line: str, code: ErrorCode) -> None:
    assert refusal(line).code is code


# Inputs


def test_too_many_inputs_are_counted_not_listed() -> None:
    error = refusal({"inputs": ["secret"] * 5})
    assert error.code is ErrorCode.TOO_MANY_INPUTS
    assert "secret" not in str(error)
    assert decode({"inputs": ["a"] * 4}) == Embed(inputs=["a"] * 4)


@pytest.mark.parametrize(("text", "fits"), [("a" * 40, True), ("a" * 41, False), ("é" * 20, True), ("é" * 21, False)])
def test_a_text_is_measured_in_bytes(text: str, fits: bool) -> None:
    if fits:
        assert decode({"inputs": ["a", text]}) == Embed(inputs=["a", text])
        return
    error = refusal({"inputs": ["a", text]})
    assert (error.code, error.index) == (ErrorCode.INPUT_TOO_LONG, 1)


@pytest.mark.parametrize("value", [None, 1, True, ["a"], {}])
def test_an_input_that_is_no_text_is_named_by_its_index(value: Any) -> None:
    error = refusal({"inputs": ["a", value]})
    assert (error.code, error.index) == (ErrorCode.INVALID_REQUEST, 1)


@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "\\udc00\\ud800", "\\ud800x"])
def test_a_lone_surrogate_is_an_invalid_request_under_its_own_id_with_its_index(escape: str) -> None:
    line = f'{{"id": 7, "inputs": ["fine", "a{escape}b"]}}'.encode()
    envelope = parse_line(line)
    assert envelope.id == 7
    with pytest.raises(ProtocolError) as refused:
        decode_request(envelope, LIMITS)
    assert (refused.value.code, refused.value.index) == (ErrorCode.INVALID_REQUEST, 1)
    assert refusal(f'{{"params": {{"inputs": "{escape}"}}}}').index == 0


@pytest.mark.parametrize("member", ["model", "prompt", "prompt_name"])
def test_a_lone_surrogate_in_another_member_is_named(member: str) -> None:
    error = refusal(f'{{"inputs": "a", "{member}": "\\ud800"}}')
    assert (error.code, error.index) == (ErrorCode.INVALID_REQUEST, None)
    assert member in str(error)
    assert refusal('{"inputs": "a", "\\ud800": 1}').code is ErrorCode.INVALID_REQUEST


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert decode('{"inputs": "\\ud83d\\ude00"}') == Embed(inputs=["😀"])
    # Read by the slower way too, because something else in the line is unusual.
    assert decode('{"inputs": "\\ud83d\\ude00", "model": "\\ud800", "model": "m"}') == Embed(inputs=["😀"], model="m")


def test_a_surrogate_in_what_is_ignored_does_not_matter() -> None:
    assert decode('{"method": "load_model", "model": "m", "cache_dir": {"a": "\\ud800"}}') == LoadModel(model="m")


# Answers


def test_a_success_begins_with_its_id_and_ends_with_one_newline() -> None:
    line = encode_success("a\n", 9, {"b": 1})
    assert line == b'{"id":"a\\n","status":"ok","b":1}\n'
    assert encode_success(None, 9, {}) == b'{"id":null,"line":9,"status":"ok"}\n'


def test_an_error_says_everything_a_host_branches_on() -> None:
    assert json.loads(encode_error(7, 9, ErrorCode.INPUT_TOO_LONG, "m", 3)) == {
        "id": 7,
        "status": "error",
        "code": "input_too_long",
        "message": "m",
        "retryable": False,
        "index": 3,
    }
    unnumbered = encode_error(None, 9, ErrorCode.SHUTTING_DOWN, "m")
    assert list(json.loads(unnumbered)) == ["id", "line", "status", "code", "message", "retryable"]
    assert json.loads(unnumbered)["retryable"] is True


def test_exactly_four_codes_are_worth_another_try() -> None:
    assert {code.value for code in ErrorCode if code.retryable} == {
        "deadline_exceeded",
        "shutting_down",
        "out_of_memory",
        "internal_error",
    }
    assert len(ErrorCode) == 16


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@PROPERTY
@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), max_size=4), st.integers(1, 3), st.none() | st.just(7))
@example([[1e-45, -0.0, 3.4028234663852886e38]], 1, None)
def test_numbers_and_base64_decode_to_identical_bits(rows: list[list[float]], repeat: int, request_id: Any) -> None:
    matrix = np.array(rows * repeat, np.float32).reshape(-1, 3)
    before, after = {"count": len(matrix), "dimension": 3}, {"tokens": [1] * len(matrix)}
    numbers, packed = (
        json.loads(encode_vectors(request_id, 5, before, matrix, encoding, after))
        for encoding in (EncodingFormat.FLOAT, EncodingFormat.BASE64)
    )
    assert list(numbers)[-2:] == ["embeddings", "tokens"]
    again = np.array(numbers.pop("embeddings"), np.float32).reshape(-1, 3)
    assert again.tobytes() == matrix.tobytes() == decode_matrix(packed, len(matrix), 3)
    assert packed.pop("embeddings_base64") == base64.b64encode(matrix.tobytes()).decode()
    assert numbers == packed
    assert ("line" in numbers) == (request_id is None)


@pytest.mark.parametrize("count", [383, 384, 385, 1000])
def test_a_matrix_that_is_encoded_in_pieces_is_the_same(count: int) -> None:
    matrix = np.arange(count * 2, dtype=np.float32).reshape(-1, 2)
    for encoding in EncodingFormat:
        written = at_precision(matrix, encoding.precision)
        line = encode_vectors("id", 1, {"count": count, "dimension": 2}, written, encoding, {"end": 1})
        assert line.endswith(b',"end":1}\n')
        answer = json.loads(line)
        if encoding is EncodingFormat.FLOAT:
            assert answer["embeddings"] == matrix.tolist()
        else:
            assert decode_matrix(answer, count, 2, encoding) == written.tobytes()


@pytest.mark.parametrize("lengths", [[], [0], [3, 0, 1], [40_000, 32_768, 32_769]])
def test_ranges_that_are_encoded_in_pieces_are_the_same(lengths: list[int]) -> None:
    offsets = [np.arange(2 * length, dtype=np.uint32).reshape(-1, 2) for length in lengths]
    line = encode_tokens("id", 1, {"tokens": lengths}, offsets)
    assert line.endswith(b"]}\n")
    assert json.loads(line)["offsets"] == [each.tolist() for each in offsets]
    assert json.loads(encode_tokens(None, 7, {"tokens": lengths}, None)) == {
        "id": None,
        "line": 7,
        "status": "ok",
        "tokens": lengths,
    }


def test_the_kinds_in_messages_are_those_of_json() -> None:
    values: list[object] = [None, True, 1, math.pi, "", [], {}]
    kinds = [kind_of(value) for value in values]
    assert kinds == ["null", "a boolean", "a number", "a number", "a string", "a list", "an object"]


# The host's side


@pytest.mark.parametrize(
    "request_",
    [
        Embed(inputs=["a", "é\n"]),
        Embed(
            inputs=[],
            model="m",
            normalize=False,
            dimensions=3,
            prompt="p",
            truncate=False,
            encoding_format=EncodingFormat.BASE64,
            deadline_ms=1500,
        ),
        Embed(inputs=["a"], deadline_ms=1500.0),
        Tokenize(inputs=["a"], model="m", prompt_name="query", truncate=False, offsets=True, deadline_ms=9),
        Info(),
        Info(model="m"),
        Ping(),
        Metrics(),
        Cancel(target="t"),
        LoadModel(model="m"),
        UnloadModel(model="m"),
        Shutdown(),
    ],
)
def test_what_a_host_writes_the_worker_reads(request_: Request) -> None:
    line = encode_request(7, request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_line(line).id == 7
    assert decode(line) == request_


def test_a_request_that_cannot_be_utf8_is_refused_before_it_is_written() -> None:
    with pytest.raises(ProtocolError) as refused:
        encode_request(1, Embed(inputs=["\ud800"]))
    assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_what_the_worker_writes_a_host_reads() -> None:
    assert decode_response(encode_success(7, 1, {"a": [1]})) == Success(id=7, members={"a": [1]})
    assert decode_response(encode_error("x", 1, ErrorCode.CANCELLED, "m", 2)) == Failure(
        id="x", code="cancelled", message="m", is_retryable=False, index=2
    )
    of_a_later_version = b'{"id": null, "line": 3, "status": "error", "code": "new", "message": "", "more": 1}'
    assert decode_response(of_a_later_version) == Failure(
        id=None, code="new", message="", is_retryable=False, index=None
    )


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"[]", b"{}", b'{"status": "maybe"}', b'{"status": ["ok"]}', b"\xff", b'{"status": "error"}'),
        b'{"status": "error", "code": {"toString": 1}, "message": ""}',
        b'{"status": "error", "code": "c", "message": 1}',
        b'{"status": "error", "code": "c", "message": "", "retryable": "no"}',
        b'{"status": "error", "code": "c", "message": "", "index": -1}',
        b'{"status": "error", "code": "c", "message": "", "index": true}',
    ],
)
def test_what_is_no_answer_is_a_parse_error_to_a_host(line: bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_response(line)
    assert refused.value.code is ErrorCode.PARSE_ERROR


@PROPERTY
@given(st.binary(max_size=60) | OBJECTS.map(json.dumps).map(str.encode))
def test_any_bytes_are_an_answer_or_a_protocol_error(line: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_response(line)


ONE = base64.b64encode(bytes(8)).decode()


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"count": 1, "dimension": 2},
        {"count": 2, "dimension": 2, "embeddings_base64": ONE},
        {"count": 1, "dimension": 1, "embeddings_base64": ONE},
        {"count": 1, "dimension": 2, "embeddings_base64": None},
        {"count": 1, "dimension": 2, "embeddings_base64": ""},
        {"count": 1, "dimension": 2, "embeddings_base64": ONE[:-4]},
        {"count": 1, "dimension": 2, "embeddings_base64": ONE + "\n"},
        {"count": 1, "dimension": 2, "embeddings_base64": ONE[:-1]},
        {"count": 1, "dimension": 2, "embeddings_base64": "é" * 12},
        {"count": 1, "dimension": 2, "embeddings_base64": "!" + ONE[1:]},
    ],
)
def test_a_matrix_of_another_shape_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_matrix(members, 1, 2)
    assert refused.value.code is ErrorCode.PARSE_ERROR


def test_an_empty_matrix_is_a_matrix() -> None:
    assert decode_matrix({"count": 0, "dimension": 3, "embeddings_base64": ""}, 0, 3) == b""
