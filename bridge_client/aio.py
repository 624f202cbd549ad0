"""`AsyncEmbedClient`: the calls of `EmbedClient`, awaitable. The same core of threads and futures; no second one.

Cancelling the task that awaits a call cancels the request. The event loop is never blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from bridge_client.calls import EmbedKeywords, Parameters, TokenizeKeywords, TokenizeParameters
from bridge_client.client import EmbedClient, describe_options, metrics_of, portable
from bridge_client.embeddings import Embeddings, Matrix, Tokenization
from bridge_client.errors import PoisonedInputError, RequestError, RequestTimeoutError
from bridge_client.futures import CallFuture
from bridge_client.options import ClientOptions, OptionKeywords, check_timeout
from bridge_client.stats import ClientStats
from bridge_client.stream import BLOCK_INPUTS, BLOCKS_AHEAD, BlockCall, OnError, blocks, check_stream
from bridge_client.worker_slot import WINDOW_REQUESTS
from embed_worker import protocol


class AsyncEmbedClient:
    """An `EmbedClient` for asyncio. Use it as an asynchronous context manager, or await `close()`.

    With `client=` it is another face of a client that exists: blocking and awaiting callers share its workers. Closing
    it then closes nothing: whoever made the client closes it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ClientOptions | None = None,
        *,
        client: EmbedClient | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> None:
        """Take what `EmbedClient` takes; nothing is started yet.

        An event loop need not run.
        """
        if client is not None and (model is not None or keywords):
            raise TypeError("give either `client` or what to make one of")
        self._is_shared = client is not None
        self._client = EmbedClient(model, **keywords) if client is None else client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = asyncio.Semaphore(0)

    async def __aenter__(self) -> Self:
        self._client.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self._client).replace("EmbedClient", type(self).__name__, 1)

    def __reduce__(self) -> tuple[type[AsyncEmbedClient], tuple[ClientOptions]]:
        return type(self), (portable(self._client.options),)

    async def embed(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Matrix:
        """Return the vectors of the inputs, as `EmbedClient.embed`."""
        return (await self.embed_detailed(inputs, timeout_s=timeout_s, **parameters)).vectors

    async def embed_query(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Matrix:
        """Return the vectors of questions, as `EmbedClient.embed_query`."""
        parameters["input_type"] = "query"
        return (await self.embed_detailed(inputs, timeout_s=timeout_s, **parameters)).vectors

    async def embed_documents(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Matrix:
        """Return the vectors of what is searched, as `EmbedClient.embed_documents`."""
        parameters["input_type"] = "document"
        return (await self.embed_detailed(inputs, timeout_s=timeout_s, **parameters)).vectors

    async def embed_detailed(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> Embeddings:
        """Do as `embed`, and return tokens, truncation, fingerprint and timings beside the vectors."""
        wanted = Parameters(**parameters)
        async with self._place(timeout_s) as left_s:
            future: CallFuture[Embeddings] = CallFuture()
            return await asyncio.wrap_future(self._client._begin(inputs, wanted, left_s, future))

    async def tokenize(
        self,
        inputs: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        **parameters: Unpack[TokenizeKeywords],
    ) -> Tokenization:
        """Return how many tokens each input has and where they are, as `EmbedClient.tokenize`."""
        wanted = TokenizeParameters(**parameters)
        async with self._place(timeout_s) as left_s:
            future: CallFuture[Tokenization] = CallFuture()
            return await asyncio.wrap_future(self._client._begin_tokenize(inputs, wanted, left_s, future))

    def submit(
        self, inputs: str | Sequence[str], *, timeout_s: float | None = None, **parameters: Unpack[EmbedKeywords]
    ) -> asyncio.Future[Embeddings]:
        """Begin an `embed_detailed` and return its future, an asyncio one.

        Raises:
            QueueFullError: Too much is waiting already.
        """
        return asyncio.wrap_future(self._client.submit(inputs, timeout_s=timeout_s, **parameters))

    async def embed_iter(
        self,
        inputs: Iterable[str] | AsyncIterable[str],
        *,
        block_inputs: int = BLOCK_INPUTS,
        on_error: OnError = "raise",
        **parameters: Unpack[EmbedKeywords],
    ) -> AsyncGenerator[Matrix]:
        """Yield the vectors of any number of texts in blocks, as `EmbedClient.embed_iter`; also of an async one."""
        stream = self.embed_iter_detailed(inputs, block_inputs=block_inputs, on_error=on_error, **parameters)
        async with contextlib.aclosing(stream):
            async for result in stream:
                yield result.vectors

    async def embed_iter_detailed(
        self,
        inputs: Iterable[str] | AsyncIterable[str],
        *,
        block_inputs: int = BLOCK_INPUTS,
        on_error: OnError = "raise",
        **parameters: Unpack[EmbedKeywords],
    ) -> AsyncGenerator[Embeddings]:
        """Do as `embed_iter`, and yield tokens, truncation, fingerprint and failures beside the vectors."""
        wanted = Parameters(**parameters)
        check_stream(inputs, block_inputs, on_error, wanted.precision)
        ahead: deque[BlockCall[CallFuture[Embeddings]]] = deque()

        def begin(texts: Sequence[str]) -> CallFuture[Embeddings]:
            return self._client._begin(texts, wanted, None, CallFuture())

        try:
            async for start, texts in _blocks(inputs, block_inputs):
                ahead.append(BlockCall(start, texts, on_error, begin))
                if len(ahead) > BLOCKS_AHEAD:
                    yield await _finished(ahead[0])
                    ahead.popleft()
            while ahead:
                yield await _finished(ahead[0])
                ahead.popleft()
        finally:
            for block in ahead:
                block.cancel()

    async def info(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the worker says of itself and its model, as soon as it is ready."""
        return await asyncio.wrap_future(
            self._client._ask(protocol.Info(), worker, timeout_s, CallFuture[dict[str, Any]]())
        )

    async def ping(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a sign of life: `state`, `micro_batches`, `queued`, `in_flight`."""
        return await asyncio.wrap_future(
            self._client._ask(protocol.Ping(), worker, timeout_s, CallFuture[dict[str, Any]]())
        )

    async def metrics(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the worker's counters, gauges and latency percentiles."""
        answered = self._client._ask(protocol.Metrics(), worker, timeout_s, CallFuture[dict[str, Any]]())
        return metrics_of(await asyncio.wrap_future(answered))

    def stats(self) -> ClientStats:
        """Return the client's own view: state, process, queue, restarts, latencies."""
        return self._client.stats()

    def restart(self, *, accept_model: bool = False) -> None:
        """Replace the workers, as `EmbedClient.restart`; returns at once."""
        self._client.restart(accept_model=accept_model)

    async def close(self) -> None:
        """Stop the workers and wait for their end, as `EmbedClient.close`; not those of somebody else's client."""
        if self._is_shared:
            return
        until = asyncio.get_running_loop().time() + self._client._core.close_patience_s
        for future in self._client._core.closing():
            left_s = until - asyncio.get_running_loop().time()
            # Not awaited itself: a task that is cancelled here must not cancel what others wait for.
            await asyncio.wait([asyncio.wrap_future(future)], timeout=max(0.0, left_s))

    @contextlib.asynccontextmanager
    async def _place(self, timeout_s: float | None) -> AsyncIterator[float | None]:
        """Have a place for a call, and give what is left of its time."""
        places = self._places()
        if places.locked():
            timeout_s = await self._wait_for(places, timeout_s)
        else:
            await places.acquire()
        try:
            yield timeout_s
        finally:
            places.release()

    def _places(self) -> asyncio.Semaphore:
        """Return what lets as many calls of this loop go on as there is room for, in the queue and in the workers.

        The core would let the others wait in order, too; but thousands of them at once would hold up the loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            options = self._client.options
            room = options.max_queued_requests + options.workers * WINDOW_REQUESTS
            self._loop, self._calls = loop, asyncio.Semaphore(room)
        return self._calls

    async def _wait_for(self, places: asyncio.Semaphore, timeout_s: float | None) -> float | None:
        """Wait for a place, and return what is left of a call's time."""
        if timeout_s is not None:
            check_timeout(timeout_s)
        patience_s = self._client.options.request_timeout_s if timeout_s is None else timeout_s
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(patience_s):
                await places.acquire()
        except TimeoutError:
            message = f"the queue was full for {patience_s:g} s"
            raise RequestTimeoutError(message, timeout_s=patience_s) from None
        return None if timeout_s is None else timeout_s - (asyncio.get_running_loop().time() - began)


describe_options(AsyncEmbedClient.__init__)


async def _finished(block: BlockCall[CallFuture[Embeddings]]) -> Embeddings:
    """Wait for a block, and try again without what is at fault."""
    while (result := block.result()) is None:
        assert block.call is not None
        try:
            vectors = await asyncio.wrap_future(block.call)
        except (RequestError, PoisonedInputError) as fault:
            block.fail(fault)
        else:
            block.succeed(vectors)
    return result


async def _blocks(inputs: Iterable[str] | AsyncIterable[str], size: int) -> AsyncIterator[tuple[int, list[str]]]:
    if not isinstance(inputs, AsyncIterable):
        for each in blocks(inputs, size):
            yield each
        return
    start = 0
    gathered: list[str] = []
    async for text in inputs:
        gathered.append(text)
        if len(gathered) == size:
            yield start, gathered
            start, gathered = start + size, []
    if gathered:
        yield start, gathered
