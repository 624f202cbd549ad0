"""Hosts without ids, which write one line and read one, work unchanged; also those that start a script by its path."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "lockstep"
MODELS = ROOT / "tests" / "models"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
WAIT_S = 60.0


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LockStep:
    """The whole of such a host: started without arguments, no ids, a line for a line."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "embed_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT | environment,
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(WAIT_S)
        assert self.process.stdout.read() == b"", "a line that nobody asked for"
        self.process.stdout.close()
        return status


@pytest.fixture
def host() -> Iterator[LockStep]:
    host = LockStep({"EMBED_WORKER_MODEL": str(MODELS / "bert-mean"), "EMBED_WORKER_MODELS": str(MODELS)})
    yield host
    if host.process.poll() is None:
        host.process.kill()
    host.process.wait(WAIT_S)
    for pipe in (host.process.stdin, host.process.stdout):
        assert pipe is not None
        pipe.close()


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
    assert host.ask('{"method":"embed_batch","params":{"model":"another","inputs":["a"]}}')["code"] == "model_not_found"
    assert host.ask('{"method":"embed_batch","params":{"inputs":[1]}}')["code"] == "invalid_request"
    answer = host.ask('{"method":"embed_batch","params":{"inputs":["a"]}}')
    assert (answer["line"], answer["count"]) == (4, 1)
    assert host.ask('{"method":"load_model","params":{"model":"somebody/bert-cls-new"}}')["model"] == "bert-cls-new"
    assert host.end() == 0


def test_the_settings_come_from_the_environment() -> None:
    arguments = load("embed_server").arguments
    assert arguments({}) == ["--supervised"]
    assert arguments({"EMBED_WORKER_MODEL": "", "EMBED_WORKER_ARGS": ""}) == ["--supervised"]
    settings = {
        "EMBED_WORKER_MODEL": "/models/my model",
        "EMBED_WORKER_PROVIDER": "cpu",
        "EMBED_WORKER_THREADS": "2",
        "EMBED_WORKER_ARGS": "--log-level info --max-inputs '64'",
    }
    assert arguments(settings) == [
        "--supervised", "--model", "/models/my model", "--provider", "cpu", "--threads", "2",
        "--log-level", "info", "--max-inputs", "64",
    ]  # fmt: skip


def test_the_page_of_the_script_names_every_variable() -> None:
    server = load("embed_server")
    assert server.__doc__ is not None
    assert all(f"`{name}` | `{option}`" in server.__doc__ for name, option in server.OPTIONS.items())


def test_a_setting_that_cannot_be_used_ends_the_script_with_78_and_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "embed_server.py")],
        input=b'{"method":"embed_batch","params":{"inputs":["a"]}}\n',
        env=ENVIRONMENT | {"EMBED_WORKER_MODEL": "there-is-no-such-model"},
        capture_output=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 78
    assert json.loads(done.stdout)["code"] == "model_load_failed"
    assert b"there-is-no-such-model" in done.stderr


def test_the_example_host_says_what_it_promises() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "host.py")], env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "ping: pong",
        "load_model: all-MiniLM-L6-v2, 384 dimensions",
        "another model: model_not_found: the model 'something-else' is not loaded",
    ]
    assert lines[-2].endswith("The cathedral was built in the twelfth century.")
    assert lines[-1] == "shutdown: 0 pending, exit status 0"
