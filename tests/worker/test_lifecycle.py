"""How a real worker starts, stops and dies: descriptors, signals, parents, exit statuses, bad models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worker.harness import ROOT, TINY_MODEL, WAIT_S, WorkerProcess, lines_of, run_worker

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and descriptors")
SLOW = {"inputs": ["a long text of many words " * 20] * 3000}


# End of input and shutdown


def test_end_of_input_before_anything_ends_the_worker_at_once() -> None:
    assert run_worker(b"") == (0, [], "")


def test_end_of_input_finishes_what_was_accepted() -> None:
    status, answers, _ = run_worker(lines_of(*({"id": number, "inputs": "a"} for number in range(500))))
    assert status == 0
    assert sorted(answer["id"] for answer in answers if answer["status"] == "ok") == list(range(500))


def test_shutdown_finishes_accepted_work_and_refuses_what_comes_after() -> None:
    with WorkerProcess() as worker:
        worker.ask({"id": "warm", "method": "info"})
        worker.send({"id": "work", **SLOW}, {"id": "stop", "method": "shutdown"}, {"id": "late", "inputs": "a"})
        worker.send({"id": "p", "method": "ping"})
        answers = {answer["id"]: answer for answer in worker.receive_rest()}
        assert worker.wait() == 0
    assert answers["stop"]["pending"] == 1
    assert answers["work"]["count"] == 3000
    assert (answers["late"]["code"], answers["late"]["retryable"]) == ("shutting_down", True)
    assert answers["p"]["state"] == "draining"


@POSIX
def test_sigterm_answers_accepted_work_and_exits_with_0() -> None:
    with WorkerProcess() as worker:
        worker.ask({"id": "warm", "method": "info"})
        worker.send({"id": "work", **SLOW}, {"id": "p", "method": "ping"})
        assert worker.receive()["id"] == "p"  # the work before it has been accepted
        worker.signal(signal.SIGTERM)
        assert [answer["id"] for answer in worker.receive_rest()] == ["work"]
        assert worker.wait() == 0
        assert worker.all_stderr() == ""


@POSIX
def test_ctrl_c_answers_accepted_work_and_exits_with_130() -> None:
    with WorkerProcess() as worker:
        worker.ask({"id": "warm", "method": "info"})
        worker.send({"id": "work", **SLOW}, {"id": "p", "method": "ping"})
        assert worker.receive()["id"] == "p"
        worker.signal(signal.SIGINT)
        assert [answer["status"] for answer in worker.receive_rest()] == ["ok"]
        assert worker.wait() == 130
        assert worker.all_stderr() == ""


@POSIX
def test_signals_that_the_host_has_blocked_for_itself_are_obeyed() -> None:
    with contextlib.ExitStack() as stack:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            workers = [stack.enter_context(WorkerProcess()) for _ in range(2)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for worker, number, status in zip(workers, (signal.SIGTERM, signal.SIGINT), (0, 130), strict=True):
            assert worker.ask({"id": 1, "method": "ping"})["id"] == 1
            worker.signal(number)
            assert worker.wait() == status


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a working directory from being deleted")
def test_a_worker_whose_working_directory_is_deleted_serves_a_model_by_its_name() -> None:
    where = 'cd "$(mktemp -d)" && rmdir "$PWD" && exec "$@"'
    command = ["sh", "-c", where, "sh", sys.executable, "-P", "-m", "embed_worker", "--model", "bert-mean"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EMBED_WORKER_MODELS": str(TINY_MODEL.parent)}
    data = lines_of({"id": 1, "inputs": "a"})
    done = subprocess.run(command, input=data, env=environment, capture_output=True, timeout=WAIT_S, check=False)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "ok")


@POSIX
def test_a_second_stop_signal_drops_queued_work_with_an_answer() -> None:
    with WorkerProcess() as worker:
        worker.ask({"id": "warm", "method": "info"})
        worker.send(*({"id": number, **SLOW} for number in range(30)), {"id": "p", "method": "ping"})
        while worker.receive()["id"] != "p":
            pass
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGINT)
        rest = worker.receive_rest()
        assert worker.wait() in (0, 130)  # whichever signal came first
    assert {answer["code"] for answer in rest if answer["status"] == "error"} == {"shutting_down"}


@POSIX
def test_a_supervised_worker_ignores_ctrl_c() -> None:
    with WorkerProcess("--supervised") as worker:
        worker.ask({"id": 1, "method": "info"})
        worker.signal(signal.SIGINT)
        assert worker.ask({"id": 2, "inputs": "a"})["status"] == "ok"
        worker.close_input()
        assert worker.wait() == 0


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_while_the_model_loads_is_quiet(number: signal.Signals) -> None:
    with WorkerProcess() as worker:
        assert worker.ask({"id": 1, "method": "ping"})["id"] == 1
        worker.signal(number)
        assert worker.wait() == (0 if number == signal.SIGTERM else 130)
        assert worker.all_stderr() == ""


# Ping


def test_ping_is_answered_while_the_model_loads_and_while_it_works() -> None:
    with WorkerProcess() as worker:
        worker.send({"id": "i", "method": "info"}, {"id": "p", "method": "ping"})
        first, second = worker.receive(), worker.receive()
        assert (first["id"], first["state"], second["id"]) == ("p", "loading", "i")
        worker.send({"id": "work", **SLOW}, {"id": "p", "method": "ping"})
        busy = worker.receive()
        assert (busy["id"], busy["state"], busy["in_flight"]) == ("p", "ready", 1)
        assert worker.receive()["id"] == "work"
        idle = worker.ask({"id": "p", "method": "ping"})
        assert (idle["in_flight"], idle["queued"]) == (0, 0)
        assert idle["micro_batches"] > busy["micro_batches"]


def test_a_thousand_requests_at_once_are_all_answered() -> None:
    with WorkerProcess() as worker:
        worker.send(*({"id": number, "inputs": f"text {number}"} for number in range(1000)))
        assert {worker.receive()["id"] for _ in range(1000)} == set(range(1000))


# Descriptors

NOISY = """
import ctypes, os, subprocess, sys
import embed_worker.__main__ as command
import embed_worker.model_files.folder as victim
original = victim.read_model_folder
def noisy(*arguments):
    print("noise from Python")
    os.write(1, b"noise from the descriptor\\n")
    libc = ctypes.CDLL(None)
    libc.puts(b"noise from C")
    libc.fflush(None)
    subprocess.run([sys.executable, "-c", "print('noise from a child')"], check=True)
    subprocess.run(["cat"], check=True)  # would eat the requests if it could
    return original(*arguments)
