"""What a host may do to a client that is at work: fork, signals, the garbage collector. Also for `make soak`."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator

from bridge_client import BridgeError, EmbedClient, Timing
from bridge_client.testing import fake_client, fake_command
from tests.client.conftest import WAIT_S

_CHILDREN = 4


def fork_at_a_start(rounds: int) -> None:
    """Start a client and fork at once, again and again; the children live until the client has answered."""
    for _ in range(rounds):
        reading, writing = os.pipe()
        client = EmbedClient(worker_command=fake_command(), timing=Timing(drain_s=WAIT_S))
        client.start()
        children = []
        for _ in range(_CHILDREN):
            if (child := os.fork()) == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            children.append(child)
        os.close(reading)
        try:
            assert client.embed("a", timeout_s=WAIT_S).shape == (1, 8)
            client.close()
            report = client.stats().last_exit
            assert report is not None
            assert report.status == 0, "the end of input was enough: no child holds the pipe"
        finally:
            os.close(writing)
            for child in children:
                os.waitpid(child, 0)


@contextlib.contextmanager
def interrupting(handle: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have a handler run on this thread; what is yielded has it strike soon, in the middle of whatever goes on then."""
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def strike() -> None:
        while wanted.get():
            time.sleep(0.0005)  # not to prove anything: so that it strikes inside the next calls
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda number, frame: handle())
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield lambda: wanted.put(True)
    finally:
        wanted.put(False)
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def signals_into_a_busy_client(count: int) -> tuple[int, int]:
    """Interrupt calls with a handler that calls the client itself; return how often it was answered and refused."""
    answered = refused = 0

    def handle() -> None:
        nonlocal answered, refused
        client.stats()
        try:
            client.embed("in a handler", timeout_s=WAIT_S)
            answered += 1
        except BridgeError as error:
            if "signal handler" not in str(error):
                raise
            refused += 1

    with fake_client() as client, interrupting(handle) as strike:
        client.info()
        for _ in range(count):
            seen = answered + refused
            strike()
            while answered + refused == seen:
                client.submit("busy").cancel()
                client.submit("busy").result(WAIT_S)
                client.embed("busy", timeout_s=WAIT_S)
    return answered, refused


def signals_that_close(rounds: int) -> None:
    """Close a busy client in a handler, wherever that interrupts it."""
    for _ in range(rounds):
        client = EmbedClient(worker_command=fake_command(), timing=Timing(drain_s=0.2, terminate_s=0.2))
        client.info()
        with interrupting(client.close) as strike, contextlib.suppress(BridgeError):
            strike()
            while True:
                client.submit("busy").cancel()
                client.embed("busy", timeout_s=WAIT_S)
        client.close()


class Circle:
    """What only the garbage collector frees: a half-read stream that is part of a circle."""

    def __init__(self, client: EmbedClient) -> None:
        self.itself = self
        self.stream = client.embed_iter(map(str, range(100)), block_inputs=5)
        next(self.stream)


def collected_iterators(until: Iterator[object]) -> int:
    """Abandon half-read streams in circles, with a collector that strikes everywhere; return how many."""
    count = 0
    before = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    try:
        with fake_client() as client:
            for _ in until:
                Circle(client)
                count += 1
                assert client.embed("a", timeout_s=WAIT_S).shape == (1, 8)
            gc.collect()
            end = time.monotonic() + WAIT_S
            while client.stats().in_flight or client.stats().queued:
                assert time.monotonic() < end
                time.sleep(0.005)
    finally:
        gc.set_threshold(*before)
    return count
