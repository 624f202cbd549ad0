"""What all threads of a client share, behind one lock: the workers' slots, the queue, and whom they must serve."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import _base
from types import FrameType
from typing import Any

from bridge_client.chunks import AnyCall
from bridge_client.dispatcher import Dispatcher
from bridge_client.errors import BridgeError, CircuitOpenError, ClientClosedError, error_of
from bridge_client.futures import CallFuture, Promise
from bridge_client.handshake import Served
from bridge_client.lifecycle import State
from bridge_client.options import ClientOptions
from bridge_client.stats import ClientStats, percentiles
from bridge_client.worker_process import WorkerProcess
from bridge_client.worker_slot import Control, Generation, WorkerSlot

_INTERRUPTED = "a signal handler, or a finaliser, has called the client in the middle of a call of the same thread"


class Pool:
    """The slots of a client's workers and the calls for them. `changing()` is the way to touch either.

    Attributes:
        expected: The identity that each model has shown, by the name that calls give; None is the worker's own model.
    """

    def __init__(self, options: ClientOptions, clock: Callable[[], float], wake: Callable[[float], None]) -> None:
        self.options = options
        self.policy = options.policy()
        self.clock = clock
        self.slots = [WorkerSlot(number, replay=options.replay) for number in range(options.workers)]
        self.dispatcher = Dispatcher(options, self.slots, wake)
        self.expected: dict[str | None, tuple[Any, ...]] = {}
        self.is_closing = False
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_changing = False

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock; afterwards complete the futures whose outcome was decided. For the client's own threads.

        Raises:
            BridgeError: This very thread is changing something: it was interrupted by a signal handler.
        """
        deliveries: Sequence[Promise[Any]] = ()
        try:
            with self._lock:
                if self._is_changing:
                    raise BridgeError(_INTERRUPTED)
                self._is_changing = True
                try:
                    yield
                finally:
                    deliveries = self.dispatcher.take_deliveries()
                    self._is_changing = False
        finally:
            for promise in deliveries:
                promise.deliver()

    def change(self, do: Callable[[], None], when_torn: Callable[[], None]) -> None:
        """Do something under the lock as with `changing()`, on a thread of the host's.

        A signal handler may raise there, Ctrl-C for instance: before the `with` of a context manager is entered, after
        it is left, and in the middle of `do`, of which `when_torn` is told.

        Raises:
            BridgeError: What `do` refuses; or as `changing()`.
        """
        deliveries: Sequence[Promise[Any]] = ()
        try:
            with self._lock:
                if self._is_changing:
                    raise BridgeError(_INTERRUPTED)
                try:
                    self._is_changing = True
                    do()
                except BridgeError:
                    raise
                except BaseException:
                    when_torn()
                    raise
                finally:
                    self._is_changing = False
                    deliveries = self.dispatcher.take_deliveries()
        finally:
            for promise in deliveries:
                promise.deliver()

    def is_interrupted(self) -> bool:
        """Whether the caller has interrupted this very thread inside the client; it must not wait for anything."""
        with self._lock:
            return self._is_changing or _is_inside_a_future()

    def submit(self, call: AnyCall) -> None:
        """Queue a call.

        Raises:
            BridgeError: It cannot be queued: full, failed, interrupted, or an input is in quarantine.
        """
        self.refuse(*self.slots)
        self.dispatcher.submit(call, self.clock())

    def ask(self, control: Control) -> None:
        """Ask a worker something as soon as it is ready.

        Raises:
            BridgeError: It never will be.
        """
        slot = self.slots[control.worker]
        self.refuse(slot)
        self.dispatcher.ask(slot, control)

    def current(self, process: WorkerProcess) -> Generation | None:
        """Return the generation of a process; None once that is not in its slot any more."""
        generation = self.slots[process.number].generation
        return generation if generation is not None and generation.process is process else None

    def fits(self, model: str | None, served: Served) -> bool:
        """Whether a model is what it was so far; the first one that is seen may be anything."""
        identity = served.identity if model is None else served.identity[:2]  # a call may shorten its vectors
        return self.expected.setdefault(model, identity) == identity

    def refuse(self, *slots: WorkerSlot) -> None:
        """Raise what a call is refused with while none of these slots can ever serve it.

        Raises:
            BridgeError: So it is.
        """
        if self.is_in_child():
            raise ClientClosedError("this process was forked from the client's: make a new client here")
        if self.is_closing:
            raise ClientClosedError("the client is closed")
        if _is_inside_a_future():
            raise BridgeError(_INTERRUPTED)
        if slots and all(slot.life.state is State.FAILED for slot in slots):
            raise self.failure(*slots)

    def is_in_child(self) -> bool:
        """Whether this process was forked from the client's."""
        return self._pid != os.getpid()

    def failure(self, *slots: WorkerSlot) -> BridgeError:
        """Make the error for what cannot be served now, by these slots or by any."""
        slot = min(slots or self.slots, key=lambda each: each.life.wake_at or math.inf)
        assert slot.last_exit is not None
        last = error_of(slot.last_exit)
        if slot.life.wake_at is None:
            return last
        return CircuitOpenError(max(0.0, slot.life.wake_at - self.clock()), last)

    def stats(self) -> ClientStats:
        """Take a snapshot; also in the middle of a change, for signal handlers."""
        now = self.clock()
        with self._lock:
            workers = tuple(slot.stats(now, self.policy) for slot in self.slots)
            counts = self.dispatcher.counts
            best = min(workers, key=lambda worker: _USEFULNESS.index(worker.state))
            return ClientStats(
                state=best.state,
                pid=best.pid,
                generation=best.generation,
                restarts=sum(max(0, worker.generation - 1) for worker in workers),
                in_flight=sum(worker.in_flight for worker in workers),
                queued=self.dispatcher.queued_calls,
                requests=counts["requests"],
                replays=counts["replays"],
                blamed=counts["blamed"],
                timeouts=counts["timeouts"],
                unknown_answers=counts["unknown"],
                latency_ms=percentiles(self.dispatcher.latencies_ms),
                last_exit=best.last_exit,
                workers=workers,
            )

    def forget_in_child(self) -> None:
        """Let go of every pipe in a forked child, and of a lock that a thread held that is not there any more."""
        self._lock = threading.RLock()
        self._is_changing = False
        for slot in self.slots:
            if slot.generation is not None:
                slot.generation.process.forget_in_child()


def _is_inside_a_future() -> bool:
    """Whether a signal handler has interrupted the main thread inside a future of the client's.

    That future is locked then, and whoever delivers to it waits: the handler must not wait for an answer.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _base.__file__ and isinstance(frame.f_locals.get("self"), CallFuture):
            return True
        frame = frame.f_back
    return False


_USEFULNESS = (
    State.READY,
    State.STARTING,
    State.BACKING_OFF,
    State.STOPPED,
    State.FAILED,
    State.CLOSING,
    State.CLOSED,
)
