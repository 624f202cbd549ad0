"""A service that keeps answering while its worker is killed every few seconds.

It listens on a local port; a client sends a line of text and gets the first numbers of its vector. Run it with
`python examples/async_service.py`: it kills its own worker now and then, asks itself all the time, and reports.
"""

import argparse
import asyncio
import contextlib
import os
import signal

from bridge_client import AsyncEmbedClient, BridgeError, State

HOST = "127.0.0.1"


async def serve(client: AsyncEmbedClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the lines of one connection."""
    try:
        while line := await reader.readline():
            try:
                vectors = await client.embed([line.decode().strip()])
                answer = " ".join(f"{value:.3f}" for value in vectors[0][:4])
            except BridgeError as error:
                answer = f"error: {type(error).__name__}"
            writer.write(f"{answer}\n".encode())
            await writer.drain()
    finally:
        writer.close()
        await writer.wait_closed()


async def ask(port: int, name: int, questions: int) -> int:
    """Send questions one after the other; return how many were answered with a vector."""
    reader, writer = await asyncio.open_connection(HOST, port)
    answered = 0
    for number in range(questions):
        writer.write(f"question {number} of customer {name}\n".encode())
        answered += not (await reader.readline()).startswith(b"error")
    writer.write_eof()
    await reader.read()  # until the service has closed its side
    writer.close()
    await writer.wait_closed()
    return answered


async def kill_now_and_then(client: AsyncEmbedClient, every_s: float) -> None:
    """Be the out-of-memory killer."""
    while True:
        await asyncio.sleep(every_s)
        stats = client.stats()
        if stats.state is State.READY and stats.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stats.pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has only the latter


async def main(customers: int, questions: int, kill_every_s: float, worker_command: tuple[str, ...] | None) -> None:
    """Run the service, its customers and its enemy; say how it went."""
    # A worker that dies every few seconds for ever is one to give up; this one is killed on purpose.
    async with AsyncEmbedClient(restart_budget=10_000, backoff_max_s=0.5, worker_command=worker_command) as client:
        await client.info()
        server = await asyncio.start_server(lambda reader, writer: serve(client, reader, writer), HOST, 0)
        port = server.sockets[0].getsockname()[1]
        enemy = asyncio.create_task(kill_now_and_then(client, kill_every_s))
        answered = await asyncio.gather(*(ask(port, name, questions) for name in range(customers)))
        enemy.cancel()
        server.close()
        await server.wait_closed()
        stats = client.stats()
        print(f"{sum(answered)} of {customers * questions} answered, {stats.restarts} restarts, {client}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=8)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--kill-every-s", type=float, default=2.0)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.customers, arguments.questions, arguments.kill_every_s, None))
