"""`EmbedClient`: what a host calls. Everything here is a thin face; `core.py` does the work."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from bridge_client.callbacks import HostFuture
from bridge_client.calls import EmbedCall, EmbedKeywords, Parameters, TokenizeCall, TokenizeKeywords, TokenizeParameters
from bridge_client.chunks import texts_of
from bridge_client.core import Core
from bridge_client.embeddings import Embeddings, Matrix, Tokenization
from bridge_client.futures import Outlet, Waiter
from bridge_client.options import ClientOptions, OptionKeywords, check_timeout
from bridge_client.stats import ClientStats
from bridge_client.stream import BLOCK_INPUTS, BLOCKS_AHEAD, BlockCall, OnError, blocks, check_stream, finished
from bridge_client.worker_slot import Control
from embed_worker import protocol

OutletT = TypeVar("OutletT", bound=Outlet[Embeddings])
TokenOutletT = TypeVar("TokenOutletT", bound=Outlet[Tokenization])
ControlOutletT = TypeVar("ControlOutletT", bound=Outlet[dict[str, Any]])


class EmbedClient:
    """A worker that never lets its host down: spawned at the first use, supervised, restarted.

    Thread-safe. Use it as a context manager, or call `close()`; a host that ends without leaves no worker either. A
    forked child cannot use the client of its parent. Pickled or copied, it becomes a new client of the same options.
    """

    def __init__(
        self, model: str | os.PathLike[str] | ClientOptions | None = None, **keywords: Unpack[OptionKeywords]
    ) -> None:
        """Take a model's name or folder and the options as keywords, or all of them as one `ClientOptions`.

        Nothing is started yet.
        """
        self._options = options_of(model, keywords)
        self._core = Core(self._options)
        self._finalizer = weakref.finalize(self, self._core.close_soon)
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

    def __reduce__(self) -> tuple[type[EmbedClient], tuple[ClientOptions]]:
        return type(self), (portable(self._options),)

    def start(self) -> None:
        """Start the workers without waiting for them; the first call does so, too.

        Raises:
            ClientClosedError: The client is closed.
            WorkerStartError: The system has no threads to spare; it may be tried again.
        """
        self._core.start()

    def embed(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Matrix:
        """Return the vectors of the inputs: (B, D) float32, in order; one text is a list of one.

        Args:
            inputs: Any number of texts: what is too much for one request is split and joined again.
            timeout_s: For the whole call, waiting included; without it `request_timeout_s` counts for each chunk of the
                call once it is sent.
            parameters: Further keywords:
                normalize: L2-normalise, whatever the model's folder says.
                dimensions: Keep so many of the dimensions (Matryoshka).
                precision: `float16` gives (B, D) float16, and `ubinary` (B, D / 8 rounded up) uint8, the sign bits
                    as sentence-transformers and `numpy.packbits` have them.
                prompt_name: A prompt of the model, such as `query`.
                prompt: A literal prefix.
                input_type: `query` or `document`: as `embed_query` and `embed_documents`.
                truncate: False makes a text over the model's limit an error.
                model: Another model that the worker has loaded.

        Raises:
            RequestError: The worker says no.
            RequestTimeoutError: The time is over.
            PoisonedInputError: An input kills the worker.
            BridgeError: There is no worker that could serve it: `docs/troubleshooting.md` lists them all.
        """
        return self.embed_detailed(inputs, timeout_s=timeout_s, **parameters).vectors

    def embed_query(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Matrix:
        """Return the vectors of questions: `embed` with the model's prompt `query`, or none where it has none."""
        parameters["input_type"] = "query"
        return self.embed_detailed(inputs, timeout_s=timeout_s, **parameters).vectors

    def embed_documents(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Matrix:
        """Return the vectors of what is searched: `embed` with the model's prompt for documents.

        That is the first of `document`, `passage` and `corpus` that is not empty; else there is none.
        """
        parameters["input_type"] = "document"
        return self.embed_detailed(inputs, timeout_s=timeout_s, **parameters).vectors

    def embed_detailed(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Embeddings:
        """Do as `embed`, and return tokens, truncation, fingerprint and timings beside the vectors."""
        waiter: Waiter[Embeddings] = Waiter()
        return self._begin(inputs, Parameters(**parameters), timeout_s, waiter).result()

    def submit(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Future[Embeddings]:
        """Begin an `embed_detailed` and return its future.

        Callbacks of the future run on a thread of their own, one after the other. Cancelling the future cancels the
        request.

        Raises:
            QueueFullError: Too much is waiting already.
        """
        future: HostFuture[Embeddings] = HostFuture(self._core.callbacks)
        return self._begin(inputs, Parameters(**parameters), timeout_s, future, waits_for_room=False)

    def embed_iter(
        self,
        inputs: Iterable[str],
        *,
        block_inputs: int = BLOCK_INPUTS,
        on_error: OnError = "raise",
        **parameters: Unpack[EmbedKeywords],
    ) -> Generator[Matrix]:
        """Yield the vectors of any number of texts in blocks, in order: (B, D) with B at most `block_inputs`.

        A few blocks are in flight while one is consumed, and no more of `inputs` is read than that: memory is bounded.

        Args:
            inputs: The texts.
            block_inputs: How many make a block.
            on_error: `null` gives an input that cannot be embedded a row of NaN, and goes on; `embed_iter_detailed`
                tells why. What no input is to blame for is raised in any case. The index of an error is that in
                the stream.
            parameters: As those of `embed`.
        """
        stream = self.embed_iter_detailed(inputs, block_inputs=block_inputs, on_error=on_error, **parameters)
        with contextlib.closing(stream):
            for result in stream:
                yield result.vectors

    def embed_iter_detailed(
        self,
        inputs: Iterable[str],
        *,
        block_inputs: int = BLOCK_INPUTS,
        on_error: OnError = "raise",
        **parameters: Unpack[EmbedKeywords],
    ) -> Generator[Embeddings]:
        """Do as `embed_iter`, and yield tokens, truncation, fingerprint and failures beside the vectors."""
        wanted = Parameters(**parameters)
        check_stream(inputs, block_inputs, on_error, wanted.precision)
        ahead: deque[BlockCall[Waiter[Embeddings]]] = deque()

        def begin(texts: Sequence[str]) -> Waiter[Embeddings]:
            return self._begin(texts, wanted, None, Waiter())

        try:
            for start, texts in blocks(inputs, block_inputs):
                ahead.append(BlockCall(start, texts, on_error, begin))
                if len(ahead) > BLOCKS_AHEAD:
                    yield finished(ahead[0])
                    ahead.popleft()
            while ahead:
                yield finished(ahead[0])
                ahead.popleft()
        finally:
            for block in ahead:
                block.cancel()

    def tokenize(
        self,
        inputs: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        **parameters: Unpack[TokenizeKeywords],
    ) -> Tokenization:
        """Return how many tokens each input has, as `embed` counts them, and where they are; nothing is run.

        Args:
            inputs: Any number of texts.
            timeout_s: As that of `embed`.
            parameters: Further keywords:
                offsets: Also find where in its text each token is, in code points.
                truncate: False finds all of them, else those that the model sees; no text is refused for its length.
                prompt_name, prompt, input_type, model: As those of `embed`.

        Raises:
            RequestError: The worker says no.
            RequestTimeoutError: The time is over.
            BridgeError: There is no worker that could serve it.
        """
        waiter: Waiter[Tokenization] = Waiter()
        return self._begin_tokenize(inputs, TokenizeParameters(**parameters), timeout_s, waiter).result()

    def info(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the worker says of itself and its model, as soon as it is ready."""
        return self._ask(protocol.Info(), worker, timeout_s, Waiter[dict[str, Any]]()).result()

    def ping(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a sign of life: `state`, `micro_batches`, `queued`, `in_flight`."""
        return self._ask(protocol.Ping(), worker, timeout_s, Waiter[dict[str, Any]]()).result()

    def metrics(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the worker's counters, gauges and latency percentiles."""
        return metrics_of(self._ask(protocol.Metrics(), worker, timeout_s, Waiter[dict[str, Any]]()).result())

    def stats(self) -> ClientStats:
        """Return the client's own view: state, process, queue, restarts, latencies."""
        return self._core.stats()

    def restart(self, *, accept_model: bool = False) -> None:
        """Replace the workers, also from FAILED and with an empty budget; returns at once.

        Args:
            accept_model: Go on also with another model than so far. The vectors of the two must not be mixed.
        """
        self._core.restart(accept_model=accept_model)

    def close(self) -> None:
        """Stop the workers and wait for their end; bounded, idempotent, from any thread.

        What the worker has begun may still be answered within 5 s; the rest fails with `ClientClosedError`. In a signal
        handler that has interrupted the client itself it only begins to close.
        """
        self._core.close()

    @property
    def options(self) -> ClientOptions:
        """What this client was made of."""
        return self._options

    @property
    def is_closed(self) -> bool:
        """Whether `close()` has been called."""
        return self._core.is_closing

    # For both faces

    def _begin(
        self,
        inputs: str | Sequence[str],
        parameters: Parameters,
        timeout_s: float | None,
        outlet: OutletT,
        *,
        waits_for_room: bool = True,
    ) -> OutletT:
        """Make a call for vectors, queue it, and return where its outcome will be."""
        patience_s, deadline = self._times(timeout_s)
        call = EmbedCall(
            texts_of(inputs),
            parameters,
            timeout_s=patience_s,
            deadline=deadline,
            waits_for_room=waits_for_room,
            outlet=outlet,
        )
        self._core.submit(call)
        return outlet

    def _begin_tokenize(
        self,
        inputs: str | Sequence[str],
        parameters: TokenizeParameters,
        timeout_s: float | None,
        outlet: TokenOutletT,
    ) -> TokenOutletT:
        """Make a call for tokens, queue it, and return where its outcome will be."""
        patience_s, deadline = self._times(timeout_s)
        call = TokenizeCall(texts_of(inputs), parameters, timeout_s=patience_s, deadline=deadline, outlet=outlet)
        self._core.submit(call)
        return outlet

    def _times(self, timeout_s: float | None) -> tuple[float, float | None]:
        """Return how long each chunk of a call may take, and when all of it has to be over."""
        if timeout_s is None:
            return self._options.request_timeout_s, None
        check_timeout(timeout_s)
        return timeout_s, time.monotonic() + timeout_s

    def _ask(
        self, request: protocol.Request, worker: int, timeout_s: float | None, outlet: ControlOutletT
    ) -> ControlOutletT:
        """Put a question to one worker."""
        if not 0 <= worker < self._options.workers:
            raise ValueError(f"`worker` must be 0 to {self._options.workers - 1}, not {worker}")
        if timeout_s is not None:
            check_timeout(timeout_s)
        patience_s = self._options.request_timeout_s if timeout_s is None else timeout_s
        self._core.ask(Control(request, worker, time.monotonic() + patience_s, patience_s, outlet))
        return outlet


def metrics_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the figures in an answer."""
    metrics = answer.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def describe_options(method: Any) -> None:
    """Let `help()` show the options where a host looks for them."""
    if method.__doc__ and ClientOptions.__doc__:  # not with -OO
        method.__doc__ += "\n    Options:" + ClientOptions.__doc__.partition("Attributes:")[2]


describe_options(EmbedClient.__init__)


def portable(options: ClientOptions) -> ClientOptions:
    """Return options that a copy of a client can have: one in another process, perhaps.

    Raises:
        TypeError: There is an `on_state_change`: it belongs to this client and this process.
    """
    if options.on_state_change is not None:
        raise TypeError("a client with `on_state_change` can be neither pickled nor copied")
    return options


def options_of(model: str | os.PathLike[str] | ClientOptions | None, keywords: OptionKeywords) -> ClientOptions:
    """Return the options that a client is made of.

    Raises:
        TypeError: There are both a `ClientOptions` and keywords.
    """
    if isinstance(model, ClientOptions):
        if keywords:
            raise TypeError("give either a `ClientOptions` or keyword arguments")
        return model
    return ClientOptions(**keywords) if model is None else ClientOptions(model=model, **keywords)
