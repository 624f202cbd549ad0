"""What a host may do to a client that is at work: fork, signals, the garbage collector. Also for `make soak`."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator

from bridge_client import BridgeError, ClientOptions, EmbedClient, Timing
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


def signals_into_a_busy_client(count: int) -> tuple[int, int]:
    """Interrupt calls with a handler that calls the client itself; return how often it was answered and refused."""
    tally = {"answered": 0, "refused": 0}

    def handle(number: int, frame: object) -> None:
        client.stats()
        try:
            client.embed("in a handler", timeout_s=WAIT_S)
            tally["answered"] += 1
        except BridgeError as error:
            tally["refused"] += "signal handler" in str(error)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with fake_client() as client:
            client.info()
            while sum(tally.values()) < count:
                signal.setitimer(signal.ITIMER_REAL, 0.0005)  # one at a time: handlers must not pile up
                seen = sum(tally.values())
                while sum(tally.values()) == seen:
                    client.submit("busy").cancel()
                    client.embed("busy", timeout_s=WAIT_S)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return tally["answered"], tally["refused"]


def signals_that_close(rounds: int) -> None:
    """Close a busy client in a handler, wherever that interrupts it."""
    options = ClientOptions(timing=Timing(drain_s=0.2, terminate_s=0.2))

    def handle(number: int, frame: object) -> None:
        client.close()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for number in range(rounds):
            with fake_client(options) as client:
                client.info()
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00001 * (number % 100))
                with contextlib.suppress(BridgeError):
                    while True:
                        client.embed("busy", timeout_s=WAIT_S)
    finally:
        signal.signal(signal.SIGALRM, before)


class Circle:
    """What only the garbage collector frees: a half-read stream that is part of a circle."""

    def __init__(self, client: EmbedClient) -> None:
        self.itself = self
        self.stream = client.embed_iter(map(str, range(100)), block_inputs=5)
        next(self.stream)


def collected_iterators(until: Iterator[object]) -> None:
    """Abandon half-read streams in circles, with a collector that strikes everywhere."""
    before = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    try:
        with fake_client() as client:
            for _ in until:
                Circle(client)
                assert client.embed("a", timeout_s=WAIT_S).shape == (1, 8)
            gc.collect()
            end = time.monotonic() + WAIT_S
            while client.stats().in_flight or client.stats().queued:
                assert time.monotonic() < end
                time.sleep(0.005)
    finally:
        gc.set_threshold(*before)
