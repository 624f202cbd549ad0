"""Nothing that interrupts the client may hang it: forks, signal handlers, finalisers, log handlers, a full system."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridge_client import (
    AsyncEmbedClient,
    BridgeError,
    Cause,
    CircuitOpenError,
    ClientOptions,
    EmbedClient,
    Embeddings,
    PoisonedInputError,
    QueueFullError,
    State,
    Timing,
    WorkerStartError,
    hooks,
)
from bridge_client.calls import Parameters
from bridge_client.child import Child
from bridge_client.dispatcher import Dispatcher
from bridge_client.futures import CallFuture
from bridge_client.lifecycle import Event, On
from bridge_client.testing import fake_client, fake_command
from bridge_client.worker_process import WorkerProcess
from bridge_client.worker_slot import WINDOW_REQUESTS
from tests.client import interruptions
from tests.client.conftest import WAIT_S, wait_until
from tests.client.test_client import expected

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and processes")
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
ROOT = str(Path(__file__).resolve().parents[2])
QUICK = ClientOptions(backoff_initial_s=0.01, timing=Timing(drain_s=0.3, terminate_s=0.3))

# Forks ------------------------------------------------------------------------------------------------------------


def can_spawn() -> bool:
    """Tell whether another thread than this one could spawn now."""

    def attempt() -> bool:
        if not hooks.spawning.acquire(blocking=False):
            return False
        hooks.spawning.release()
        return True

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(attempt).result()


@posix
@forks
def test_a_fork_at_a_start_harms_neither_the_client_nor_the_child() -> None:
    interruptions.fork_at_a_start(3)


def test_a_fork_waits_for_a_spawn_and_a_spawn_for_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    spawn = WorkerProcess.spawn

    def watched(*given: Any, **named: Any) -> WorkerProcess:
        seen.append(can_spawn())
        return spawn(*given, **named)

    monkeypatch.setattr(WorkerProcess, "spawn", watched)
    with fake_client() as client:
        client.embed("a")
    assert seen == [False]
    hooks._before_fork()
    assert not can_spawn()
    hooks._before_fork()  # of a signal handler that forks, too
    hooks._after_fork_in_parent()
    assert not can_spawn()
    hooks._after_fork_in_parent()
    assert can_spawn()


@posix
@forks
def test_a_spawn_that_does_not_end_cannot_freeze_the_forks_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_FORK_WAIT_S", 0.01)
    with fake_client() as client:
        client.embed("a")  # the hooks are there
        held, release = threading.Event(), threading.Event()

        def spawn_for_ever() -> None:
            with hooks.spawning:
                held.set()
                release.wait(WAIT_S)

        thread = threading.Thread(target=spawn_for_ever)
        thread.start()
        assert held.wait(WAIT_S)
        if (child := os.fork()) == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        release.set()
        thread.join()
        assert can_spawn()


# Signal handlers and finalisers -----------------------------------------------------------------------------------


@posix
def test_a_handler_that_calls_the_client_is_answered_or_refused_with_a_sentence() -> None:
    answered, refused = interruptions.signals_into_a_busy_client(60)
    assert answered + refused >= 60


@posix
def test_a_handler_may_close_the_client_wherever_it_interrupts_it() -> None:
    interruptions.signals_that_close(5)


def test_whoever_interrupts_the_client_itself_may_look_and_close_and_nothing_else() -> None:
    with fake_client(latency=3600.0) as client:
        client.info()
        waiting = client.submit("waiting")
        with client._core._pool.changing():  # here a handler of this thread, or the collector, may strike
            assert client.stats().state is State.READY
            assert repr(client).startswith("<EmbedClient ready")
            for call in (client.embed, client.submit):
                with pytest.raises(BridgeError, match="a signal handler, or a finaliser, has called the client"):
                    call("a")
            with pytest.raises(BridgeError, match="signal handler"):
                client.ping()
            assert waiting.cancel()
            client.restart()
            client.close()
            assert client._core.closing() == (), "it has begun to close, and there is nothing to wait for"
        client.close()
        assert client.stats().state is State.CLOSED


def _assert_set(event: threading.Event) -> None:
    assert event.wait(WAIT_S)


def test_a_thousand_calls_that_are_withdrawn_at_once_need_one_look_at_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, done, looks = threading.Event(), threading.Event(), itertools.count()
    with fake_client() as client:
        client.info()
        supervisor = client._core._supervisor
        look = supervisor._look_at_the_clock
        monkeypatch.setattr(supervisor, "_look_at_the_clock", lambda: (next(looks), look()))
        supervisor._mailbox.put(functools.partial(_assert_set, gate))
        futures = [client.submit("a") for _ in range(1000)]
        for future in futures:
            future.cancel()
        supervisor._mailbox.put(done.set)
        gate.set()
        assert done.wait(WAIT_S)
    assert next(looks) < 100


class Raised(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


@contextlib.contextmanager
def raising_in(step: int) -> Iterator[list[Any]]:
    """Raise where a signal handler may run: at the beginning of a function of the client's, the one of this number.

    The list that is yielded holds what was raised, with all its frames, as an interactive interpreter keeps it.
    """
    kept: list[Any] = []
    count = 0

    def trace(frame: FrameType, event: str, value: object) -> None:
        nonlocal count
        code = frame.f_code
        is_generator = code.co_flags & inspect.CO_GENERATOR  # whose end begins it once more
        if event == "call" and f"{os.sep}bridge_client{os.sep}" in code.co_filename and not is_generator:
            count += 1
            if count == step + 1:
                raise Raised

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        yield kept
    except Raised as error:
        kept.append(error)
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("call", [EmbedClient.submit, EmbedClient.embed])
def test_an_error_that_a_handler_raises_anywhere_in_a_call_leaves_the_client_whole(call: Callable[..., Any]) -> None:
    kept: list[Any] = []
    with fake_client() as client:
        assert client.embed("a", timeout_s=WAIT_S).shape == (1, 8)
        for step in itertools.count():
            with raising_in(step) as raised:
                call(client, "a")
            assert client.embed("b", timeout_s=WAIT_S).shape == (1, 8)
            kept += raised
            if not raised:
                break
        assert len(kept) > 10
        wait_until(lambda: client.stats().in_flight == client.stats().queued == 0)


def test_an_error_that_a_handler_raises_anywhere_in_a_start_leaves_the_client_whole() -> None:
    kept: list[Any] = []
    for step in itertools.count():
        with fake_client() as client:
            with raising_in(step) as raised:
                client.start()
            assert client.embed("a", timeout_s=WAIT_S).shape == (1, 8)
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("bridge-supervisor") == names.count("bridge-callbacks") == 1
        kept += raised
        if not raised:
            break
    assert len(kept) > 5


class Interrupted:
    """The lock of a future, whose owner is interrupted by a handler as soon as it has it."""

    def __init__(self, lock: Any, handle: Callable[[], object]) -> None:
        self._lock, self._handle = lock, handle

    def __enter__(self) -> None:
        self._lock.acquire()
        self._handle()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_whoever_interrupts_a_future_may_look_and_close_and_nothing_else() -> None:
    tried: list[bool] = []

    def handle() -> None:
        assert client.stats().state is State.READY
        for call in (client.embed, client.submit):
            with pytest.raises(BridgeError, match="a signal handler, or a finaliser, has called the client"):
                call("a")
        assert client._core.closing() == ()
        tried.append(True)

    with fake_client() as client:
        future = client.submit("a")
        future.result(WAIT_S)
        future._condition = Interrupted(future._condition, handle)  # type: ignore[assignment]
        assert not future.cancel()
    assert tried == [True]


def test_no_thread_of_the_client_needs_the_lock_of_a_future_that_has_no_outcome_yet() -> None:
    with fake_client(start_delay=0.2) as client:
        future = client.submit("a")
        with future._condition:
            client._core._supervisor._mailbox.put(None)
            wait_until(lambda: client.stats().state is State.READY)
        assert future.result(WAIT_S).vectors.shape == (1, 8)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_half_read_stream_may_be_freed_while_its_thread_is_inside_the_client() -> None:
    with fake_client(latency=0.01) as client:
        stream = client.embed_iter(map(str, range(1000)), block_inputs=10)
        next(stream)
        with client._core._pool.changing():
            del stream
        wait_until(lambda: client.stats().in_flight == client.stats().queued == 0)
        assert np.array_equal(client.embed("a"), expected("a"))


def test_half_read_streams_may_be_collected_anywhere() -> None:
    interruptions.collected_iterators(iter(range(100)))


@pytest.mark.parametrize(
    ("replacer", "ask", "module"),
    [("gevent.monkey", "is_module_patched", "queue"), ("eventlet.patcher", "is_monkey_patched", "thread")],
)
def test_threads_that_take_turns_on_one_are_refused(
    replacer: str, ask: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[str] = []
    monkeypatch.setitem(sys.modules, replacer, SimpleNamespace(**{ask: replaced.__contains__}))
    with fake_client() as client:
        assert client.embed("a", timeout_s=WAIT_S).shape == (1, 8)
    replaced.append(module)
    with pytest.raises(BridgeError, match=f"{replacer[:6]}.* has replaced {module}, "):
        EmbedClient(worker_command=fake_command()).embed("a")


# Log handlers and callbacks ---------------------------------------------------------------------------------------


@pytest.fixture
def slow_handler() -> Iterator[Any]:
    """A log handler that waits until it is told, and looks at the client meanwhile."""

    class Handler(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.client: EmbedClient | None = None
            self.said: list[str] = []
            self.entered, self.go_on = threading.Event(), threading.Event()

        def handle(self, record: logging.LogRecord) -> bool:
            self.said.append(record.getMessage())
            self.entered.set()
            assert self.go_on.wait(WAIT_S)
            if self.client is not None:
                self.client.stats()
            return True

    handler, logger = Handler(), logging.getLogger("bridge_client")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield handler
    handler.go_on.set()
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_log_handler_holds_up_no_answer_and_may_call_the_client(slow_handler: Any) -> None:
    with fake_client(QUICK, poison="bad", say="of a library") as client:
        slow_handler.client = client
        assert slow_handler.entered.wait(WAIT_S)
        assert client.submit("a").result(WAIT_S).vectors.shape == (1, 8)
        with pytest.raises(PoisonedInputError):
            client.embed("bad", timeout_s=WAIT_S)
        slow_handler.go_on.set()
    assert any("has killed the worker alone" in said for said in slow_handler.said)


def test_a_callback_added_after_the_end_runs_at_once() -> None:
    with fake_client() as client:
        future = client.submit("a")
        future.result(WAIT_S)
    ran: list[object] = []
    future.add_done_callback(ran.append)
    assert ran == [future]


# A system that has nothing to spare ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bridge-supervisor", "bridge-callbacks"])
def test_a_first_call_without_a_thread_fails_and_the_next_one_is_answered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refused: list[object] = []

    def scarce(thread: threading.Thread) -> None:
        if thread.name == name and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with contextlib.closing(EmbedClient(worker_command=fake_command())) as client:
        with pytest.raises(WorkerStartError, match="can't start new thread"):
            client.embed("a")
        assert np.array_equal(client.embed("a", timeout_s=WAIT_S), expected("a"))


@pytest.mark.parametrize("name", ["bridge-stderr-0", "bridge-waiter-0"])
def test_a_worker_without_threads_for_its_pipes_is_started_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[object] = []

    def scarce(thread: threading.Thread) -> None:
        if thread.name == name and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with fake_client(QUICK) as client:
        assert np.array_equal(client.embed("a", timeout_s=WAIT_S), expected("a"))
        report = client.stats().last_exit
        assert report is not None
        assert (report.cause, "can't start new thread" in report.detail) == (Cause.NOT_SPAWNED, True)


# Awaiting callers ---------------------------------------------------------------------------------------------------


def test_whoever_waits_for_room_is_queued_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = longest_line = 0
    done: list[int] = []
    submit = Dispatcher.submit

    def counted(dispatcher: Dispatcher, *given: Any) -> None:
        nonlocal submitted, longest_line
        submitted += 1
        submit(dispatcher, *given)
        longest_line = max(longest_line, len(dispatcher._outside))

    monkeypatch.setattr(Dispatcher, "submit", counted)

    async def scenario() -> None:
        async def ask(number: int) -> None:
            assert np.array_equal(await client.embed(str(number)), expected(str(number)))
            done.append(number)

        async with AsyncEmbedClient(worker_command=fake_command(), max_queued_requests=3) as client:
            await asyncio.gather(*map(ask, range(600)))

    asyncio.run(asyncio.wait_for(scenario(), 3 * WAIT_S))
    assert submitted == 600
    assert longest_line <= WINDOW_REQUESTS, "the rest wait in the loop, and do not hold it up"
    assert done == list(range(600))


def test_nobody_overtakes_those_who_wait_for_room() -> None:
    with fake_client(ClientOptions(max_queued_bytes=10), start_delay=0.5) as client:
        queued = client.submit("x" * 6)
        large = client._begin("y" * 8, Parameters(), None, CallFuture[Embeddings]())
        with pytest.raises(QueueFullError):
            client.submit("z")  # for which there would be room
        assert np.array_equal(large.result(WAIT_S).vectors, expected("y" * 8))
        assert queued.done()


def test_whoever_gives_up_waiting_for_room_leaves_the_line() -> None:
    with fake_client(ClientOptions(max_queued_requests=1), start_delay=0.5) as client:
        first = client.submit("first")
        gone = client._begin("gone", Parameters(), None, CallFuture[Embeddings]())
        last = client._begin("last", Parameters(), None, CallFuture[Embeddings]())
        gone.cancel()
        wait_until(lambda: len(client._core._pool.dispatcher._outside) == 1)
        assert np.array_equal(last.result(WAIT_S).vectors, expected("last"))
        assert first.done()


def test_close_needs_no_thread_of_the_loop() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        with ThreadPoolExecutor(1) as only:
            loop.set_default_executor(only)
            busy = loop.run_in_executor(None, release.wait, WAIT_S)
            client = AsyncEmbedClient(worker_command=fake_command())
            await client.embed("a")
            await client.close()
            assert client.stats().state is State.CLOSED
            assert not busy.done()
            release.set()
            await busy

    asyncio.run(asyncio.wait_for(scenario(), 3 * WAIT_S))


# Ends that are not what they seem -----------------------------------------------------------------------------------


def test_a_start_that_takes_too_long_quotes_what_came_instead_of_an_answer() -> None:
    command = (sys.executable, "-c", "import time; print('Welcome to my shell\\r', flush=True); time.sleep(3600)")
    options = ClientOptions(worker_command=command, start_timeout_s=math.inf, restart_budget=1, timing=QUICK.timing)
    with EmbedClient(options) as client:
        slot = client._core._pool.slots[0]
        wait_until(lambda: slot.generation is not None and slot.generation.invalid_line)
        supervisor = client._core._supervisor
        supervisor._mailbox.put(functools.partial(supervisor._advance, slot, Event(On.TIMEOUT)))  # the time is over
        with pytest.raises(CircuitOpenError, match="it printed something else: 'Welcome to my shell'"):
            client.embed("a")


@posix
@pytest.mark.parametrize(
    "habit",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "threading.Thread(target=wait_for_any, daemon=True).start()",
    ],
)
def test_an_exit_status_that_the_host_has_thrown_away_is_not_made_up(habit: str) -> None:
    source = f"""
    import os, signal, threading, time
    from bridge_client import ClientOptions, WorkerDiedError
    from bridge_client.testing import fake_client
    def wait_for_any():
        while True:
            try:
                os.wait()
            except ChildProcessError:
                time.sleep(0.001)
    {habit}
    with fake_client(ClientOptions(replay=False, restart_budget=1), kill_after="0:SEGV") as client:
        try:
            client.embed("a")
        except WorkerDiedError as error:
            print(error.exit_status, "exit status is lost" in str(error))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    told = done.stdout.strip()
    assert told == "None True" or (told == "-11 False" and "wait_for_any" in habit), done.stderr


