"""The exceptions of the client, a flat tree under `BridgeError`. Branch on types and `code`, never on messages.

Every request gets its own instance: an exception that several threads raise collects their tracebacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bridge_client.exits import Cause, ExitReport

if TYPE_CHECKING:
    from bridge_client.embeddings import Embeddings


class BridgeError(Exception):
    """Anything that the client raises on purpose, apart from TypeError and ValueError for wrong arguments.

    All of them survive `pickle`, with their attributes, so that they come back from other processes.
    """

    def __reduce__(self) -> tuple[Callable[..., BridgeError], tuple[object, ...]]:
        return _rebuild, (type(self), self.args, self.__cause__, dict(self.__dict__))


class RequestError(BridgeError):
    """The worker answered this request with an error; it would answer the same again unless `retryable`.

    Attributes:
        code: One of the protocol's error codes, or one of a newer worker.
        retryable: Whether the same request may succeed when it is sent again.
        index: The input that is to blame, where one is.
    """

    def __init__(self, code: str, message: str, *, retryable: bool, index: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retryable = retryable
        self.index = index


class RequestTimeoutError(BridgeError, TimeoutError):
    """The request's time is over. The worker lives on: slow is not hung."""

    def __init__(self, message: str, *, timeout_s: float) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s


class QueueFullError(BridgeError):
    """Too much is waiting already; nothing was queued."""


class ClientClosedError(BridgeError):
    """`close()` came first, or this process is a forked child, where the client cannot work."""


class PoisonedInputError(BridgeError):
    """An input killed the worker whenever it was alone with it, or is known to have done so within the last hour.

    Attributes:
        index: The first blamed input.
        indexes: All blamed inputs of the request.
        others: The vectors of all other inputs, in their order; None of a `tokenize`, and when the request was refused
            without a worker.
    """

    def __init__(self, indexes: tuple[int, ...], others: Embeddings | None) -> None:
        listed = ", ".join(map(str, indexes))
        how = "is known to kill the worker" if others is None else "killed the worker whenever it was alone with it"
        super().__init__(f"input {listed} {how}")
        self.index = indexes[0]
        self.indexes = indexes
        self.others = others


class WorkerError(BridgeError):
    """Something about the worker process; `report` tells how it ended."""

    def __init__(self, what: str, report: ExitReport) -> None:
        tail = f"\nthe end of its standard error:\n{report.stderr_tail}" if report.stderr_tail else ""
        super().__init__(f"{what}: {report.describe()}{tail}")
        self.report = report

    @property
    def exit_status(self) -> int | None:
        """As `subprocess.Popen.returncode`; None when there was no process or it would not die."""
        return self.report.status

    @property
    def stderr_tail(self) -> str:
        """The end of what the worker wrote to standard error."""
        return self.report.stderr_tail


class WorkerStartError(WorkerError):
    """No worker could be started with `argv`."""

    def __init__(self, report: ExitReport) -> None:
        super().__init__(f"the worker did not start ({' '.join(report.argv)})", report)
        self.argv = report.argv


class WorkerDiedError(WorkerError):
    """The worker died with this request, and the request was not to be replayed, or had been replayed enough."""

    def __init__(self, report: ExitReport) -> None:
        super().__init__("the worker died", report)
        self.signal_name = report.signal_name


class WorkerHungError(WorkerError):
    """The worker stopped answering, or stopped working, with this request; it was killed."""

    def __init__(self, report: ExitReport) -> None:
        super().__init__("the worker hung and was killed", report)


class ProtocolMismatchError(WorkerError):
    """The worker speaks another version of the protocol."""

    def __init__(self, report: ExitReport) -> None:
        super().__init__("the worker cannot be used", report)


class ModelChangedError(WorkerError):
    """A restarted worker has another model, fingerprint or dimension: its vectors must not be mixed with the earlier.

    `restart(accept_model=True)` goes on with the new one.
    """

    def __init__(self, report: ExitReport) -> None:
        super().__init__("the worker came back with another model", report)


class CircuitOpenError(BridgeError):
    """The worker failed too often; requests are refused until the next attempt, or until `restart()`.

    Attributes:
        retry_in_s: Seconds until the next attempt; None when there will be none by itself.
        last_cause: The error of the last failure.
    """

    def __init__(self, retry_in_s: float | None, last_cause: BridgeError) -> None:
        when = "after restart() only" if retry_in_s is None else f"again in {retry_in_s:.0f} s"
        super().__init__(f"the worker failed too often, {when}; last: {last_cause}")
        self.retry_in_s = retry_in_s
        self.last_cause = last_cause
        self.__cause__ = last_cause


def _rebuild(
    kind: type[BridgeError], args: tuple[object, ...], cause: BaseException | None, attributes: dict[str, object]
) -> BridgeError:
    """Make an error again without its `__init__`, whose arguments are not its message."""
    error = kind.__new__(kind)
    error.args = args
    error.__cause__ = cause
    error.__dict__.update(attributes)
    return error


def error_of(report: ExitReport) -> BridgeError:
    """Make the error that tells of a lost worker."""
    match report.cause:
        case Cause.PROTOCOL_MISMATCH:
            return ProtocolMismatchError(report)
        case Cause.MODEL_CHANGED:
            return ModelChangedError(report)
        case Cause.HUNG:
            return WorkerHungError(report)
        case _ if report.was_ready:
            return WorkerDiedError(report)
        case _:
            return WorkerStartError(report)
