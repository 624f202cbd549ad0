"""`EmbedClient`: what a host calls. Everything here is a thin face; `supervisor.py` does the work."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, Unpack

from bridge_client.calls import EmbedCall, Parameters
from bridge_client.embeddings import Embeddings, Matrix
from bridge_client.errors import QueueFullError, RequestTimeoutError
from bridge_client.options import ClientOptions, OptionKeywords
from bridge_client.stats import ClientStats
from bridge_client.supervisor import Supervisor
from bridge_client.worker_slot import Control
from embed_worker import protocol

BLOCK_INPUTS = 256
BLOCKS_AHEAD = 16  # of `embed_iter`: 4,096 texts, which the worker sorts by length


class EmbedClient:
    """A worker that never lets its host down: spawned at the first use, supervised, restarted.

    Thread-safe. Use it as a context manager, or call `close()`; a host that ends without leaves no worker either. A
    forked child cannot use the client of its parent.
    """

    def __init__(self, options: ClientOptions | None = None, **keywords: Unpack[OptionKeywords]) -> None:
        """Take the options as one `ClientOptions`, or as its keyword arguments; nothing is started yet."""
        if options is not None and keywords:
            raise TypeError("give either `options` or keyword arguments")
        self._options = ClientOptions(**keywords) if options is None else options
        self._supervisor = Supervisor(self._options)
        self._finalizer = weakref.finalize(self, self._supervisor.close_soon)
        self._finalizer.atexit = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{type(self).__name__} {stats.state} pid={stats.pid} in_flight={stats.in_flight}"
            f" restarts={stats.restarts}>"
        )

    def start(self) -> None:
        """Start the workers without waiting for them; the first call does so, too."""
        self._supervisor.start()

    def embed(
        self,
        inputs: str | Sequence[str],
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
        timeout_s: float | None = None,
    ) -> Matrix:
        """Return the vectors of the inputs: (B, D) float32, in order; one text is a list of one.

        Args:
            inputs: Any number of texts: what is too much for one request is split and joined again.
            normalize: L2-normalise, whatever the model's folder says.
            dimensions: Keep so many of the dimensions (Matryoshka).
            prompt_name: A prompt of the model, such as `query`.
            prompt: A literal prefix.
            truncate: False makes a text over the model's limit an error.
            timeout_s: For the whole call, waiting included; without it `request_timeout_s` counts for each chunk of the
                call once it is sent.

        Raises:
            RequestError: The worker says no.
            RequestTimeoutError: The time is over.
            PoisonedInputError: An input kills the worker.
            BridgeError: There is no worker that could serve it: `docs/troubleshooting.md` lists them all.
        """
        return self.embed_detailed(
            inputs,
            normalize=normalize,
            dimensions=dimensions,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate,
            timeout_s=timeout_s,
        ).vectors

    def embed_detailed(
        self,
        inputs: str | Sequence[str],
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Do as `embed`, and return tokens, truncation, fingerprint and timings beside the vectors."""
        parameters = Parameters(
            normalize=normalize, dimensions=dimensions, prompt_name=prompt_name, prompt=prompt, truncate=truncate
        )
        call = self._make_call(inputs, parameters, timeout_s)
        self._submit_when_there_is_room(call, timeout_s)
        try:
            return call.future.result()
        except BaseException:  # Ctrl-C, for instance: nobody waits any more
            call.future.cancel()
            raise

    def submit(
        self,
        inputs: str | Sequence[str],
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
        timeout_s: float | None = None,
    ) -> Future[Embeddings]:
        """Begin an `embed_detailed` and return its future.

        Callbacks of the future run on a thread of their own, one after the other. Cancelling the future cancels the
        request.

        Raises:
            QueueFullError: Too much is waiting already.
        """
        parameters = Parameters(
            normalize=normalize, dimensions=dimensions, prompt_name=prompt_name, prompt=prompt, truncate=truncate
        )
        call = self._make_call(inputs, parameters, timeout_s, calls_back=True)
        self._supervisor.submit(call)
        return call.future

    def embed_iter(
        self,
        inputs: Iterable[str],
        *,
        block_inputs: int = BLOCK_INPUTS,
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
    ) -> Generator[Matrix]:
        """Yield the vectors of any number of texts in blocks, in order: (B, D) with B at most `block_inputs`.

        A few blocks are in flight while one is consumed, and no more of `inputs` is read than that: memory is bounded.
        """
        parameters = Parameters(
            normalize=normalize, dimensions=dimensions, prompt_name=prompt_name, prompt=prompt, truncate=truncate
        )
        calls: deque[EmbedCall] = deque()
        try:
            for block in blocks(inputs, block_inputs):
                call = self._make_call(block, parameters, None)
                self._submit_when_there_is_room(call, None)
                calls.append(call)
                if len(calls) > BLOCKS_AHEAD:
                    yield calls[0].future.result().vectors
                    calls.popleft()
            while calls:
                yield calls[0].future.result().vectors
                calls.popleft()
        finally:
            for call in calls:
                call.future.cancel()

    def cancel(self, future: Future[Any]) -> bool:
        """Cancel a submitted call; False when it has ended already. The same as `future.cancel()`."""
        return future.cancel()

    def info(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the worker says of itself and its model, as soon as it is ready."""
        return self._ask(protocol.Info(), worker, timeout_s).result()

    def ping(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a sign of life: `state`, `micro_batches`, `queued`, `in_flight`."""
        return self._ask(protocol.Ping(), worker, timeout_s).result()

    def metrics(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the worker's counters, gauges and latency percentiles."""
        metrics = self._ask(protocol.Metrics(), worker, timeout_s).result().get("metrics")
        return metrics if isinstance(metrics, dict) else {}

    def stats(self) -> ClientStats:
        """Return the client's own view: state, process, queue, restarts, latencies."""
        return self._supervisor.stats()

    def restart(self, *, accept_model: bool = False) -> None:
        """Replace the workers, also from FAILED and with an empty budget; returns at once.

        Args:
            accept_model: Go on also with another model than so far. The vectors of the two must not be mixed.
        """
        self._supervisor.restart(accept_model=accept_model)

    def close(self) -> None:
        """Stop the workers and wait for their end; bounded, idempotent, from any thread.

        What the worker has begun may still be answered within 5 s; the rest fails with `ClientClosedError`.
        """
        self._supervisor.close()

    # For both faces

    def _make_call(
        self, inputs: str | Sequence[str], parameters: Parameters, timeout_s: float | None, *, calls_back: bool = False
    ) -> EmbedCall:
        """Check the inputs and make a call of them."""
        return EmbedCall(
            (inputs,) if isinstance(inputs, str) else tuple(inputs),
            parameters,
            timeout_s=self._options.request_timeout_s if timeout_s is None else timeout_s,
            deadline=None if timeout_s is None else time.monotonic() + timeout_s,
            calls_back=calls_back,
        )

    def _ask(self, request: protocol.Request, worker: int, timeout_s: float | None) -> Future[dict[str, Any]]:
        """Put a question to one worker."""
        if not 0 <= worker < self._options.workers:
            raise ValueError(f"`worker` must be 0 to {self._options.workers - 1}, not {worker}")
        patience_s = self._patience_s(timeout_s)
        control = Control(request, worker, time.monotonic() + patience_s, patience_s)
        self._supervisor.ask(control)
        return control.future

    def _submit(self, call: EmbedCall) -> None:
        """Queue a call, or raise `QueueFullError`."""
        self._supervisor.submit(call)

    def _room(self) -> Future[None]:
        """Return a future that is done when a call that did not fit may be tried again."""
        return self._supervisor.room()

    def _patience_s(self, timeout_s: float | None) -> float:
        """Return how long a call may wait for room."""
        return self._options.request_timeout_s if timeout_s is None else timeout_s

    def _submit_when_there_is_room(self, call: EmbedCall, timeout_s: float | None) -> None:
        patience_s = self._patience_s(timeout_s)
        until = time.monotonic() + patience_s
        while True:
            try:
                self._supervisor.submit(call)
                return
            except QueueFullError as full:
                try:
                    self._supervisor.room().result(max(0.0, until - time.monotonic()))
                except TimeoutError:
                    message = f"the queue was full for {patience_s:g} s"
                    raise RequestTimeoutError(message, timeout_s=patience_s) from full


def blocks(inputs: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut any iterable into lists of `size`."""
    if isinstance(inputs, str):
        raise TypeError("`inputs` must be many texts: this is one")
    block: list[str] = []
    for text in inputs:
        block.append(text)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
