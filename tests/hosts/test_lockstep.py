"""Hosts without ids, which write one line and read one, work unchanged; also those that start a script by its path."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from bridge_client import lockstep
from bridge_client.testing.processes import freeze, is_there, send_signal
from embed_worker.arguments.serve import make_config, make_parser
from embed_worker.serving import stdio
from tests.hosts.lock_step import COMMAND, ENVIRONMENT, FOLDER, LockStep, gone, killed_between, lock_step, worker_of
from tests.worker.harness import ROOT, WAIT_S, WorkerProcess

MODELS = ROOT / "tests" / "models"


@pytest.fixture
def host() -> Iterator[LockStep]:
    with lock_step({"EMBED_WORKER_MODEL": str(MODELS / "bert-mean"), "EMBED_WORKER_MODELS": str(MODELS)}) as host:
        yield host


def test_requests_as_existing_bridges_write_them_get_one_line_each(host: LockStep) -> None:
    name = "sentence-transformers/bert-mean"
    assert host.ask('{"method":"ping","params":{}}')["message"] == "pong"
    assert host.ask('{"method":"ping"}')["status"] == "ok"
    loaded = host.ask(f'{{"method":"load_model","params":{{"model":"{name}","cache_dir":"/tmp/models"}}}}')
    assert (loaded["status"], loaded["dimension"]) == ("ok", 32)
    answer = host.ask(f'{{"method":"embed_batch","params":{{"model":"{name}","inputs":["a","b"],"normalize":true}}}}')
    assert (answer["status"], answer["count"], [len(vector) for vector in answer["embeddings"]]) == ("ok", 2, [32, 32])
    assert host.ask(f'{{"method":"unload_model","params":{{"model":"{name}"}}}}')["status"] == "ok"
    assert host.ask('{"method":"shutdown","params":{}}')["status"] == "ok"
    assert host.end() == 0


def test_an_error_is_one_line_too_and_the_next_request_gets_its_own_answer(host: LockStep) -> None:
    assert host.ask("not JSON")["code"] == "parse_error"
    missing = host.ask('{"method":"embed_batch","params":{"model":"org/another","inputs":["a"]}}')
    assert (missing["code"], missing["retryable"]) == ("model_not_found", False)
    assert "no model 'another' in any models folder" in missing["message"]
    assert host.ask('{"method":"embed_batch","params":{"inputs":[1]}}')["code"] == "invalid_request"
    late = host.ask('{"method":"embed_batch","params":{"inputs":["a"],"deadline_ms":0}}')
    assert (late["code"], late["retryable"]) == ("deadline_exceeded", True)
    answer = host.ask('{"method":"embed_batch","params":{"inputs":["a"],"deadline_ms":18446744073709551616}}')
    assert (answer["line"], answer["count"]) == (5, 1)
    wide = host.ask('{"id":"x","method":"embed","inputs":["a"],"dimensions":33}')
    assert (wide["id"], wide["code"]) == ("x", "invalid_request")
    assert host.ask('{"method":"unload_model","params":{"model":"bert-cls-new"}}')["code"] == "model_not_found"
    assert host.end() == 0


@pytest.mark.parametrize(("bug", "code"), [(KeyError("missing"), "internal_error"), (MemoryError(), "out_of_memory")])
def test_a_bug_costs_one_request_and_not_the_program(
    bug: Exception, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(make_parser().parse_args(["--supervised", "--model", str(MODELS / "bert-mean")]))
    monkeypatch.setattr(lockstep.LockStep, "_client", Mock(side_effect=bug))
    with contextlib.closing(lockstep.LockStep(config, ())) as server:
        answer = json.loads(server.answer(stdio.Line(7, b'{"inputs":"a secret"}')))
        assert (answer["line"], answer["status"], answer["code"]) == (7, "error", code)
        assert json.loads(server.answer(stdio.Line(8, b'{"method":"ping"}')))["message"] == "pong"
    assert "secret" not in caplog.text
    assert ("KeyError" in caplog.text) == (code == "internal_error")


def test_both_encodings_and_the_questions_of_the_protocol_are_answered_as_by_the_worker(host: LockStep) -> None:
    packed = host.ask('{"id":1,"inputs":["a","b"],"encoding_format":"base64"}')
    assert len(base64.b64decode(packed["embeddings_base64"])) == 2 * 32 * 4
    with WorkerProcess() as worker:
        for question in (
            {"id": 1, "inputs": ["a", "b"], "normalize": False},
            {"id": 1, "inputs": ["a", "b"], "dimensions": 11, "encoding_format": "base64_ubinary"},
            {"id": 1, "inputs": ["a", "b"], "encoding_format": "base64_float16"},
            {"id": 3, "method": "tokenize", "inputs": ["a b", ""]},
            {"id": 4, "method": "tokenize", "inputs": ["a b 😀"], "offsets": True, "truncate": False},
            {"id": 2, "method": "info"},
        ):
            asked, told = host.ask(json.dumps(question)), worker.ask(question)
            assert list(asked) == list(told)
            for name in ("tokens", "offsets", "count", "dimension", "embeddings_base64"):
                assert asked.get(name) == told.get(name)
            assert asked["fingerprint"] == told["fingerprint"]
        for method in ("ping", "metrics"):
            assert set(host.ask(json.dumps({"method": method}))) == set(worker.ask({"method": method}))
    assert host.ask('{"method":"cancel","target":1}')["cancelled"] is False
    assert host.end() == 0


def test_a_database_that_spawns_an_interpreter_and_a_script_never_learns_that_workers_die() -> None:
    answers = killed_between("sentence-transformers/bert-mean", ["a", "b"], {"EMBED_WORKER_MODELS": str(MODELS)})
    assert [answer["status"] for answer in answers] == ["ok"] * 6
    assert answers[1] == {**answers[4], "line": answers[1]["line"]}
    assert answers[2]["embeddings"] == answers[5]["embeddings"]


def test_a_ping_does_not_wait_for_a_worker_that_hangs(host: LockStep) -> None:
    pid = worker_of(host)
    assert host.ask('{"method":"ping"}')["state"] == "ready"
    freeze(pid)  # not before the last of its threads has heard of it
    pongs = (host.ask('{"method":"ping"}') for _ in range(1000))
    assert any(pong["state"] == "loading" for pong in pongs)  # before the hang is one, and another worker answers
    send_signal(pid, "KILL")
    assert worker_of(host) != pid
    assert host.ask('{"method":"ping"}')["state"] == "ready"
    assert host.end() == 0


def test_another_model_than_the_default_is_loaded_alone() -> None:
    settings = {"EMBED_WORKER_MODELS": str(MODELS), "EMBED_WORKER_ARGS": "--max-tokens 5"}
    with lock_step(settings, COMMAND) as host:
        load = '{"method":"load_model","params":{"model":"somebody/bert-cls-new"}}'
        assert host.ask(load)["model"] == "bert-cls-new"
        info = host.ask('{"method":"info","params":{"model":"bert-cls-new"}}')
        assert (info["models"], info["max_tokens"]) == (["bert-cls-new"], 5)
        assert host.ask('{"method":"ping"}')["state"] == "ready"
        unload = '{"method":"unload_model","params":{"model":"bert-cls-new"}}'
        assert host.ask(unload)["status"] == "ok"
        assert gone(info["pid"])
        assert host.end() == 0


def test_a_model_that_cannot_be_used_is_said_so_and_tried_again_when_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(MODELS / "bert-mean", folder)
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").write_text("{", "utf-8")
    with lock_step({"EMBED_WORKER_MODELS": str(tmp_path)}, COMMAND) as host:
        load = '{"method":"load_model","params":{"model":"mine"}}'
        refused = host.ask(load)
        assert (refused["code"], refused["retryable"]) == ("model_load_failed", False)
        assert "config.json" in refused["message"]
        assert host.ask('{"inputs":["a"],"model":"mine"}')["code"] == "model_load_failed"
        (folder / "config.json").write_bytes(config)
        assert host.ask(load)["status"] == "ok"
        assert host.end() == 0


def test_nothing_is_left_when_the_host_dies_and_a_sibling_holds_its_pipe() -> None:
    host_of_it = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], stdin=0, stdout=1); time.sleep(300)"
    with lock_step(
        {"EMBED_WORKER_MODEL": str(MODELS / "bert-mean")}, (sys.executable, "-c", host_of_it, *COMMAND)
    ) as host:
        pid = worker_of(host)
        host.process.kill()
        assert host.process.stdout is not None
        assert host.process.stdout.read() == b""
    assert gone(pid)


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows cannot be asked to end")
def test_sigterm_stops_the_worker_too(host: LockStep) -> None:
    pid = worker_of(host)
    host.process.terminate()
    assert host.process.wait(WAIT_S) == 0
    assert not is_there(pid)


def test_the_settings_come_from_the_environment() -> None:
    assert lockstep.worker_arguments({}) == ()
    assert lockstep.worker_arguments({"EMBED_WORKER_THREADS": "", "EMBED_WORKER_ARGS": ""}) == ()
    settings = {
        "EMBED_WORKER_PROVIDER": "cpu",
        "EMBED_WORKER_THREADS": "2",
        "EMBED_WORKER_ARGS": "--log-level info --max-inputs '64'",
    }
    assert lockstep.worker_arguments(settings) == (
        "--provider", "cpu", "--threads", "2", "--log-level", "info", "--max-inputs", "64",
    )  # fmt: skip


def test_the_page_of_the_command_names_every_variable() -> None:
    assert lockstep.__doc__ is not None
    assert all(f"`{name}` | `{option}`" in lockstep.__doc__ for name, option in lockstep.OPTIONS.items())


def test_a_person_who_asks_for_help_gets_it() -> None:
    command = [sys.executable, "-m", "bridge_client.lockstep", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
    assert b"EMBED_WORKER_MODEL" in done.stderr


def test_the_wheel_has_the_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert scripts["embed-lockstep"] == f"{lockstep.__name__}:{lockstep.main.__name__}"


@pytest.mark.parametrize("arguments", ["--no-such-option", "--model x", "--threads many", "EMBED_WORKER_ARGS '1"])
def test_settings_that_mean_nothing_end_it_at_once(arguments: str) -> None:
    done = subprocess.run(
        COMMAND, input=b"", env=ENVIRONMENT | {"EMBED_WORKER_ARGS": arguments}, capture_output=True, timeout=WAIT_S
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert arguments.split()[0].encode() in done.stderr


def test_the_example_host_says_what_it_promises() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "host.py")], env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["ping: pong", "load_model: all-MiniLM-L6-v2, 384 dimensions"]
    assert lines[2].startswith("another model: model_not_found: no model 'something-else' in any models folder")
    assert lines[-2].endswith("The cathedral was built in the twelfth century.")
    assert lines[-1] == "shutdown: 0 pending, exit status 0"


def test_a_host_of_json_rpc_has_an_adapter() -> None:
    asked: list[object] = [
        {"jsonrpc": "2.0", "method": "embed", "params": {"texts": ["a", "b"]}, "id": 1},
        {"jsonrpc": "2.0", "method": "embed", "params": {"texts": ["a"]}},
        {"jsonrpc": "2.0", "method": "embed", "params": {"inputs": ["a"]}, "id": "x"},
        {"jsonrpc": "2.0", "method": "embed", "params": {"texts": ["a"], "dimensions": 999}, "id": 3},
        {"jsonrpc": "2.0", "method": "embedd", "id": 4},
        {"jsonrpc": "2.0", "method": "ping", "id": 5},
        7,
        {"jsonrpc": "2.0", "method": 1, "params": "bar"},  # no request, and so no notification
    ]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "json_rpc.py"), str(MODELS / "bert-mean")],
        input="\n".join([*map(json.dumps, asked), "not JSON"]),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *others, pong, strange, unusable, broken = map(json.loads, done.stdout.splitlines())
    assert (first["id"], [len(vector) for vector in first["result"]["embeddings"]]) == (1, [32, 32])
    assert [(answer["id"], answer["error"]["code"]) for answer in others] == [("x", -32602), (3, -32602), (4, -32601)]
    assert pong == {"jsonrpc": "2.0", "id": 5, "result": {"state": "ready"}}
    refused = [(answer["id"], answer["error"]["code"]) for answer in (strange, unusable, broken)]
    assert refused == [(None, -32600), (None, -32600), (None, -32700)]