@posix
@pytest.mark.parametrize("is_seen", [True, False], ids=["seen before the write", "in the moment of the write"])
def test_a_host_that_does_not_ignore_broken_pipes_survives_a_worker_that_reads_no_more(is_seen: bool) -> None:
    source = f"""
    import os, select, signal, threading, time
    from unittest.mock import Mock
    from bridge_client.worker_process import WorkerProcess
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as programs for the shell do, so that `program | head` ends quietly
    lost = threading.Event()
    owner = Mock()
    owner.on_pipe_lost.side_effect = lambda process: lost.set()
    command = ("sh", "-c", "exec <&-; echo deaf >&2; exec sleep 1000")
    process = WorkerProcess.spawn(command, environment=os.environ, cwd=None, owner=owner, number=0)
    heard = threading.Event()
    owner.on_stderr.side_effect = lambda process, line: heard.set()
    process.begin()
    assert heard.wait({WAIT_S})
    if not {is_seen}:
        process._room = Mock(poll=lambda _: [(process._stdin.fileno(), select.POLLOUT)])
    process.send(b"a line\\n")
    assert lost.wait({WAIT_S})
    process.kill(None)
    print("alive")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has handles of processes")
def test_nothing_is_signalled_by_a_number_that_may_be_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: signalled.append(group))
    with subprocess.Popen(["true"], start_new_session=True) as popen:
        child = Child(popen)
        os.waitpid(popen.pid, 0)  # as a host does that waits for any child
        child.signal_group(signal.SIGTERM)
        assert child.wait() is None
        child.signal_group(signal.SIGTERM)
    assert signalled == []
