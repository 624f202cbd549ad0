"""The Python client's adapter for the conformance suite: calls as JSON lines in, outcomes as JSON lines out.

`docs/hosts.md` has the contract, which the adapter of every client follows. This one maps it to `EmbedClient` and does
nothing else.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

from bridge_client.client import EmbedClient
from bridge_client.embeddings import Embeddings, Tokenization
from bridge_client.errors import (
    BridgeError,
    CircuitOpenError,
    ClientClosedError,
    ModelChangedError,
    PoisonedInputError,
    ProtocolMismatchError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    WorkerDiedError,
    WorkerHungError,
    WorkerStartError,
)
from bridge_client.options import ClientOptions, Timing

_KINDS: dict[type[BaseException], str] = {
    RequestError: "request",
    RequestTimeoutError: "timeout",
    QueueFullError: "queue_full",
    ClientClosedError: "closed",
    PoisonedInputError: "poisoned_input",
    WorkerStartError: "start",
    WorkerDiedError: "worker_died",
    WorkerHungError: "worker_hung",
    ProtocolMismatchError: "protocol_mismatch",
    ModelChangedError: "model_changed",
    CircuitOpenError: "circuit_open",
}
_OPTIONS = ("request_timeout_s", "start_timeout_s", "backoff_initial_s", "backoff_max_s")
_TIMING = ("ping_every_s", "pong_timeout_s", "stuck_after_s", "drain_s", "terminate_s")
_INFO = ("model", "fingerprint", "dimension", "max_tokens", "protocol", "pid")


def main() -> int:
    """Serve the calls on standard input; return the exit status."""
    command = json.loads(os.environ["CONFORMANCE_WORKER"])
    settings = json.loads(os.environ.get("CONFORMANCE_OPTIONS", "{}"))
    adapter = Adapter(EmbedClient(client_options(command, settings)))
    for line in sys.stdin.buffer:
        if line.strip():
            adapter.begin(json.loads(line))
    adapter.finish()
    return 0


def client_options(command: list[str], settings: Mapping[str, Any]) -> ClientOptions:
    """Translate the suite's settings; what is missing keeps the client's default."""
    options = {name: settings[name] for name in _OPTIONS if name in settings}
    if "max_restarts" in settings:
        options["restart_budget"] = settings["max_restarts"] + 1  # it counts failures, and the first start is none
        window_s = settings.get("restart_window_s", 60.0)
        options["restart_forgive_s"] = window_s / max(1, settings["max_restarts"])  # a bucket that leaks, no window
    if "max_attempts" in settings:
        options["replay"] = settings["max_attempts"] > 1
    timing = Timing(**{name: settings[name] for name in _TIMING if name in settings})
    return ClientOptions(worker_command=tuple(command), timing=timing, **options)


class Adapter:
    """One client, and the calls that have not ended."""

    def __init__(self, client: EmbedClient) -> None:
        self._client = client
        self._embeds: dict[int, Future[Embeddings]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._unfinished = 0
        self._is_idle = threading.Condition(self._lock)

    def begin(self, call: dict[str, Any]) -> None:
        """Start a call; it ends with one line, whenever that is."""
        number, operation = call.pop("call"), call.pop("op")
        with self._lock:
            self._unfinished += 1
        match operation:
            case "embed":
                self._embed(number, call)
            case "tokenize":
                self._on_a_thread(number, lambda: tokens_of(self._client.tokenize(call.pop("inputs"), **call)))
            case "cancel":
                if (future := self._embeds.get(call["target"])) is not None:
                    future.cancel()
                self._say(number, {})
            case "info":
                self._on_a_thread(number, lambda: {name: self._client.info()[name] for name in _INFO})
            case "ping":
                self._on_a_thread(number, self._ping)
            case "stats":
                self._on_a_thread(number, self._stats)
            case "close":
                self._on_a_thread(number, self._close)
            case _:
                raise ValueError(f"unknown operation {operation!r}")

    def finish(self) -> None:
        """Wait for the calls that have begun, then close the client."""
        with self._is_idle:
            while self._unfinished:
                self._is_idle.wait()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _embed(self, number: int, call: dict[str, Any]) -> None:
        try:
            future = self._client.submit(call.pop("inputs"), **call)
        except (BridgeError, TypeError, ValueError) as error:
            self._say(number, failure_of(error))
            return
        self._embeds[number] = future
        future.add_done_callback(functools.partial(self._embedded, number))

    def _embedded(self, number: int, future: Future[Embeddings]) -> None:
        try:
            result = future.result()
        except (BridgeError, CancelledError) as error:
            self._say(number, failure_of(error))
        else:
            self._say(number, outcome_of(result))

    def _ping(self) -> dict[str, Any]:
        self._client.ping()
        return {}

    def _close(self) -> dict[str, Any]:
        self._client.close()
        return {}

    def _stats(self) -> dict[str, Any]:
        stats = self._client.stats()
        return {"restarts": stats.restarts, "pid": stats.pid}

    def _on_a_thread(self, number: int, ask: Callable[[], dict[str, Any]]) -> None:
        def run() -> None:
            try:
                outcome = ask()
            except (BridgeError, TypeError, ValueError) as error:
                outcome = failure_of(error)
            self._say(number, outcome)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def _say(self, number: int, outcome: dict[str, Any]) -> None:
        line = json.dumps({"call": number, "ok": True} | outcome).encode() + b"\n"
        with self._lock:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(1, rest) :]
            self._unfinished -= 1
            self._is_idle.notify_all()


def outcome_of(result: Embeddings) -> dict[str, Any]:
    """Write vectors and what belongs to them."""
    little_endian = result.vectors.astype(result.vectors.dtype.newbyteorder("<"), order="C")
    return {
        "count": len(result.vectors),
        "dimension": result.dimension,
        "vectors_base64": base64.b64encode(little_endian.tobytes()).decode("ascii"),
        "tokens": [int(number) for number in result.tokens],
        "truncated": list(result.truncated),
        "model": result.model,
        "fingerprint": result.fingerprint,
    }


def tokens_of(result: Tokenization) -> dict[str, Any]:
    """Write how long texts are, and where their tokens are."""
    outcome: dict[str, Any] = {
        "count": len(result.tokens),
        "tokens": list(result.tokens),
        "truncated": list(result.truncated),
        "model": result.model,
        "fingerprint": result.fingerprint,
    }
    if result.offsets is not None:
        outcome["offsets"] = [ranges.tolist() for ranges in result.offsets]
    return outcome


def failure_of(error: BaseException) -> dict[str, Any]:
    """Write an error as one of the suite's kinds."""
    failure: dict[str, Any] = {"ok": False, "retryable": False, "message": str(error)}
    match error:
        case CancelledError():
            return failure | {"error": "cancelled", "message": "cancelled"}
        case RequestError():
            failure |= {"code": error.code, "retryable": error.retryable}
            if error.index is not None:
                failure["index"] = error.index
        case PoisonedInputError():
            failure["index"] = error.index
        case _:
            pass
    return failure | {"error": _KINDS.get(type(error), "invalid_argument")}


if __name__ == "__main__":
    sys.exit(main())
