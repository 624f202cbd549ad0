"""`AsyncEmbedClient`: the calls of `EmbedClient`, awaitable. The same core of threads and futures; no second one.

Cancelling the task that awaits a call cancels the request. The event loop is never blocked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from bridge_client.calls import EmbedCall, Parameters
from bridge_client.client import BLOCK_INPUTS, BLOCKS_AHEAD, EmbedClient, blocks
from bridge_client.embeddings import Embeddings, Matrix
from bridge_client.errors import QueueFullError, RequestTimeoutError
from bridge_client.options import ClientOptions, OptionKeywords
from bridge_client.stats import ClientStats
from embed_worker import protocol


class AsyncEmbedClient:
    """An `EmbedClient` for asyncio. Use it as an asynchronous context manager, or await `close()`."""

    def __init__(self, options: ClientOptions | None = None, **keywords: Unpack[OptionKeywords]) -> None:
        """Take the options as one `ClientOptions`, or as its keyword arguments; nothing is started yet."""
        self._client = EmbedClient(options, **keywords)

    async def __aenter__(self) -> Self:
        self._client.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self._client).replace("EmbedClient", type(self).__name__, 1)

    async def embed(
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
        """Return the vectors of the inputs, as `EmbedClient.embed`."""
        parameters = Parameters(
            normalize=normalize, dimensions=dimensions, prompt_name=prompt_name, prompt=prompt, truncate=truncate
        )
        return (await self._embed(inputs, parameters, timeout_s)).vectors

    async def embed_detailed(
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
        return await self._embed(inputs, parameters, timeout_s)

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
    ) -> asyncio.Future[Embeddings]:
        """Begin an `embed_detailed` and return its future, an asyncio one.

        Raises:
            QueueFullError: Too much is waiting already.
        """
        parameters = Parameters(
            normalize=normalize, dimensions=dimensions, prompt_name=prompt_name, prompt=prompt, truncate=truncate
        )
        call = self._client._make_call(inputs, parameters, timeout_s)
        self._client._submit(call)
        return asyncio.wrap_future(call.future)

    async def embed_iter(
        self,
        inputs: Iterable[str] | AsyncIterable[str],
        *,
        block_inputs: int = BLOCK_INPUTS,
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
    ) -> AsyncGenerator[Matrix]:
        """Yield the vectors of any number of texts in blocks, as `EmbedClient.embed_iter`; also of an async one."""
        parameters = Parameters(
            normalize=normalize, dimensions=dimensions, prompt_name=prompt_name, prompt=prompt, truncate=truncate
        )
        calls: deque[EmbedCall] = deque()
        try:
            async for block in _blocks(inputs, block_inputs):
                call = self._client._make_call(block, parameters, None)
                await self._submit_when_there_is_room(call, None)
                calls.append(call)
                if len(calls) > BLOCKS_AHEAD:
                    yield (await asyncio.wrap_future(calls[0].future)).vectors
                    calls.popleft()
            while calls:
                yield (await asyncio.wrap_future(calls[0].future)).vectors
                calls.popleft()
        finally:
            for call in calls:
                call.future.cancel()

    def cancel(self, future: asyncio.Future[Any]) -> bool:
        """Cancel a submitted call; False when it has ended already. The same as `future.cancel()`."""
        return future.cancel()

    async def info(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the worker says of itself and its model, as soon as it is ready."""
        return await asyncio.wrap_future(self._client._ask(protocol.Info(), worker, timeout_s))

    async def ping(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a sign of life: `state`, `micro_batches`, `queued`, `in_flight`."""
        return await asyncio.wrap_future(self._client._ask(protocol.Ping(), worker, timeout_s))

    async def metrics(self, *, worker: int = 0, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the worker's counters, gauges and latency percentiles."""
        answer = await asyncio.wrap_future(self._client._ask(protocol.Metrics(), worker, timeout_s))
        metrics = answer.get("metrics")
        return metrics if isinstance(metrics, dict) else {}

    def stats(self) -> ClientStats:
        """Return the client's own view: state, process, queue, restarts, latencies."""
        return self._client.stats()

    def restart(self, *, accept_model: bool = False) -> None:
        """Replace the workers, as `EmbedClient.restart`; returns at once."""
        self._client.restart(accept_model=accept_model)

    async def close(self) -> None:
        """Stop the workers and wait for their end, as `EmbedClient.close`."""
        await asyncio.shield(asyncio.to_thread(self._client.close))

    async def _embed(self, inputs: str | Sequence[str], parameters: Parameters, timeout_s: float | None) -> Embeddings:
        call = self._client._make_call(inputs, parameters, timeout_s)
        await self._submit_when_there_is_room(call, timeout_s)
        return await asyncio.wrap_future(call.future)

    async def _submit_when_there_is_room(self, call: EmbedCall, timeout_s: float | None) -> None:
        patience_s = self._client._patience_s(timeout_s)
        until = asyncio.get_running_loop().time() + patience_s
        while True:
            try:
                self._client._submit(call)
                return
            except QueueFullError as full:
                left_s = until - asyncio.get_running_loop().time()
                try:
                    await asyncio.wait_for(asyncio.wrap_future(self._client._room()), max(0.0, left_s))
                except TimeoutError:
                    message = f"the queue was full for {patience_s:g} s"
                    raise RequestTimeoutError(message, timeout_s=patience_s) from full


async def _blocks(inputs: Iterable[str] | AsyncIterable[str], size: int) -> AsyncIterator[list[str]]:
    if not isinstance(inputs, AsyncIterable):
        for block in blocks(inputs, size):
            yield block
        return
    gathered: list[str] = []
    async for text in inputs:
        gathered.append(text)
        if len(gathered) == size:
            yield gathered
            gathered = []
    if gathered:
        yield gathered
