"""`AsyncEmbedClient`: the same core, awaited. Cancelling a task cancels its request; the loop is never blocked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from bridge_client import (
    AsyncEmbedClient,
    ClientClosedError,
    ClientOptions,
    EmbedClient,
    QueueFullError,
    RequestTimeoutError,
    State,
    Timing,
    aio,
)
from bridge_client.testing import fake_command
from tests.client.conftest import WAIT_S
from tests.client.test_client import expected


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 3 * WAIT_S)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_all_the_calls() -> None:
    async def scenario() -> None:
        async with AsyncEmbedClient(worker_command=fake_command()) as client:
            assert np.array_equal(await client.embed(["a", "b"]), expected("a", "b"))
            assert (await client.embed_detailed(["a b"])).tokens == (4,)
            assert (await client.submit("c")).vectors.shape == (1, 8)
            assert (await client.embed("c", precision="ubinary")).dtype == np.uint8
            found = (await client.tokenize("a bc", offsets=True)).offsets
            assert found is not None
            assert found[0].tolist() == [[0, 1], [2, 4]]
            assert (await client.info())["dimension"] == 8
            assert (await client.ping())["message"] == "pong"
            assert (await client.metrics())["micro_batches"] == 5
            assert repr(client).startswith("<AsyncEmbedClient ready pid=")
            client.restart()
            assert np.array_equal(await client.embed(["d"]), expected("d"))
        assert client.stats().state is State.CLOSED
        with pytest.raises(ClientClosedError):
            await client.embed(["e"])

    run(scenario)


def test_a_thousand_tasks_are_all_answered() -> None:
    async def scenario() -> None:
        async with AsyncEmbedClient(worker_command=fake_command()) as client:
            results = await asyncio.gather(*(client.embed([f"text {number}"]) for number in range(1000)))
        assert np.array_equal(np.concatenate(results), expected(*(f"text {number}" for number in range(1000))))

    run(scenario)


def test_cancelling_the_task_cancels_the_request() -> None:
    async def scenario() -> None:
        async with AsyncEmbedClient(worker_command=fake_command(latency=3600.0)) as client:
            await client.info()
            task = asyncio.create_task(client.embed(["slow"]))
            await until(lambda: client.stats().in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: client.stats().in_flight == 0)
            assert client.stats().restarts == 0

    run(scenario)


def test_timeouts_and_a_full_queue_do_not_block_the_loop() -> None:
    async def scenario() -> None:
        command = fake_command(start_delay=0.5)
        async with AsyncEmbedClient(worker_command=command, max_queued_requests=1) as client:
            first = asyncio.create_task(client.embed(["first"]))
            await until(lambda: client.stats().queued == 1)
            with pytest.raises(QueueFullError):
                await client.submit("second")
            with pytest.raises(RequestTimeoutError):
                await client.embed(["second"], timeout_s=0.05)
            ticks = 0
            patient = asyncio.create_task(client.embed(["second"]))
            while not patient.done():
                await asyncio.sleep(0.001)
                ticks += 1
            assert ticks > 10
            assert np.array_equal(await first, expected("first"))
            assert np.array_equal(await patient, expected("second"))

    run(scenario)


def test_embed_iter_takes_plain_and_asynchronous_iterables() -> None:
    async def texts() -> AsyncIterator[str]:
        for number in range(95):
            yield str(number)

    async def scenario() -> None:
        async with AsyncEmbedClient(worker_command=fake_command()) as client:
            plain = [block async for block in client.embed_iter(map(str, range(95)), block_inputs=10)]
            asynchronous = [block async for block in client.embed_iter(texts(), block_inputs=10)]
            assert np.array_equal(np.concatenate(plain), expected(*map(str, range(95))))
            assert np.array_equal(np.concatenate(asynchronous), np.concatenate(plain))

    run(scenario)


def test_whoever_waits_in_the_loop_for_room_keeps_the_time_of_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "WINDOW_REQUESTS", 0)
    left_s: list[float | None] = []
    begin = EmbedClient._begin

    def watched(client: EmbedClient, inputs: Any, parameters: Any, timeout_s: float | None, *others: Any) -> Any:
        left_s.append(timeout_s)
        return begin(client, inputs, parameters, timeout_s, *others)

    monkeypatch.setattr(EmbedClient, "_begin", watched)

    async def scenario() -> None:
        options = ClientOptions(
            worker_command=fake_command(latency=3600.0), max_queued_requests=1, timing=Timing(drain_s=0.1)
        )
        async with AsyncEmbedClient(options) as client:
            first = asyncio.create_task(client.embed(["first"]))
            await until(lambda: client.stats().in_flight == 1)
            with pytest.raises(RequestTimeoutError, match=r"the queue was full for 0\.01 s"):
                await client.embed(["second"], timeout_s=0.01)
            third = asyncio.create_task(client.embed(["third"], timeout_s=1000.0))
            await asyncio.sleep(0)
            began_s = time.monotonic()
            await until(lambda: time.monotonic() > began_s)  # Windows' clock stands still for 16 ms
            first.cancel()
            await until(lambda: len(left_s) == 2)
            third.cancel()
            with pytest.raises(ValueError, match="nan"):
                await client.embed(["fourth"], timeout_s=float("nan"))

    run(scenario)
    assert left_s[0] is None
    assert left_s[1] is not None
    assert 0.0 < left_s[1] < 1000.0


def test_a_client_may_be_used_by_one_loop_after_the_other() -> None:
    client = AsyncEmbedClient(worker_command=fake_command(), max_queued_requests=1)

    async def many() -> None:
        await asyncio.gather(*(client.embed(str(number)) for number in range(600)))

    async def last() -> None:
        await many()
        await client.close()

    run(many)
    run(last)
