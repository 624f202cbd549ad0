"""One client's inside: what any thread may ask of it, over the queue and the supervisor of its workers.

`EmbedClient` and `AsyncEmbedClient` are faces of it. It may be called anywhere: in callbacks, in signal handlers, by
finalisers. Those may interrupt the client itself; they are then refused, and never wait.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bridge_client import hooks
from bridge_client.callbacks import CallbackThread
from bridge_client.chunks import AnyCall
from bridge_client.errors import BridgeError, WorkerStartError
from bridge_client.exits import Cause, ExitReport
from bridge_client.futures import Outlet
from bridge_client.options import ClientOptions
from bridge_client.stats import ClientStats
from bridge_client.supervisor import Supervisor
from bridge_client.worker_slot import Control

# Who replaces modules by others of the same name, how that is asked, and of which the client needs the original.
_REPLACERS = (
    ("gevent.monkey", "is_module_patched", ("threading", "queue", "select", "subprocess")),
    ("eventlet.patcher", "is_monkey_patched", ("thread", "select", "subprocess")),
)


class Core:
    """A client without a face."""

    def __init__(self, options: ClientOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._is_started = False
        self.callbacks = CallbackThread()
        self._supervisor = Supervisor(options, clock, self.callbacks)
        self._pool = self._supervisor.pool

    def start(self) -> None:
        """Start the workers, if that has not been done; returns at once.

        Raises:
            ClientClosedError: The client is closed.
            WorkerStartError: The system has no threads to spare now.
            BridgeError: gevent or eventlet has replaced what threads are made of.
        """
        refuse_replaced_threads()
        self._pool.change(self._start, self._supervisor.mend)

    def _start(self) -> None:
        self._pool.refuse()
        if self._is_started:
            return
        hooks.register(self)
        try:
            self.callbacks.start()
            self._supervisor.start()
        except RuntimeError as error:
            hooks.unregister(self)
            raise WorkerStartError(
                ExitReport(cause=Cause.NOT_SPAWNED, argv=self._options.argv(), detail=str(error))
            ) from error
        self._is_started = True
        self._supervisor.ended.add_done_callback(lambda _: hooks.unregister(self))

    def submit(self, call: AnyCall) -> None:
        """Queue a call; its future ends exactly once.

        Raises:
            BridgeError: It cannot be queued: full, closed, failed, or an input is in quarantine.
        """
        if not self._is_started:
            self.start()
        # Whatever cancels may hold any lock, the pool's too: a signal handler, or the garbage collector.
        call.outlet.when_cancelled = functools.partial(self._supervisor.withdraw, call)
        try:
            self._pool.change(functools.partial(self._pool.submit, call), functools.partial(self._mend, call.outlet))
        except BaseException:
            call.outlet.when_cancelled = None  # a circle would keep the texts
            raise

    def ask(self, control: Control) -> None:
        """Ask a worker something as soon as it is ready."""
        if not self._is_started:
            self.start()
        do, when_torn = functools.partial(self._pool.ask, control), functools.partial(self._mend, control.outlet)
        self._pool.change(do, when_torn)

    def _mend(self, outlet: Outlet[Any]) -> None:
        """Have a change put in order that a signal handler has torn; nobody waits at its outlet any more."""
        outlet.is_cancelled = True
        self._supervisor.mend()

    def restart(self, *, accept_model: bool) -> None:
        """Replace every worker, at once; what is in flight and not finished in time is sent again."""
        self._pool.refuse()
        if not self._is_started:
            self.start()
        else:
            self._supervisor.restart(accept_model=accept_model)

    @property
    def is_closing(self) -> bool:
        """Whether it has begun to close."""
        return self._pool.is_closing

    def stats(self) -> ClientStats:
        """Take a snapshot."""
        return self._pool.stats()

    def close_soon(self) -> None:
        """Begin to close; safe anywhere, also in a garbage collection that interrupts this very class."""
        if not self._pool.is_in_child():
            self._pool.is_closing = True
            self._supervisor.close()

    def closing(self) -> tuple[Future[None], ...]:
        """Begin to close; return what to wait for, in order, for `close_patience_s` at most.

        Nothing, where nobody may wait: in a signal handler or finaliser that has interrupted the client itself.
        """
        if self._pool.is_in_child():
            return ()
        self.close_soon()
        if self._pool.is_interrupted() or self._supervisor.is_current_thread():
            return ()
        # A start that was under way has been finished by now, or is refused.
        return (self._supervisor.ended, self.callbacks.ended) if self._is_started else ()

    @property
    def close_patience_s(self) -> float:
        """How long the close ladder takes at most."""
        timing = self._options.timing
        return min(timing.drain_s + 3 * timing.terminate_s + 5.0, threading.TIMEOUT_MAX)

    def close(self) -> None:
        """Close and wait, for as long as the close ladder takes at most."""
        waiting = self.closing()
        if not waiting:
            return
        ended, _ = waiting
        # An interrupted wait goes on: leaving now would leave a worker.
        interrupted: BaseException | None = None
        until = time.monotonic() + self.close_patience_s
        while not ended.done() and time.monotonic() < until:
            try:
                with contextlib.suppress(TimeoutError):
                    ended.result(max(0.0, until - time.monotonic()))
            except KeyboardInterrupt as error:
                interrupted = error
        self._supervisor.join(1.0)
        self.callbacks.join(1.0)
        if interrupted is not None:
            raise interrupted

    def forget_in_child(self) -> None:
        """Let go of every pipe in a forked child."""
        self._pool.forget_in_child()


def refuse_replaced_threads() -> None:
    """Refuse a process whose threads take turns on one: the first of ours that waits for a worker would stop them all.

    Raises:
        BridgeError: So it is.
    """
    for replacer, ask, modules in _REPLACERS:
        if (found := sys.modules.get(replacer)) is None:
            continue
        replaced = [module for module in modules if getattr(found, ask)(module)]
        if replaced:
            who = replacer.partition(".")[0]
            raise BridgeError(
                f"{who} has replaced {', '.join(replaced)}, of which the client needs Python's own:"
                " docs/troubleshooting.md says how to go on"
            )
