"""The suite itself: what is wrong must fail, and be told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge_client.testing.conformance import transcript
from bridge_client.testing.conformance.__main__ import main
from bridge_client.testing.conformance.checks import BrokenRule, check_answer, check_outcome, check_sent, read_object
from bridge_client.testing.conformance.patterns import mismatch
from bridge_client.testing.conformance.run import Report, Target, play
from bridge_client.testing.conformance.transcript import TranscriptError, read_transcript
from bridge_client.testing.processes import status_of
from tests.conformance.test_conformance import FAKE_WORKER, ROOT, TRANSCRIPTS
from tests.patience import PATIENCE, WAIT_S


def played(name: str, *command: str, timeout_s: float = 20.0 * PATIENCE) -> Report:
    return play(TRANSCRIPTS[name], Target(command=command, timeout_s=timeout_s))


# Wrong workers and wrong clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("--duplicate-after=0", "id is"),
        ("--nan-after=0", "not finite"),
        ("--wrong-count-after=0", "`tokens` is not one number"),
        ("--wrong-dimension-after=0", "dimension is 9"),
        ("--truncated-base64-after=0", "bytes of vectors"),
        ("--other-fingerprint-after=0", "fingerprint"),
        ("--garbage-after=0", "not JSON"),
        ("--partial-line-after=0", "no newline"),
        ("--garbage-before-ready=1", "not JSON"),
        ("--error-after=0:internal_error", "status"),
        ("--unknown-ids", "id is 45"),
        ("--protocol=2", "protocol is 2"),
        ("--exit-after=4:3", "exit status 3"),
        ("--kill-after=4", f"exit status {status_of('KILL')}"),
        ("--fail-start=78", "exit status 78"),
    ],
)
def test_a_worker_with_a_fault_fails(fault: str, words: str) -> None:
    report = played("worker-essentials", *FAKE_WORKER, fault)
    assert report.result == "failed"
    assert words in report.why
    assert report.heading


@pytest.mark.parametrize("fault", ["--hang-after=0", "--ignore-eof", "--stop-reading-after=1"])
def test_no_worker_can_hold_up_the_suite(fault: str) -> None:
    report = played("worker-essentials", *FAKE_WORKER, fault, timeout_s=0.3)
    assert (report.result, "0.3 s" in report.why) == ("failed", True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("client-disorder", "it ended"),
        ("client-wrong-answers", "`tokens` is not one number"),
        ("client-other-protocol", "ok is true"),
        ("client-other-model", "it ended"),
        ("client-deaths", "it ended"),
        ("client-limits", "ok is true"),
        ("client-close", "end_of_input"),
        ("client-timeouts", "ok is true"),
        ("client-slow-start", "nothing came"),
    ],
)
def test_a_naive_client_fails(name: str, words: str) -> None:
    # What these wait for does not come.
    patience_s = PATIENCE * {"nothing came": 1.0, "end_of_input": 8.0}.get(words, 20.0)
    report = played(name, sys.executable, str(ROOT / "tests/conformance/naive_adapter.py"), timeout_s=patience_s)
    assert report.result == "failed"
    assert mismatch({"$regex": words}, report.why, {}) is None


def test_a_command_that_is_not_there_fails() -> None:
    report = played("worker-nothing", "/nonexistent/worker")
    assert (report.result, report.line) == ("failed", 3)
    assert report.why


# What holds for every line ----------------------------------------------------------------------------------------

ANSWER = {
    "id": 1,
    "status": "ok",
    "model": "m",
    "fingerprint": "0123456789abcdef",
    "dimension": 2,
    "count": 1,
    "embeddings": [[0.5, 0.5]],
    "tokens": [3],
    "truncated": [],
    "timing_ms": {"queue": 0.0, "tokenize": 0.0, "inference": 0.0, "total": 0.0},
}
ERROR = {"id": None, "line": 1, "status": "error", "code": "parse_error", "message": "why", "retryable": False}


def test_a_right_answer_passes() -> None:
    check_answer(ANSWER)
    check_answer(ERROR)
    check_answer({"id": "", "status": "ok"})


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "ok", "id": 1},
        {"id": 1.5, "status": "ok"},
        {"id": True, "status": "ok"},
        {"id": None, "status": "ok"},
        {"id": 1, "line": 1, "status": "ok"},
        {"id": 1, "status": "fine"},
        ERROR | {"code": "made_up"},
        ERROR | {"retryable": True},
        ERROR | {"message": ""},
        ERROR | {"index": -1},
        ANSWER | {"embeddings": [[0.5]]},
        ANSWER | {"embeddings": [[0.0, 0.0]]},
        ANSWER | {"embeddings": [["0.5", 0.5]]},
        ANSWER | {"embeddings_base64": "AAAAPwAAAD8="},
        ANSWER | {"tokens": []},
        ANSWER | {"truncated": [1]},
        ANSWER | {"fingerprint": "short"},
        ANSWER | {"timing_ms": {}},
        {name: value for name, value in ANSWER.items() if name != "model"},
    ],
)
def test_a_wrong_answer_does_not(answer: dict[str, Any]) -> None:
    with pytest.raises(BrokenRule):
        check_answer(answer)


@pytest.mark.parametrize("line", [b"{}", b"[]\n", b'{"a": NaN}\n', b'{"a": "\xff"}\n', b"\n", b"{} {}\n"])
def test_what_is_not_one_object_in_a_line_is_refused(line: bytes) -> None:
    with pytest.raises(BrokenRule):
        read_object(line)


@pytest.mark.parametrize(
    "outcome",
    [
        {"call": 2, "ok": True},
        {"call": 1},
        {"call": 1, "ok": False, "error": "made_up", "retryable": False, "message": ""},
        {"call": 1, "ok": False, "error": "timeout", "message": ""},
        {"call": 1, "ok": False, "error": "request", "retryable": False, "message": ""},
        {"call": 1, "ok": False, "error": "timeout", "code": "cancelled", "retryable": False, "message": ""},
        {"call": 1, "ok": True, "count": 1, "dimension": 2, "vectors_base64": "AAAAPwAAAD8"},
        {"call": 1, "ok": True, "count": 2, "dimension": 2, "vectors_base64": "AAAAPwAAAD8="},
    ],
)
def test_a_wrong_outcome_is_refused(outcome: dict[str, Any]) -> None:
    with pytest.raises(BrokenRule):
        check_outcome(outcome, {1: "embed"})


@pytest.mark.parametrize(
    "requests",
    [
        [{"method": "info"}],
        [{"id": 1, "method": "info"}, {"id": 1, "method": "ping"}],
        [{"id": 1, "method": "embed", "inputs": ["a"], "encoding_format": "base64"}],
        [{"id": 1, "method": "info"}, {"id": 2, "inputs": ["a"]}],
        [{"id": 1, "method": "info"}, {"id": 2, "inputs": ["a", "b", "c"], "encoding_format": "base64"}],
    ],
)
def test_a_host_that_breaks_a_rule_is_seen(requests: list[dict[str, Any]]) -> None:
    process = {"requests": requests, "bytes": 10, "is_complete": True, "end_of_input": True}
    with pytest.raises(BrokenRule):
        check_sent([process], [["--max-inputs=2"]])


@pytest.mark.parametrize("change", [{"bytes": 5001}, {"is_complete": False}])
def test_a_host_that_writes_too_long_a_line_or_half_a_one_is_seen(change: dict[str, Any]) -> None:
    process = {"requests": [], "bytes": 5000, "is_complete": True, "end_of_input": True}
    check_sent([process], [["--max-line-bytes=5000"]])
    with pytest.raises(BrokenRule):
        check_sent([process | change], [["--max-line-bytes=5000"]])


# Patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        (1, [1], [1.0, True, "1", None]),
        ("a", ["a"], ["A", 1]),
        (None, [None], [0, False, ""]),
        ([1, {"a": 2}], [[1, {"a": 2, "b": 3}]], [[1], [1, {}], {"0": 1}]),
        ({}, [{}, {"a": 1}], [[], None]),
        ({"a": {"$absent": True}}, [{}, {"b": 1}], [{"a": None}]),
        ({"$type": "integer"}, [0, -1], [True, 1.0, "1"]),
        ({"$type": "number"}, [0, 1.5], [False, "1"]),
        ({"$regex": "^a.c$"}, ["abc"], ["abcd", 7]),
        ({"$approx": [1.0, 0.1]}, [1, 1.05], [1.2, "1", True]),
        ({"$between": [1, 3]}, [1, 3, 2.5], [0, 4, "2"]),
        ({"$one_of": [1, {"a": 2}]}, [1, {"a": 2}], [2, {"a": 1}]),
        ({"$not": {"$regex": "a"}}, ["b", 7], ["a"]),
        ({"$length": 2}, [[1, 2], "ab", {"a": 1, "b": 2}], [[1], 2]),
        ({"$length": {"$between": [1, 2]}}, ["a"], [""]),
        ({"$each": {"$type": "string"}}, [[], ["a", "b"]], [["a", 1], "ab"]),
        ({"$contains": [1, 2]}, [[2, 1, 3]], [[1], [], 1]),
        ({"a": 1, "$length": 1}, [{"a": 1}], [{"a": 1, "b": 2}, {"a": 2}]),
    ],
)
def test_patterns(pattern: Any, fits: list[Any], does_not: list[Any]) -> None:
    assert [value for value in fits if mismatch(pattern, value, {}) is not None] == []
    assert [value for value in does_not if mismatch(pattern, value, {}) is None] == []


def test_what_is_saved_is_compared_later_and_only_once_the_whole_fits() -> None:
    memory: dict[str, Any] = {}
    assert mismatch({"a": {"$save": "x"}, "b": 2}, {"a": {"n": 1}, "b": 3}, memory) is not None
    assert memory == {}
    assert mismatch({"a": {"$save": "x"}}, {"a": {"n": 1}}, memory) is None
    assert mismatch({"$saved": "x"}, {"n": 1}, memory) is None
    assert mismatch({"$saved": "x"}, {"n": 1, "more": 2}, memory) is not None
    assert mismatch({"$saved": "unknown"}, 1, memory) is not None


def test_matrices_are_compared_by_their_bits_and_by_their_directions() -> None:
    memory: dict[str, Any] = {}
    numbers = {"count": 2, "dimension": 2, "embeddings": [[0.6, 0.8], [1, 0]]}
    packed = {"count": 2, "dimension": 2, "embeddings_base64": "mpkZP83MTD8AAIA/AAAAAA=="}
    assert mismatch({"$matrix": {"save": "m", "shape": [2, 2]}}, numbers, memory) is None
    assert mismatch({"$matrix": {"equals": "m", "norms": {"$each": {"$approx": [1, 1e-6]}}}}, packed, memory) is None
    scaled = {"count": 2, "dimension": 2, "embeddings": [[1.2, 1.6], [5, 0]]}
    assert mismatch({"$matrix": {"equals": "m"}}, scaled, memory) is not None
    assert mismatch({"$matrix": {"close_to": "m"}}, scaled, memory) is None
    turned = {"count": 2, "dimension": 2, "embeddings": [[0.8, 0.6], [0, 1]]}
    assert mismatch({"$matrix": {"close_to": "m"}}, turned, memory) is not None
    assert mismatch({"$matrix": {"differs_from": "m"}}, turned, memory) is None
    assert mismatch({"$matrix": {"differs_from": "m"}}, scaled, memory) is not None
    assert mismatch({"$matrix": {"equals": "unknown"}}, packed, memory) is not None
    assert mismatch({"$matrix": {}}, {"count": 1, "dimension": 1, "embeddings": [[1e39]]}, memory) is not None


# Transcripts ------------------------------------------------------------------------------------------------------

HEAD = '{"drives": "worker"}\n{"rules": ["F1"], "about": "x"}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "head"),
        ('{"drives": "nobody"}\n', "nobody"),
        ('{"drives": "worker", "flags": []}\n', "flags"),
        ('{"drives": "worker", "workers": [[]]}\n', "client"),
        ('{"drives": "worker"}\n{"send": 1}\n', "heading"),
        (HEAD + '{"sned": 1}\n', "one thing"),
        (HEAD + '{"send": 1, "expect": 2}\n', "one thing"),
        (HEAD + '{"send": 1, "time": 2}\n', "time"),
        (HEAD + '{"expect": {"$regexp": "x"}}\n', "regexp"),
        (HEAD + '{"expect": {"a": [{"$type": "int"}]}}\n', "int"),
        (HEAD + '{"expect": {"$matrix": {"equal": "x"}}}\n', "equal"),
        (HEAD + '{"rules": ["F1"]}\n', "about"),
        (HEAD + "not JSON\n", "Expecting value"),
    ],
)
def test_a_transcript_with_a_slip_is_not_played(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "worker-slip.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(TranscriptError, match=words):
        read_transcript(path)


def test_the_tables_of_the_format_name_what_is_read() -> None:
    described = re.findall(r"^\| (`.+?`) \|", transcript.__doc__ or "", re.MULTILINE)
    names = {name for cell in described for name in re.findall(r"`(\w+)`", cell)}
    assert names == transcript._HEAD - {"drives"} | transcript._KINDS.keys()


def test_repetitions_are_written_out_and_the_end_is_added(tmp_path: Path) -> None:
    path = tmp_path / "worker-times.jsonl"
    step = {"send": {"id": {"$n": 5}, "inputs": {"$repeat": [[{"$n": "text {}"}], 2]}}, "times": 2}
    path.write_text(HEAD + json.dumps(step) + "\n", "utf-8")
    transcript = read_transcript(path)
    assert transcript.steps[0].value == [
        {"id": 5, "inputs": ["text 0", "text 0"]},
        {"id": 6, "inputs": ["text 1", "text 1"]},
    ]
    assert [step.kind for step in transcript.steps] == ["send", "close", "expect_exit"]
    assert all(step.heading for step in transcript.steps)
    assert transcript.rules == {"F1"}


# The command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bridge_client.testing.conformance", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def test_the_command_tells_people_and_programs_and_its_status_tells_scripts() -> None:
    done = run("worker", "--only", "worker-ess*", "--", *FAKE_WORKER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("ok      worker-essentials ")
    assert done.stdout.splitlines()[-1] == "1 ok"

    done = run("worker", "--only", "worker-ess*", "--json", "--", *FAKE_WORKER, "--protocol=2")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["counts"] == {"failed": 1}
    assert told["transcripts"][0]["line"] == 4
    assert "protocol is 2, not 1" in told["transcripts"][0]["why"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("worker",),
        ("worker", "--"),
        ("nobody", "--", "x"),
        ("worker", "--only", "nothing-like-that", "--", "x"),
        ("worker", "--transcripts", "docs", "--", "x"),
    ],
)
def test_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_whoever_has_only_the_wheel_is_told_what_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(("worker", "--transcripts", str(tmp_path), "--", "x"))
    assert "--transcripts" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder whose files are open")
def test_a_played_worker_ends_with_its_input_also_where_the_suite_has_removed_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "play"
    folder.mkdir()
    (folder / "flags.json").write_text("[[]]")
    command = [sys.executable, str(ROOT / "bridge_client/testing/conformance/played_worker.py"), str(folder)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(b'{"id": 1, "method": "ping"}\n')
        worker.stdin.flush()
        assert b"pong" in worker.stdout.readline()
        shutil.rmtree(folder)
        worker.stdin.close()
        assert worker.wait(WAIT_S) == 0
    finally:
        worker.kill()
        worker.stdout.close()
        worker.wait()
