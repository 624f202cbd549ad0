"""What the client itself costs: `python tests/benchmarks/client_overhead.py`. Best of several runs each.

Round trip over the fake worker; 1,000 vectors decoded, against `orjson.loads` and `binascii.a2b_base64` alone; the
import, against numpy's; and with `--bulk` a corpus through `embed_iter`, against the real worker alone.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import functools
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import orjson

from bridge_client import EmbedClient
from bridge_client.calls import EmbedCall, Parameters
from bridge_client.chunks import Chunk
from bridge_client.handshake import Served
from bridge_client.testing import fake_client
from embed_worker import protocol
from embed_worker.protocol import EncodingFormat, Limits, Success

_WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from""".split()  # noqa: SIM905


def best(run: Callable[[], object], repeat: int, number: int = 1) -> float:
    """Return the shortest time of one call, in seconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        for _ in range(number):
            run()
        times.append((time.perf_counter() - started) / number)
    return min(times)


def round_trip() -> None:
    """One short text there and back, all threads and both pipes."""
    with fake_client() as client:
        client.embed("warm up")
        p50s = []
        for _ in range(5):
            times = []
            for _ in range(2000):
                started = time.perf_counter()
                client.embed("x")
                times.append(time.perf_counter() - started)
            p50s.append(statistics.median(times))
    print(f"round trip over the fake worker: p50 {min(p50s) * 1e6:.0f} µs (runs: {[round(p * 1e6) for p in p50s]})")


def decoding(count: int = 1000, dimension: int = 384) -> None:
    """From the bytes of a line to the matrix of the caller."""
    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    members = {
        "model": "m",
        "fingerprint": "f",
        "dimension": dimension,
        "count": count,
        "embeddings_base64": base64.b64encode(vectors.tobytes()).decode(),
        "tokens": [20] * count,
        "truncated": [],
        "timing_ms": {"queue": 1.0, "tokenize": 1.0, "inference": 1.0, "total": 3.0},
    }
    line = protocol.encode_success(1, 1, members)
    served = Served(model="m", fingerprint="f", dimension=dimension, limits=Limits())
    texts = ["x" * 80] * count

    def bare() -> None:
        binascii.a2b_base64(orjson.loads(line)["embeddings_base64"])

    def client() -> None:
        response = protocol.decode_response(line)
        assert isinstance(response, Success)
        call.take(chunk, call.read(response.members, chunk, served))
        assert call.conclude()
        call.deliver()

    bare_s = client_s = float("inf")
    for _ in range(200):  # in turns, so that both meet the same machine
        bare_s = min(bare_s, best(bare, 1))
        call = EmbedCall(texts, Parameters(), timeout_s=1.0)
        chunk = Chunk(call=call, start=0, stop=count)
        client_s = min(client_s, best(client, 1))
    print(
        f"{count} x {dimension} decoded: {client_s * 1e3:.2f} ms, orjson and binascii alone {bare_s * 1e3:.2f} ms:"
        f" {bare_s / client_s:.2f} of their speed"
    )


def importing() -> None:
    """Fresh interpreters, in turns."""
    names = "AsyncEmbedClient, EmbedClient"
    sources = {
        "nothing": "pass",
        "numpy": "import numpy",
        "the client": "from bridge_client import EmbedClient",
        "both clients": f"from bridge_client import {names}",
    }
    times = dict.fromkeys(sources, float("inf"))
    for _ in range(10):
        for name, source in sources.items():
            times[name] = min(times[name], best(functools.partial(_run, source), 1))
    for name in ("the client", "both clients"):
        print(
            f"import of {name}: numpy's + {(times[name] - times['numpy']) * 1e3:.0f} ms (numpy alone: "
            f"{(times['numpy'] - times['nothing']) * 1e3:.0f} ms)"
        )


def _run(source: str) -> None:
    subprocess.run([sys.executable, "-c", source], check=True)


def bulk(texts_count: int, rounds: int) -> None:
    """Through `embed_iter`, against one request to the bare worker; in turns, the median of the ratios."""
    chance = random.Random(0)
    texts = [" ".join(chance.choices(_WORDS, k=chance.randint(3, 40))) for _ in range(texts_count)]
    request = protocol.Embed(inputs=texts, encoding_format=EncodingFormat.BASE64)
    line = protocol.encode_request(1, request)
    ratios = []
    command = [sys.executable, "-m", "embed_worker", "--supervised"]
    with EmbedClient() as client, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        client.embed(texts[:64])

        def alone() -> None:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(line)
            worker.stdin.flush()
            assert worker.stdout.readline().startswith(b'{"id":1,"status":"ok"')

        def through_client() -> None:
            assert sum(len(block) for block in client.embed_iter(texts)) == texts_count

        alone()
        for _ in range(rounds):
            alone_s, client_s = best(alone, 1), best(through_client, 1)
            ratios.append(alone_s / client_s)
            print(
                f"  worker alone {texts_count / alone_s:.0f} texts/s, embed_iter {texts_count / client_s:.0f} texts/s"
            )
        worker.stdin.close()
    print(f"bulk through embed_iter: {statistics.median(ratios):.3f} of the worker alone")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bulk", action="store_true", help="also the real worker, which takes a while")
    parser.add_argument("--texts", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    round_trip()
    decoding()
    importing()
    if arguments.bulk:
        bulk(arguments.texts, arguments.rounds)


if __name__ == "__main__":
    main()
