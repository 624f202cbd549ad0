"""What a host may do to itself: die in every way, fork, press Ctrl-C. Nothing may be left of a worker."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from bridge_client import ClientClosedError, ClientOptions
from bridge_client.testing import fake_client
from bridge_client.testing.processes import is_there, send_signal, status_of
from embed_worker.machine import rss_bytes
from tests.client.conftest import WAIT_S, wait_until
from tests.client.test_client import expected

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")

# A start takes Windows ten times as long.
DEATHS = 40 if sys.platform == "win32" else 100

ROOT = str(Path(__file__).resolve().parents[2])

HOST = """
import os, sys, threading, time
from bridge_client import EmbedClient, Timing
from bridge_client.testing import fake_command
from bridge_client.testing.processes import die

# A process of Windows is killed without its children.
grandchild = {} if os.name == "nt" else {"grandchild": sys.argv[1]}
command = fake_command(latency=LATENCY, **grandchild)
client = EmbedClient(worker_command=command, timing=Timing(drain_s=0.3))
client.info()
future = client.submit("in flight")
print(client.stats().pid, flush=True)
"""


class Host:
    """A program with a client in it, to be treated badly."""

    def __init__(self, ending: str, tmp_path: Path, latency: float = 0.0, new_session: bool = False) -> None:
        self.grandchild_file = tmp_path / "grandchild"
        source = HOST.replace("LATENCY", str(latency)) + textwrap.dedent(ending)
        self.process = subprocess.Popen(
            # From Python 3.12 on a fork beside threads is warned of.
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", source, str(self.grandchild_file)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=new_session,
        )
        assert self.process.stdout is not None
        self.worker = int(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Wait for the host's end, and for that of everything it started; return its status and standard error."""
        _, stderr = self.process.communicate(timeout=WAIT_S)
        wait_until(lambda: not is_there(self.worker), "the worker lives on")
        return self.process.returncode, stderr


@pytest.mark.parametrize("latency", [0.0, 3600.0])
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('the host met a bug')", 1),
        ("client.close()", 0),
        ("os._exit(4)", 4),
        ("die('KILL')", status_of("KILL")),
        ("die('TERM')", status_of("TERM")),
        ("threading.Thread(target=lambda: [client.embed('x') for _ in range(5)]).start() if LATENCY == 0 else 0", 0),
    ],
)
def test_no_worker_outlives_its_host(ending: str, status: int, latency: float, tmp_path: Path) -> None:
    host = Host(ending.replace("LATENCY", str(latency)), tmp_path, latency)
    returned, stderr = host.end()
    assert returned == status
    if "raise" not in ending:
        assert stderr == "", "no traceback, no warning"
    if sys.platform != "win32":
        wait_until(lambda: not is_there(int(host.grandchild_file.read_text("ascii"))), "its grandchild lives on")


LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen(sys.argv[1:])
sys.exit(worker.wait())
"""


def test_a_worker_behind_a_launcher_is_known_by_its_own_number_and_does_not_outlive_its_host(tmp_path: Path) -> None:
    """As every worker is that the Python of a virtual environment starts on Windows."""
    own = textwrap.dedent(f"""
    client.close()
    client = EmbedClient(worker_command=(sys.executable, "-c", {LAUNCHER!r}, *fake_command(latency=3600.0)))
    worker = client.info()["pid"]
    future = client.submit("in flight")
    print(client.stats().pid == worker, worker, flush=True)
    die("KILL")
    """)
    host = Host(own, tmp_path)
    assert host.process.stdout is not None
    is_known, worker = host.process.stdout.readline().split()
    assert is_known == "True"
    assert host.end()[0] == status_of("KILL")
    wait_until(lambda: not is_there(int(worker)), "the worker lives on")


@POSIX
def test_ctrl_c_reaches_the_host_and_not_the_worker(tmp_path: Path) -> None:
    ending = """
    try:
        print("waiting", flush=True)
        client.embed("never answered")
    except KeyboardInterrupt:
        print(client.ping()["message"], client.stats().restarts, flush=True)
    client.close()
    """
    host = Host(ending, tmp_path, latency=3600.0, new_session=True)
    assert host.process.stdout is not None
    assert host.process.stdout.readline() == "waiting\n"
    os.killpg(host.process.pid, signal.SIGINT)  # as a terminal does, to the whole foreground group
    assert host.process.stdout.readline() == "pong 0\n"
    assert host.end() == (0, "")


@POSIX
def test_a_forked_child_is_refused_and_does_not_hold_the_pipe(tmp_path: Path) -> None:
    ending = """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.embed("x")
        except Exception as error:
            print(type(error).__name__, flush=True)
        client.close()
        os.read(reading, 1)  # lives until the parent says so
        os._exit(0)
    future.cancel()
    client.close()
    try:
        os.kill(client_pid, 0)
        print("alive", flush=True)
    except ProcessLookupError:
        print("gone", flush=True)
    os.write(writing, b".")
    os.waitpid(child, 0)
    """
    host = Host("client_pid = client.stats().pid\n" + textwrap.dedent(ending), tmp_path)
    assert host.process.stdout is not None
    said = sorted(host.process.stdout.readline().strip() for _ in range(2))
    status, stderr = host.end()
    assert said == ["ClientClosedError", "gone"]
    assert (status, stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_parent_of_a_fork_is_untouched_and_end_of_input_is_not_delayed() -> None:
    reading, writing = os.pipe()
    with fake_client() as client:
        client.embed(["before"])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.embed(["in the child"])
            except ClientClosedError:
                status = 0
            os.close(writing)
            os.read(reading, 1)  # lives until the parent is done
            os._exit(status)
        os.close(reading)
        try:
            assert np.array_equal(client.embed(["after"]), expected("after"))
            client.close()
        finally:
            os.close(writing)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    report = client.stats().last_exit
    assert status == 0
    assert report is not None
    assert report.status == 0, "the end of input was enough: nobody else held the pipe"


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "/tmp/evil.py")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("EMBED_WORKER_MODELS", "/models")
    environment = ClientOptions(env={"EXTRA": "1"}).environment(os.environ)
    assert "DATABASE_PASSWORD" not in environment
    assert "PYTHONSTARTUP" not in environment
    assert environment["LC_ALL"] == "C.UTF-8"
    assert environment["EMBED_WORKER_MODELS"] == "/models"
    assert environment["EXTRA"] == "1"
    assert "PATH" in environment


@POSIX
def test_a_working_directory_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    source = """
    import os
    import numpy  # before: Python 3.13.0 has a fault of its own there
    from bridge_client.testing import fake_client
    os.rmdir(os.getcwd())
    with fake_client() as client:
        print(client.embed(["a"]).shape)
    """
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=gone,
        env={"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.stdout.strip() == "(1, 8)", done.stderr


def test_many_restarts_leave_descriptors_threads_and_memory_flat() -> None:
    options = ClientOptions(backoff_initial_s=0.001, backoff_max_s=0.001, restart_budget=1000)
    others = threading.active_count()
    with fake_client(options) as client:
        client.embed(["a"])

        def die(times: int) -> None:
            for _ in range(times):
                generation, pid = client.stats().generation, client.stats().pid
                assert pid is not None
                send_signal(pid, "KILL")
                wait_until(lambda was=generation: client.stats().generation > was and client.stats().pid is not None)
                assert client.embed(["a"]).shape == (1, 8)

        die(20)
        gc.collect()
        wait_until(lambda: threading.active_count() <= others + 7)
        before = resources()
        die(DEATHS - 20)
        gc.collect()
        wait_until(
            lambda: resources()[0] <= before[0] and resources()[1] <= before[1], f"{before} became {resources()}"
        )
        assert resources()[2] - before[2] < 8 * 2**20
        assert client.stats().restarts == DEATHS


def resources() -> tuple[int, int, int]:
    """Return open descriptors (on Windows handles), threads, and resident bytes."""
    if sys.platform == "win32":
        kernel, handles = ctypes.CDLL("kernel32"), ctypes.c_uint32()
        assert kernel.GetProcessHandleCount(ctypes.c_void_p(-1), ctypes.byref(handles))
        return handles.value, threading.active_count(), rss_bytes()
    return len(os.listdir("/dev/fd")), threading.active_count(), rss_bytes()


def test_the_client_imports_no_runtime_and_little_else() -> None:
    source = """
    import sys
    import bridge_client
    [getattr(bridge_client, name) for name in bridge_client.__all__]
    import bridge_client.testing.fake_worker
    heavy = {"onnxruntime", "tokenizers", "onnx", "transformers", "torch", "huggingface_hub"}
    print(sorted(heavy & set(sys.modules)))
    ours = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("embed_worker")}
    print(sorted(ours))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.stdout.splitlines() == ["[]", "['embed_worker', 'embed_worker.machine', 'embed_worker.protocol']"], (
        done.stderr
    )


def test_the_package_alone_imports_not_even_numpy() -> None:
    source = "import sys, bridge_client.testing.fake_worker; print('numpy' in sys.modules, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.strip() == "False False"
