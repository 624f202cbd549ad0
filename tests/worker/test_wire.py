"""What goes over the pipes of a real worker: framing, ids, order, errors. A tiny model keeps it quick."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.harness import ROOT, TINY_MODEL, WAIT_S, WorkerProcess, lines_of, matrix_of, run_worker


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    """One worker for all questions that leave no trace in it."""
    with WorkerProcess() as process:
        yield process
        process.close_input()
        assert process.wait() == 0


def test_a_shell_user_gets_vectors_for_one_line() -> None:
    status, answers, stderr = run_worker(b'{"inputs": ["hello world"]}\n')
    assert (status, stderr) == (0, "")
    (answer,) = answers
    assert answer["id"] is None
    assert answer["line"] == 1
    assert matrix_of(answer).shape == (1, 32)
    assert list(answer) == [
        "id", "line", "status", "model", "fingerprint", "dimension", "count", "embeddings", "tokens", "truncated",
        "timing_ms",
    ]  # fmt: skip
    assert list(answer["timing_ms"]) == ["queue", "tokenize", "inference", "total"]


def test_bytes_may_arrive_one_at_a_time(worker: WorkerProcess) -> None:
    for byte in json.dumps({"id": "slow", "inputs": "é世"}, ensure_ascii=False).encode() + b"\n":
        worker.send_raw(bytes([byte]))
    assert worker.receive()["id"] == "slow"


def test_ten_thousand_lines_in_one_write_are_all_answered() -> None:
    requests = lines_of(*({"id": number, "method": "ping"} for number in range(10_000)))
    status, answers, _ = run_worker(requests)
    assert status == 0
    assert sorted(answer["id"] for answer in answers) == list(range(10_000))


def test_a_line_of_thirty_megabytes_is_read_and_one_over_the_limit_is_dropped_whole() -> None:
    text = "a " * 400_000
    long = lines_of({"id": "long", "inputs": [text] * 40, "deadline_ms": 0})
    assert 30 * 2**20 < len(long) < 32 * 2**20
    over = b'{"id": "over", "inputs": "' + b"x" * (33 * 2**20) + b'"}\n'
    status, answers, _ = run_worker(long + over + lines_of({"id": "after", "method": "ping"}))
    assert status == 0
    by_id = {answer["id"]: answer for answer in answers}
    assert by_id["long"]["code"] == "deadline_exceeded"
    assert (by_id[None]["code"], by_id[None]["line"]) == ("line_too_long", 2)
    assert by_id["after"]["message"] == "pong"
    assert len(answers) == 3


def test_an_over_long_last_line_without_newline_is_answered_at_the_end_of_input() -> None:
    status, answers, _ = run_worker(b"x" * 2000, "--max-line-bytes", "1000")
    assert (status, [answer["code"] for answer in answers]) == (0, ["line_too_long"])


def test_windows_line_ends_a_byte_order_mark_blank_lines_and_a_missing_last_newline_are_accepted() -> None:
    ping = b'{"id":%d,"method":"ping"}'
    data = b"\xef\xbb\xbf" + ping % 1 + b"\r\n\r\n  \n\n" + ping % 2 + b"\r\nnonsense\n" + ping % 3
    status, answers, _ = run_worker(data)
    assert status == 0
    assert [answer["id"] for answer in answers if answer["id"]] == [1, 2, 3]
    assert [(a["code"], a["line"]) for a in answers if a["id"] is None] == [("parse_error", 6)]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"inputs": "\xff"}', "parse_error"),
        (b"[" * 100_000, "parse_error"),
        (b'{"id": ' + b"[" * 900 + b"]" * 900 + b"}", "invalid_request"),
        (b"[1, 2]", "parse_error"),
        (b'"text"', "parse_error"),
        (b"{", "parse_error"),
        (b"\x00", "parse_error"),
        (b'{"inputs": "a", "deadline_ms": NaN}', "parse_error"),
        (b'{"inputs": "a", "deadline_ms": 1e400}', "invalid_request"),
        (b'{"id": 1e400, "inputs": "a"}', "invalid_request"),
        (b'{"inputs": "\\ud800"}', "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"method": "emebd"}', "unknown_method"),
        (b'{"method": 7}', "invalid_request"),
        (b'{"inputs": null}', "invalid_request"),
        (b'{"inputs": [1]}', "invalid_request"),
        (b'{"inputs": "a", "normalise": true}', "invalid_request"),
        (b'{"method": "ping", "inputs": "a"}', "invalid_request"),
        (b'{"method": "ping", "params": [], "id": null}', "invalid_request"),
        (b'{"method": "embed", "params": {}, "inputs": "a"}', "invalid_request"),
        (b'{"inputs": "a", "prompt": "p", "prompt_name": "query"}', "invalid_request"),
        (b'{"inputs": "a", "prompt_name": "nonsense"}', "invalid_request"),
        (b'{"inputs": "a", "dimensions": 0}', "invalid_request"),
        (b'{"inputs": "a", "dimensions": 33}', "invalid_request"),
        (b'{"inputs": "a", "model": "other"}', "model_not_found"),
        (b'{"inputs": "a", "model": "../bert-mean"}', "model_not_found"),
        (b'{"method": "info", "model": "other"}', "model_not_found"),
        (b'{"method": "load_model", "model": "other"}', "model_not_found"),
        (b'{"method": "load_model", "model": "/etc"}', "model_not_found"),
        (b'{"method": "unload_model", "model": "other"}', "model_not_found"),
        (b'{"method": "unload_model"}', "invalid_request"),
        (b'{"method": "cancel", "target": null}', "invalid_request"),
        (b'{"inputs": "a", "deadline_ms": 0}', "deadline_exceeded"),
    ],
)
def test_a_bad_line_gets_its_code_and_the_worker_goes_on(worker: WorkerProcess, line: bytes, code: str) -> None:
    worker.send_raw(line + b"\n")
    answer = worker.receive()
    assert (answer["id"], answer["status"], answer["code"]) == (None, "error", code)
    assert worker.ask({"id": "next", "method": "ping"})["id"] == "next"


def test_a_lone_surrogate_is_answered_under_its_own_id_with_its_index(worker: WorkerProcess) -> None:
    worker.send_raw(b'{"id": "mine", "inputs": ["fine", "bad \\udfff text"]}\n')
    answer = worker.receive()
    assert (answer["id"], answer["code"], answer["index"]) == ("mine", "invalid_request", 1)


def test_unicode_that_other_parsers_stumble_over_is_text(worker: WorkerProcess) -> None:
    inputs = ["\x00", "\u2028 \u2029", "\U0001f600", "\u202e", "e\u0301", ""]
    answer = worker.ask({"id": 1, "inputs": inputs})
    assert answer["count"] == len(inputs)
    assert matrix_of(answer).shape == (6, 32)


@pytest.mark.parametrize("request_id", [0, "", -(2**53) + 1, 2**53 - 1, "é" * 128, "x" * 256, "null"])
def test_ids_are_echoed_exactly(worker: WorkerProcess, request_id: str | int) -> None:
    answer = worker.ask({"id": request_id, "method": "ping"})
    assert answer["id"] == request_id
    assert type(answer["id"]) is type(request_id)


@pytest.mark.parametrize("request_id", [1.0, True, False, [], {}, 2**53, -(2**53), "x" * 257, "é" * 129])
def test_other_ids_are_refused_without_an_id(worker: WorkerProcess, request_id: Any) -> None:
    answer = worker.ask({"id": request_id, "method": "ping"})
    assert (answer["id"], answer["code"]) == (None, "invalid_request")


def test_one_and_the_text_one_are_two_ids_and_an_outstanding_id_is_refused() -> None:
    slow = {"inputs": ["a long text " * 20] * 500}
    with WorkerProcess() as worker:
        worker.ask({"id": "warm", "method": "info"})
        worker.send({"id": 1, **slow}, {"id": "1", **slow}, {"id": 1, "method": "ping"}, {"id": 1, "nonsense": 1})
        answers = [worker.receive() for _ in range(4)]
        assert [answer["code"] for answer in answers if answer["id"] is None] == ["duplicate_id", "duplicate_id"]
        assert {answer["id"] for answer in answers if answer["id"] is not None} == {1, "1"}
        assert worker.ask({"id": 1, "method": "ping"})["id"] == 1


def test_unnumbered_answers_come_in_input_order_whatever_they_are() -> None:
    slow = {"inputs": ["a long text " * 20] * 200}
    data = lines_of(slow, {"method": "ping"}, {"inputs": "short"}) + b"nonsense\n" + lines_of({"method": "metrics"})
    status, answers, _ = run_worker(data)
    assert status == 0
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5]
    assert answers[0]["count"] == 200
    assert answers[1]["message"] == "pong"
    assert answers[3]["code"] == "parse_error"


def test_members_stand_at_the_top_or_in_params(worker: WorkerProcess) -> None:
    top = worker.ask({"id": 1, "inputs": ["a"], "normalize": False})
    inside = worker.ask({"id": 2, "method": "embed_batch", "params": {"inputs": ["a"], "normalize": False}})
    assert top["embeddings"] == inside["embeddings"]


def test_a_misspelt_member_is_named_with_the_one_that_was_meant(worker: WorkerProcess) -> None:
    message = worker.ask({"id": 1, "inputs": "a", "dimension": 3})["message"]
    assert "'dimension'" in message
    assert "`dimensions`" in message


def test_no_message_repeats_an_input(worker: WorkerProcess) -> None:
    secret = "correct horse battery staple "
    for request in (
        {"id": 1, "inputs": [secret * 100, 7]},
        {"id": 1, "inputs": secret * 100, "truncate": False},
        {"id": 1, "inputs": secret * 50_000},
        {"id": 1, "inputs": [secret], "prompt": 7},
    ):
        worker.send(request)
        line = worker.receive_line()
        assert line is not None
        assert b"error" in line
        assert b"horse" not in line


def test_float_and_base64_answers_hold_identical_bits(worker: WorkerProcess) -> None:
    inputs = ["one", "two words", "three words here"]
    floats = matrix_of(worker.ask({"id": 1, "inputs": inputs}))
    packed = matrix_of(worker.ask({"id": 2, "inputs": inputs, "encoding_format": "base64"}))
    assert floats.tobytes() == packed.tobytes()


def test_an_empty_list_is_answered_with_nothing_once_the_model_is_there(worker: WorkerProcess) -> None:
    for encoding, member, empty in (("float", "embeddings", []), ("base64", "embeddings_base64", "")):
        answer = worker.ask({"id": 1, "inputs": [], "encoding_format": encoding})
        assert (answer["count"], answer["dimension"], answer[member], answer["tokens"]) == (0, 32, empty, [])


def test_a_text_over_the_limits_is_refused_with_its_index(worker: WorkerProcess) -> None:
    huge = "x" * (2**20 + 1)
    answer = worker.ask({"id": 1, "inputs": ["fine", huge]})
    assert (answer["code"], answer["index"]) == ("input_too_long", 1)
    answer = worker.ask({"id": 2, "inputs": ["short"] * 70 + ["word " * 500, "word " * 600], "truncate": False})
    assert (answer["code"], answer["index"]) == ("input_too_long", 70)
    answer = worker.ask({"id": 3, "inputs": ["a"] * 16_385})
    assert answer["code"] == "too_many_inputs"


def test_limits_are_options_and_info_advertises_them() -> None:
    flags = {
        "max_line_bytes": 5000,
        "max_inputs": 3,
        "max_text_bytes": 100,
        "max_in_flight": 7,
        "max_in_flight_bytes": 10_000,
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    data = lines_of({"id": 1, "method": "info"}, {"id": 2, "inputs": ["a"] * 4}, {"id": 3, "inputs": "a" * 101})
    _, answers, _ = run_worker(data, *arguments)
    by_id = {answer["id"]: answer for answer in answers}
    assert by_id[1]["limits"] == flags
    assert by_id[2]["code"] == "too_many_inputs"
    assert by_id[3]["code"] == "input_too_long"


def test_info_tells_what_a_host_must_check(worker: WorkerProcess) -> None:
    info = worker.ask({"id": 1, "method": "info"})
    assert info["protocol"] == 1
    assert info["pid"] == worker.process.pid
    assert info["model"] == "bert-mean"
    assert info["models"] == ["bert-mean"]
    assert info["dimension"] == 32
    assert info["pooling"] == ["mean"]
    assert info["provider"]["chosen"] == "CPUExecutionProvider"
    assert len(info["fingerprint"]) == 16
    assert set(info["prompts"]) >= {"query", "document"}
    assert worker.ask({"id": 2, "inputs": "a"})["fingerprint"] == info["fingerprint"]


def test_metrics_count_what_was_done() -> None:
    _, answers, _ = run_worker(lines_of({"inputs": ["a", "b"]}) + b"oops\n" + lines_of({"method": "metrics"}))
    metrics = answers[2]["metrics"]
    assert metrics["rss_bytes"] > 10 * 2**20
    assert metrics["requests"] == {"parse_error": 1}  # the embed waits for the model; control answers at once
    with WorkerProcess() as worker:
        worker.ask({"id": 1, "inputs": ["a", "b"]})
        metrics = worker.ask({"id": 2, "method": "metrics"})["metrics"]
        assert (metrics["requests"], metrics["texts"]) == ({"ok": 1}, 2)
        assert metrics["latency_ms"]["p50"] > 0


def test_cancel_promises_what_the_target_answers() -> None:
    with WorkerProcess() as worker:
        worker.ask({"id": "warm", "method": "info"})
        slow = {"inputs": ["a long text " * 20] * 2000}
        worker.send({"id": "target", **slow}, {"id": "c", "method": "cancel", "target": "target"})
        answers = {answer["id"]: answer for answer in (worker.receive(), worker.receive())}
        assert answers["c"]["cancelled"] is True
        assert (answers["target"]["code"], answers["target"]["retryable"]) == ("cancelled", False)
        for target in ("target", "unknown", "c", 7):
            assert worker.ask({"id": "c", "method": "cancel", "target": target})["cancelled"] is False


def test_a_lock_step_host_without_ids_works_unchanged() -> None:
    with WorkerProcess() as worker:
        assert worker.ask({"method": "ping", "params": {}})["message"] == "pong"
        name = "sentence-transformers/bert-mean"
        loaded = worker.ask({"method": "load_model", "params": {"model": name, "cache_dir": "/somewhere"}})
        assert (loaded["status"], loaded["model"], loaded["dimension"]) == ("ok", "bert-mean", 32)
        assert loaded["providers"] == ["CPUExecutionProvider"]
        params = {"model": name, "inputs": ["a", "b"], "normalize": True}
        answer = worker.ask({"method": "embed_batch", "params": params})
        assert (answer["status"], answer["count"]) == ("ok", 2)
        assert worker.ask({"method": "unload_model", "params": {"model": name}})["model"] == "bert-mean"
        assert worker.ask({"method": "embed_batch", "params": params})["code"] == "model_not_found"
        assert worker.ask({"method": "shutdown", "params": {}})["pending"] == 0
        assert worker.wait() == 0


def test_a_model_found_in_a_models_folder_is_loaded_by_name_and_served_beside_the_first() -> None:
    env = {"EMBED_WORKER_MODELS": str(TINY_MODEL.parent)}
    env["EMBED_WORKER_MODELS"] = os.pathsep.join(["nowhere", env["EMBED_WORKER_MODELS"]])
    with WorkerProcess(env=env) as worker:
        refused = worker.ask({"id": 1, "inputs": "a", "model": "bert-cls-new"})
        assert refused["code"] == "model_not_found"
        assert "load_model" in refused["message"]
        assert worker.ask({"id": 2, "method": "load_model", "model": "org/bert-cls-new"})["model"] == "bert-cls-new"
        assert worker.ask({"id": 3, "inputs": "a", "model": "bert-cls-new"})["model"] == "bert-cls-new"
        assert worker.ask({"id": 4, "inputs": "a"})["model"] == "bert-mean"
        assert worker.ask({"id": 5, "method": "info", "model": "bert-cls-new"})["pooling"] == ["cls"]
        assert worker.ask({"id": 6, "method": "info"})["models"] == ["bert-mean", "bert-cls-new"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
member_names = st.sampled_from(
    ["id", "method", "params", "inputs", "model", "normalize", "dimensions", "prompt_name", "prompt", "truncate",
     "encoding_format", "deadline_ms", "target", "stray"]
)  # fmt: skip
methods = st.sampled_from(["embed", "embed_batch", "info", "ping", "metrics", "cancel", "load_model", "nonsense"])
almost_requests = st.dictionaries(member_names, json_values, max_size=5).map(lambda value: json.dumps(value).encode())
known_methods = st.builds(
    lambda method, members: json.dumps({**members, "method": method}).encode(),
    methods,
    st.dictionaries(member_names, json_values, max_size=4),
)
garbage = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b""))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lines=st.lists(almost_requests | known_methods | garbage, min_size=1, max_size=12))
def test_every_line_that_is_not_blank_gets_exactly_one_answer(worker: WorkerProcess, lines: list[bytes]) -> None:
    worker.send_raw(b"".join(line + b"\n" for line in lines))
    expected = sum(1 for line in lines if line.strip())
    worker.send_raw(b'{"id": "the end of this example", "method": "ping"}\n')
    answers = [worker.receive() for _ in range(expected + 1)]
    # Numbered answers may overtake; nothing may be missing or left over.
    assert sum(answer["id"] == "the end of this example" for answer in answers) == 1
    assert worker.ask({"id": "alive", "method": "ping"})["id"] == "alive"


def test_a_hundred_thousand_lines_pass_through_in_bounded_memory(tmp_path: Any) -> None:
    source, target = tmp_path / "requests.jsonl", tmp_path / "vectors.jsonl"
    words = ["alpha", "beta", "gamma", "delta"]
    choice = random.Random(7)
    with source.open("wb") as file:
        for _ in range(100_000):
            file.write(json.dumps({"inputs": choice.choice(words), "encoding_format": "base64"}).encode() + b"\n")
        file.write(b'{"method": "metrics"}\n')
    command = [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)]
    with source.open("rb") as stdin, target.open("wb") as stdout:
        subprocess.run(command, stdin=stdin, stdout=stdout, cwd=ROOT, timeout=2 * WAIT_S, check=True)
    vectors: dict[str, set[str]] = {}
    choice = random.Random(7)
    last = None
    with target.open("rb") as file:
        for number, line in enumerate(file, 1):
            last = json.loads(line)
            assert last["line"] == number
            if number <= 100_000:
                vectors.setdefault(choice.choice(words), set()).add(last["embeddings_base64"])
    assert number == 100_001
    assert all(len(same) < 50 for same in vectors.values())  # batches differ in the last bits only
    assert last is not None
    assert last["metrics"]["rss_bytes"] < 200 * 2**20


def test_more_than_the_pipes_hold_in_both_directions_does_not_deadlock() -> None:
    """A host that writes everything before it reads anything, within the limits."""
    with WorkerProcess() as worker:
        request = {"inputs": ["a text of some words " * 20] * 20}
        worker.send(*({"id": number, **request} for number in range(200)))
        assert {worker.receive()["id"] for _ in range(200)} == set(range(200))


def test_a_reader_that_goes_away_ends_the_worker_quietly() -> None:
    """As in `embed-worker < requests | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None

    def feed() -> None:
        assert process.stdin is not None
        try:
            while True:
                process.stdin.write(b'{"inputs": "a"}\n')
        except OSError:  # a broken pipe, which Windows calls an invalid argument
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(WAIT_S) == 74
    assert process.stderr.read() == b""
    feeder.join(WAIT_S)
    process.stderr.close()
    with contextlib.suppress(OSError):
        process.stdin.close()


def test_an_idle_worker_notices_that_nobody_reads_any_more() -> None:
    if not hasattr(os, "posix_spawn"):
        pytest.skip("only POSIX tells about a pipe that nobody reads without a write")
    with WorkerProcess() as worker:
        worker.ask({"id": 1, "method": "ping"})
        reading, writing = os.pipe()
        idle = subprocess.Popen(
            [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)],
            stdin=subprocess.PIPE,
            stdout=writing,
            cwd=ROOT,
        )
        os.close(writing)
        os.close(reading)
        assert idle.wait(WAIT_S) == 74
        assert idle.stdin is not None
        idle.stdin.close()