victim.read_model_folder = noisy
command.main(["--model", sys.argv[1]])
"""


@POSIX
def test_what_a_library_prints_lands_on_standard_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY, str(TINY_MODEL)],
        input=lines_of({"id": 1, "inputs": "a"}, {"id": 2, "inputs": "b"}),
        capture_output=True,
        cwd=ROOT,
        timeout=WAIT_S,
        check=True,
    )
    assert {json.loads(line)["id"] for line in done.stdout.splitlines()} == {1, 2}
    for source in (b"Python", b"the descriptor", b"C", b"a child"):
        assert b"noise from " + source in done.stderr


@POSIX
@pytest.mark.parametrize(("closed", "word"), [("<&-", "input"), (">&-", "output")])
def test_a_closed_descriptor_at_the_start_is_said_and_exits_with_74(closed: str, word: str) -> None:
    command = f'"{sys.executable}" -m embed_worker --model "{TINY_MODEL}" {closed}'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, cwd=ROOT, timeout=WAIT_S, check=False)
    assert done.returncode == 74
    assert f"standard {word} is closed" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@POSIX
@pytest.mark.parametrize("allowed", [8, 11])
def test_descriptors_that_are_not_enough_are_said_and_exit_with_74(allowed: int) -> None:
    command = f"ulimit -n {allowed} && exec '{sys.executable}' -m embed_worker"
    done = subprocess.run(["sh", "-c", command], input=b"", capture_output=True, cwd=ROOT, timeout=WAIT_S, check=False)
    assert done.returncode == 74
    assert done.stderr.decode().splitlines() == [
        f"embed-worker: no file descriptor is left for the wire: ulimit -n allows {allowed}"
    ]


@POSIX
def test_a_closed_standard_error_does_not_matter() -> None:
    command = f'"{sys.executable}" -m embed_worker --model "{TINY_MODEL}" --log-level debug 2>&-'
    data = lines_of({"id": 1, "inputs": "a"})
    done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, cwd=ROOT, timeout=WAIT_S, check=False)
    assert done.returncode == 0
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ok"]


@POSIX
def test_a_full_pipe_of_standard_error_that_nobody_reads_keeps_nobody_waiting() -> None:
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    command = [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL), "--log-level", "debug"]
    data = lines_of({"id": 1, "inputs": "a"})
    done = subprocess.run(
        command, input=data, stdout=subprocess.PIPE, stderr=full, cwd=ROOT, timeout=WAIT_S, check=False
    )
    os.close(full)
    os.close(unread)
    assert done.returncode == 0
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ok"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_standard_output_is_said_and_exits_with_74() -> None:
    command = [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, input=lines_of({"id": 1, "inputs": "a"}), stdout=full, stderr=subprocess.PIPE, cwd=ROOT,
            timeout=WAIT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr.count(b"\n") == 1
    assert b"writing ended reason=No space left on device" in done.stderr


@POSIX
def test_a_read_error_is_not_an_end_of_input() -> None:
    ours, theirs = socket.socketpair()
    theirs.send(b"never read")  # closing a socket with unread bytes resets it
    ours.close()
    done = subprocess.run(
        [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)],
        stdin=theirs.fileno(), capture_output=True, cwd=ROOT, timeout=WAIT_S, check=False,
    )  # fmt: skip
    theirs.close()
    assert (done.returncode, done.stdout) == (74, b"")
    assert b"standard input cannot be read" in done.stderr


@POSIX
def test_non_blocking_pipes_from_the_host_work() -> None:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    for descriptor in (in_read, out_write):
        os.set_blocking(descriptor, False)
    command = [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)]
    process = subprocess.Popen(command, stdin=in_read, stdout=out_write, cwd=ROOT)
    os.close(in_read)
    os.close(out_write)
    received: list[bytes] = []

    def read() -> None:
        with os.fdopen(out_read, "rb") as stream:
            received.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(in_write, "wb") as stream:
        for number in range(20):  # answers of far more than a pipe holds
            stream.write(lines_of({"id": number, "inputs": ["a"] * 500}))
            stream.flush()
    assert process.wait(WAIT_S) == 0
    reader.join(WAIT_S)
    assert {json.loads(line)["id"] for line in received} == set(range(20))


# Parents

HOST = """
import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-m", "embed_worker", "--supervised", "--model", sys.argv[1]],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
worker.stdin.write(b'{"id": 1, "method": "info"}\\n')
worker.stdin.flush()
worker.stdout.readline()
if sys.argv[2] == "busy":
    worker.stdin.write(b'{"id": 2, "inputs": [' + b", ".join([b'"a long text of many words"'] * 16000) + b']}\\n' * 1)
    worker.stdin.write(b'{"id": 3, "method": "ping"}\\n')
    worker.stdin.flush()
    worker.stdout.readline()
