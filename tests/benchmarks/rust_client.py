"""The Rust client against the Python client, in turns: `python -m tests.benchmarks.rust_client FILE`.

Each keeps a worker of its own. A round is all texts of FILE in one call, then single texts one by one; who goes first
changes from round to round. `make clients` builds the Rust side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bridge_client import EmbedClient

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "examples/rust/target/release/examples/bench"


def measure(client: EmbedClient, texts: list[str], singles: int) -> dict[str, float]:
    """Do what examples/rust/examples/bench.rs does: texts a second, then p50 and p95 of single texts in ms."""
    started = time.perf_counter()
    client.embed(texts)
    texts_per_s = len(texts) / (time.perf_counter() - started)
    latencies_ms = []
    for place in range(singles):
        started = time.perf_counter()
        client.embed([texts[place % len(texts)]])
        latencies_ms.append((time.perf_counter() - started) * 1e3)
    latencies_ms.sort()
    return {
        "texts_per_s": texts_per_s,
        "single_p50_ms": latencies_ms[singles // 2],
        "single_p95_ms": latencies_ms[singles * 95 // 100],
    }


def main() -> None:
    """Print each round, then the medians of the ratios and the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="one text a line")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--singles", type=int, default=100)
    parser.add_argument("--fake", action="store_true", help="a worker that computes nothing: the clients' own time")
    args = parser.parse_args()
    texts = args.file.read_text("utf-8").splitlines()
    worker = "bridge_client.testing.fake_worker" if args.fake else "embed_worker"
    command = (sys.executable, "-m", worker, "--supervised")
    rust = subprocess.Popen(
        [BENCH, args.file, str(args.singles), "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert rust.stdin is not None
    assert rust.stdout is not None

    def rust_round() -> dict[str, Any]:
        assert rust.stdin is not None
        assert rust.stdout is not None
        rust.stdin.write("\n")
        rust.stdin.flush()
        found: dict[str, Any] = json.loads(rust.stdout.readline())
        return found

    ratios, differences = [], []
    with EmbedClient(worker_command=command) as client:
        client.embed(texts[:64])
        for number in range(args.rounds):
            if number % 2:
                mine, theirs = measure(client, texts, args.singles), rust_round()
            else:
                theirs = rust_round()
                mine = measure(client, texts, args.singles)
            ratios.append(theirs["texts_per_s"] / mine["texts_per_s"])
            differences.append(theirs["single_p50_ms"] - mine["single_p50_ms"])
            print(f"round {number}: rust ÷ python {ratios[-1]:.3f}, p50 rust - python {differences[-1]:+.3f} ms")
    rust.stdin.close()
    rust.wait(30)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"throughput, rust ÷ python: median {middle:.3f} (quartiles {low:.3f}–{high:.3f})")
    print(f"one text, p50, rust - python: median {statistics.median(differences):+.3f} ms")


if __name__ == "__main__":
    main()
