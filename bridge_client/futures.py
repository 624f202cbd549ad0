"""Promises of the client, and the ways in which a host waits for what they hold.

A signal handler may interrupt a host anywhere, and call the client. So no thread of the client's may need a lock that
the host's thread holds at that moment, and a `Future` locks itself in all that it does: whether a call is still wanted
is known without asking its future, and a host that only waits waits for something simpler.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Generic, Protocol, TypeVar

from bridge_client.errors import BridgeError

T = TypeVar("T")
Given = TypeVar("Given", contravariant=True)


class Outlet(Protocol[Given]):
    """Where the outcome of a promise goes.

    Attributes:
        is_cancelled: Nobody wants it any more.
        when_cancelled: Called once that is so.
    """

    is_cancelled: bool
    when_cancelled: Callable[[], object] | None

    def set_result(self, result: Given) -> None:
        """Hand the result over."""

    def set_exception(self, exception: BaseException | None) -> None:
        """Hand an error over."""


class CallFuture(Future[T]):
    """A future whose cancellation reaches the worker, from anywhere: it takes no lock of the client's."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cancelled = False
        self.when_cancelled: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """Cancel the call; False when it has ended already."""
        if not super().cancel():
            return False
        _cancel(self)
        return True


class Waiter(Generic[T]):
    """What one thread waits for, and nobody else."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.when_cancelled: Callable[[], object] | None = None
        self._result: T | None = None
        self._error: BaseException | None = None
        self._is_closed = threading.Lock()
        self._is_closed.acquire()

    def set_result(self, result: T) -> None:
        """Let the thread go on with a result."""
        self._result = result
        self._is_closed.release()

    def set_exception(self, exception: BaseException | None) -> None:
        """Let the thread go on with an error."""
        self._error = exception
        self._is_closed.release()

    def result(self) -> T:
        """Wait for the outcome, once; whoever is interrupted in it wants it no more."""
        try:
            self._is_closed.acquire()
        except BaseException:  # Ctrl-C, for instance
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def cancel(self) -> None:
        """Want it no more."""
        _cancel(self)


def _cancel(outlet: CallFuture[T] | Waiter[T]) -> None:
    outlet.is_cancelled = True
    if (when_cancelled := outlet.when_cancelled) is not None:
        outlet.when_cancelled = None
        when_cancelled()


class Promise(Generic[T]):
    """An outcome that is settled once, under the lock, and delivered once, without it."""

    def __init__(self, outlet: Outlet[T]) -> None:
        self.outlet = outlet
        self._outcome: Callable[[], T] | BridgeError | None = None

    @property
    def is_over(self) -> bool:
        """Whether the outcome is known, or nobody wants it any more."""
        return self._outcome is not None or self.outlet.is_cancelled

    def settle(self, outcome: Callable[[], T] | BridgeError) -> bool:
        """Decide the outcome; False when it had been decided before."""
        if self.is_over:
            return False
        self._outcome = outcome
        return True

    def deliver(self) -> None:
        """Hand the outcome over; a host that cancels at the same moment wins."""
        assert self._outcome is not None
        # Both lead back here: circles that would keep texts and vectors until the garbage collector comes.
        outcome, self._outcome = self._outcome, _DELIVERED
        self.outlet.when_cancelled = None
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, BridgeError):
                self.outlet.set_exception(outcome)
                return
            try:
                result = outcome()
            except Exception as error:  # noqa: BLE001 - out of memory, at worst; the caller must not wait for ever
                self.outlet.set_exception(error)
            else:
                self.outlet.set_result(result)


_DELIVERED = BridgeError("the outcome was delivered")