if sys.argv[3] == "sibling":
    # A forked child that holds the pipes, as a pre-forking server does.
    if os.fork() == 0:
        os.close(1)
        os.close(2)
        import signal
        signal.alarm(60)
        signal.pause()
print(worker.pid, flush=True)
import signal
signal.pause()
"""


@POSIX
@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("others", ["alone", "sibling"])
def test_a_supervised_worker_is_gone_when_its_parent_was_killed(state: str, others: str) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(TINY_MODEL), state, others], stdout=subprocess.PIPE, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    assert host.stdout is not None
    pid = int(host.stdout.readline())
    gone = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    host.kill()
    host.wait(WAIT_S)
    try:
        if gone is None:
            pytest.skip("this platform cannot wait for somebody else's child")
        import select

        poll = select.poll()
        poll.register(gone, select.POLLIN)
        assert poll.poll(5_000), "the worker outlived its parent"
    finally:
        os.killpg(host.pid, signal.SIGKILL) if others == "sibling" else None
        host.stdout.close()
        if gone is not None:
            os.close(gone)


def test_a_worker_above_its_memory_limit_finishes_what_it_has_and_exits_with_79() -> None:
    for _ in range(5):  # on a busy machine a worker may see its memory before it sees the first line
        with WorkerProcess("--rss-limit-mb", "1", "--log-level", "error") as worker:
            worker.send({"id": 1, **SLOW})
            if not (answers := worker.receive_rest()) and worker.wait() == 79:
                continue
            assert [answer["count"] for answer in answers] == [3000]
            assert worker.wait() == 79
            assert worker.all_stderr() == ""
            return
    pytest.fail("no worker has seen the line")


def test_a_worker_below_its_memory_limit_lives_on() -> None:
    data = lines_of({"id": 1, "inputs": "a"}, {"id": 2, "inputs": "b"})
    status, answers, _ = run_worker(data, "--rss-limit-mb", "4000")
    assert (status, len(answers)) == (0, 2)


# Models that cannot be used


def damaged(tmp_path: Path, change: str) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(TINY_MODEL, folder)
    graph, pooling = folder / "onnx" / "model.onnx", folder / "1_Pooling" / "config.json"
    match change:
        case "no graph":
            graph.unlink()
        case "not ONNX":
            graph.write_bytes(b"this is not a graph")
        case "empty graph":
            graph.write_bytes(b"")
        case "cut graph":
            graph.write_bytes(graph.read_bytes()[:5000])
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "vocab.txt").unlink()  # which a BERT's tokenizer could be made of
        case "tokenizer is not JSON":
            (folder / "tokenizer.json").write_text("{")
        case "wrong hash":
            files = {"tokenizer.json": {"sha256": "0" * 64, "size": (folder / "tokenizer.json").stat().st_size}}
            manifest = {"format": 1, "name": "model", "source": "", "license": "", "files": files}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        case "wrong dimension":
            pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": 33}))
        case "unknown pooling":
            pooling.write_text('{"pooling_mode": "median"}')
        case "no pooling":
            pooling.unlink()
        case "modules leave the folder":
            modules = json.loads((folder / "modules.json").read_text())
            modules[1]["path"] = "../elsewhere"
            (folder / "modules.json").write_text(json.dumps(modules))
        case "weights are not numbers":
            onnx = pytest.importorskip("onnx")
            model = onnx.load(graph)
            for tensor in model.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT:
                    shape = list(tensor.dims)
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, np.nan, np.float32), tensor.name))
            onnx.save(model, graph)
        case _:
            raise AssertionError(change)
    return folder


DAMAGES = [
    "no graph", "not ONNX", "empty graph", "cut graph", "no tokenizer", "tokenizer is not JSON", "wrong hash",
    "wrong dimension", "unknown pooling", "no pooling", "modules leave the folder", "weights are not numbers",
]  # fmt: skip


@pytest.mark.parametrize("change", DAMAGES)
def test_a_model_that_cannot_be_used_ends_the_worker_with_78_and_one_sentence(tmp_path: Path, change: str) -> None:
    data = lines_of({"id": 1, "inputs": "a"}, {"id": 2, "method": "info"}, {"inputs": "b"})
    status, answers, stderr = run_worker(data, model=damaged(tmp_path, change))
    assert status == 78
    assert {answer["id"]: answer["code"] for answer in answers} == dict.fromkeys([1, 2, None], "model_load_failed")
    assert len(stderr.splitlines()) == 1, stderr
    assert "Traceback" not in stderr
    assert answers[0]["message"] in stderr


@POSIX
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    folder = damaged(tmp_path, "no pooling")
    shutil.copy(TINY_MODEL / "1_Pooling" / "config.json", folder / "1_Pooling" / "config.json")
    (folder / "tokenizer.json").chmod(0)
    if os.access(folder / "tokenizer.json", os.R_OK):
        # Root may read everything; a folder in the file's place cannot be read by anybody.
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").mkdir()
    status, answers, stderr = run_worker(lines_of({"id": 1, "inputs": "a"}), model=folder)
    assert (status, answers[0]["code"]) == (78, "model_load_failed")
    assert "Traceback" not in stderr


@pytest.mark.parametrize("name", ["nosuchmodel", "./nosuchfolder", "nosuch/../path"])
def test_a_model_that_is_nowhere_ends_the_worker_with_78(name: str) -> None:
    status, answers, stderr = run_worker(lines_of({"id": 1, "inputs": "a"}), "--model", name, model=None)
    assert (status, answers[0]["code"]) == (78, "model_load_failed")
    assert len(stderr.splitlines()) == 1


def test_a_model_that_is_nowhere_is_refused_before_input_is_looked_at() -> None:
    status, answers, stderr = run_worker(b"", model=Path("/no/such/folder"))
    assert (status, answers) == (78, [])
    assert len(stderr.splitlines()) == 1


def test_a_provider_that_this_runtime_does_not_have_ends_the_worker_with_78() -> None:
    status, answers, stderr = run_worker(lines_of({"id": 1, "inputs": "a"}), "--provider", "tensorrt")
    assert (status, answers[0]["code"]) == (78, "model_load_failed")
    assert "tensorrt" in stderr


def test_a_host_that_keeps_the_pipe_open_hears_why_there_is_no_model(tmp_path: Path) -> None:
    with WorkerProcess(model=damaged(tmp_path, "not ONNX")) as worker:
        worker.send({"id": 1, "inputs": "a"})
        assert worker.receive()["code"] == "model_load_failed"
        worker.send({"id": 2, "inputs": "a"})
        assert worker.receive()["code"] == "model_load_failed"
        assert worker.wait() == 78


def test_a_second_model_that_fails_harms_nobody_else(tmp_path: Path) -> None:
    folder = damaged(tmp_path, "not ONNX")
    with WorkerProcess("--model", str(folder), "--models-dir", str(tmp_path)) as worker:
        assert worker.ask({"id": 1, "inputs": "a"})["status"] == "ok"
        refused = worker.ask({"id": 2, "inputs": "a", "model": "model"})
        assert refused["code"] in ("model_load_failed", "model_not_found")  # still being loaded, or given up already
        failed = worker.ask({"id": 3, "method": "load_model", "model": "model"})
        assert failed["code"] == "model_load_failed"
        assert worker.ask({"id": 4, "inputs": "a"})["status"] == "ok"


# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--threads", "0"],
        ["--log-level", "loud"],
        ["--max-inputs", "x"],
        ["--model", "other/bert-mean"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    status, answers, stderr = run_worker(b"", *arguments)
    assert (status, answers) == (2, [])
    assert stderr.startswith("embed-worker: ")


def test_help_and_version_are_for_people() -> None:
    def output(option: str) -> str:
        command = [sys.executable, "-m", "embed_worker", option]
        return subprocess.run(command, capture_output=True, cwd=ROOT, timeout=WAIT_S, check=True, text=True).stdout

    assert 'echo \'{"inputs": ["hello world"]}\' | embed-worker' in output("--help")
    assert output("--version").startswith("embed-worker ")


def test_logs_are_text_or_json_and_never_hold_a_text() -> None:
    data = lines_of({"id": 1, "inputs": "correct horse battery staple"}) + b"nonsense\n"
    _, _, text = run_worker(data, "--log-level", "debug")
    assert "INFO embed_worker.loading model loaded name=bert-mean" in text
    _, _, lines = run_worker(data, "--log-level", "debug", "--log-format", "json")
    records: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
    assert any(record["level"] == "info" and "model loaded" in record["message"] for record in records)
    assert "horse" not in text + lines


def test_one_text_at_a_time_gives_the_same_vectors() -> None:
    data = lines_of({"id": 1, "inputs": ["short", "a rather longer text", "x y z"]}, {"id": 2, "method": "metrics"})
    _, together, _ = run_worker(data)
    _, alone, _ = run_worker(data, "--batch-invariant", "--threads", "1", "--batch-tokens", "64", "--verify", "never")
    np.testing.assert_allclose(together[-1]["embeddings"], alone[-1]["embeddings"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "pooling", "normalize", "max_tokens"),
    [
        (["--pooling", "cls", "--normalize"], ["cls"], True, 64),
        (["--pooling", "max,mean", "--no-normalize", "--max-tokens", "17"], ["max", "mean"], False, 17),
        (["--onnx-file", "onnx/model.onnx"], ["mean"], True, 64),
    ],
)
def test_options_settle_the_folder_of_the_model_before_them(
    options: list[str], pooling: list[str], normalize: bool, max_tokens: int
) -> None:
    _, answers, _ = run_worker(lines_of({"method": "info"}), *options)
    info = answers[0]
    assert (info["pooling"], info["normalize"], info["max_tokens"]) == (pooling, normalize, max_tokens)


def test_a_variant_that_is_not_there_is_said() -> None:
    status, _, stderr = run_worker(lines_of({"method": "info"}), "--variant", "int9")
    assert status == 78
    assert "onnx/model_int9.onnx" in stderr
