"""What the worker makes of where it runs: no home, another encoding, a cap of threads, other spellings of a folder."""

from __future__ import annotations

import glob
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_worker import machine
from embed_worker.config import ModelOptions, folder_argument, path_argument
from embed_worker.errors import ModelError, reason_of
from embed_worker.logs import JsonFormatter, TextFormatter
from embed_worker.machine import available_cores, choose_threads, describe_machine
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.search import as_listed, models_folders, user_models_folder
from tests.worker.harness import ROOT, TINY_MODEL, WAIT_S, WorkerProcess

ONE = b'{"id": 1, "inputs": "x"}\n'
HOMES = ("HOME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "APPDATA", "XDG_CACHE_HOME", "XDG_DATA_HOME")


def run(
    *arguments: str, data: bytes = b"", env: dict[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "embed_worker", *arguments]
    return subprocess.run(command, input=data, capture_output=True, env=env, cwd=cwd, timeout=WAIT_S)


def without_homes(**added: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.upper() not in HOMES}
    return kept | {"PYTHONPATH": str(ROOT)} | added


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)  # the accounts of this system know none, either


# Homes -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_home")
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_without_a_home_there_are_no_folders_of_the_user(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert (machine.home_dir(), machine.cache_dir(), user_models_folder()) == (None, None, None)
    assert models_folders([])[-1] == ROOT / "models"
    with pytest.raises(ArgumentTypeError, match="begins with a home, and there is none"):
        path_argument("~/models")


@pytest.mark.parametrize("read", [path_argument, folder_argument])
def test_an_empty_path_is_not_the_working_directory(read: Callable[[str], Path]) -> None:
    with pytest.raises(ArgumentTypeError, match="the path is empty"):
        read("")
    assert read(".") == Path()


def test_a_worker_without_a_home_serves_and_makes_no_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    # As for an account that the system does not know, such as one of a container's that was started with any number.
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nos.path.expanduser = str\n", "utf-8")
    env = without_homes(PYTHONPATH=os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    done = run(data=ONE, env=env, cwd=tmp_path)  # the default model, which has a manifest to remember
    assert (done.returncode, json.loads(done.stdout)["status"], done.stderr) == (0, "ok", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_home_is_expanded_where_no_shell_has_seen_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert path_argument("~/models") == tmp_path / "models"
    assert path_argument("models/~") == Path("models/~")


# Encodings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252"])
def test_a_tool_prints_what_a_console_cannot_show(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "Пётр 日本…"
    shutil.copytree(TINY_MODEL, folder)
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = run("inspect", str(folder), env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout
    refused = run("inspect", str(folder / "нет"), env=env)
    assert refused.returncode not in (0, 1), "a message, and no traceback"
    assert b"Traceback" not in refused.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_lines_of_the_json_log_are_utf8_whatever_the_system_writes(tmp_path: Path, encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = run("--model", str(tmp_path / "nö😀"), "--log-format", "json", data=ONE, env=env)
    lines = [json.loads(line) for line in done.stderr.decode("utf-8").splitlines()]
    assert any("nö😀" in line.get("reason", "") for line in lines)
    assert b"\r" not in done.stderr


def test_a_path_that_is_not_text_is_logged_all_the_same() -> None:
    record = logging.makeLogRecord({"msg": "no folder %s", "args": ("/b\udcff",), "levelname": "ERROR"})
    assert json.loads(JsonFormatter().format(record))["message"] == r"no folder /b\udcff"


# What an answer says of the machine ---------------------------------------------------------------------------------


def test_info_tells_of_the_machine_and_of_the_threads_what_a_report_of_a_fault_needs() -> None:
    with WorkerProcess("--threads", "1") as worker:
        info = worker.ask({"method": "info"})
        worker.close_input()
        assert worker.wait() == 0
    assert info["threads"] == {"value": 1, "reason": "--threads"}
    assert info["machine"] == describe_machine()
    assert info["machine"]["python"] == f"{sys.implementation.name} {platform.python_version()}"
    assert all(info["machine"].values())


@pytest.mark.parametrize(
    ("stated", "value"),
    [("", 8), ("1", 1), (" 2 ", 2), ("3,1", 3), ("8", 8), ("64", 8), ("0", 8), ("-1", 8), ("many", 8), ("1.5", 8)],
)
def test_a_stated_number_of_threads_caps_the_cores(monkeypatch: pytest.MonkeyPatch, stated: str, value: int) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    chosen = choose_threads(None, {"OMP_NUM_THREADS": stated})
    assert chosen.value == value
    assert ("OMP_NUM_THREADS" in chosen.reason) == (value < 8)
    assert choose_threads(5, {"OMP_NUM_THREADS": stated}).value == 5


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.skipif(available_cores() < 2, reason="one core has one thread anyhow")
def test_a_worker_of_one_stated_thread_has_as_many_as_one_that_was_asked_for_one() -> None:
    def count(*arguments: str, **env: str) -> int:
        with WorkerProcess(*arguments, "--log-level", "info", env=env) as worker:
            worker.ask({"id": 1, "inputs": ["a", "b"]})
            threads = len(os.listdir(f"/proc/{worker.process.pid}/task"))
            worker.close_input()
            assert worker.wait() == 0
            assert worker.all_stderr().count("threads value=1") == (0 if not arguments and not env else 1)
            return threads

    assert count(OMP_NUM_THREADS="1") == count("--threads", "1")


def test_a_failure_of_the_system_is_told_with_its_reason_and_the_name_of_the_file() -> None:
    assert reason_of(OSError(36, "File name too long", "/a/b/" + "x" * 300)) == f"File name too long: '{'x' * 80}'"
    assert reason_of(OSError(12, "Cannot allocate memory")) == "Cannot allocate memory"
    assert reason_of(KeyError("x")) == "KeyError"


def test_a_path_that_is_too_long_is_refused_with_a_reason() -> None:
    done = run("--model", str(ROOT / ("x" * 300)), data=ONE, env=dict(os.environ))
    assert done.returncode == 78
    message = json.loads(done.stdout)["message"]
    assert "OSError" not in message
    assert "too long" in message or "there is no folder" in message


# Spellings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folding_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder `bert-mean` on a disk where case and dots at the end do not count, as on most of Windows and macOS."""
    (tmp_path / "bert-mean").mkdir()
    if (tmp_path / "BERT-MEAN").exists():
        return tmp_path
    lstat, isdir = os.lstat, os.path.isdir

    def folded(path: str | os.PathLike[str]) -> str:
        head, name = os.path.split(os.fspath(path))
        return os.path.join(head, name.lower().rstrip("."))

    monkeypatch.setattr(os, "lstat", lambda path: lstat(folded(path)))
    monkeypatch.setattr(os.path, "isdir", lambda path: isdir(folded(path)))
    return tmp_path


@pytest.mark.parametrize("spelling", ["bert-mean", "BERT-MEAN", "Bert-Mean"])
def test_a_folder_has_one_name_whatever_spelling_opens_it(folding_disk: Path, spelling: str) -> None:
    assert as_listed(folding_disk / spelling) == folding_disk / "bert-mean"


def test_the_root_of_a_file_system_is_no_model_and_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(Path.cwd().anchor)
    assert as_listed(root) == root
    monkeypatch.setattr(glob, "glob", lambda *_, **__: pytest.fail("it is searched"))
    with pytest.raises(ModelError, match="is the root of a file system and not a model's folder"):
        read_model_folder(root, ModelOptions())


def test_graphs_are_looked_for_two_levels_down_and_no_deeper(tmp_path: Path) -> None:
    for folder in ("", "a", "a/b", "a/b/c"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "odd.onnx").touch()
    with pytest.raises(ModelError, match=r"can choose one of: a/b/odd\.onnx, a/odd\.onnx, odd\.onnx(;|$)"):
        read_model_folder(tmp_path, ModelOptions())


def test_a_folder_that_is_not_there_keeps_its_spelling(tmp_path: Path) -> None:
    assert as_listed(tmp_path / "none" / "Bert") == tmp_path / "none" / "Bert"
    assert as_listed(tmp_path / "Bert") == tmp_path / "Bert"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "chosen").symlink_to(tmp_path / "bert")
    assert as_listed(tmp_path / "chosen").name == "chosen"


def test_a_name_forges_no_line_of_the_log_and_moves_no_cursor() -> None:
    name = "model\n2026 ERROR forged\x1b[2J\u2028\x85"
    record = logging.LogRecord("a", logging.WARNING, __file__, 1, "name=%s", (name,), None)
    line = TextFormatter("%(levelname)s %(message)s").format(record)
    assert line == "WARNING name=model\\n2026 ERROR forged\\x1b[2J\\u2028\\x85"
    assert not {"\n", "\x1b"} & set(JsonFormatter().format(record))
