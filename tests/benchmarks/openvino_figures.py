"""What OpenVINO costs and gives: `python -m tests.benchmarks.openvino_figures`.

Start-up in turns with the CPU worker; the precision that runs and why, also masked to a lesser processor; resident
memory at the start and after batches of random shapes; what a shape costs that was not there before, in a graph that
is compiled without buckets; bulk and one text in turns with the CPU worker.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from typing import Any

import numpy as np

from embed_worker.accelerators.openvino.runtime import Runtime
from embed_worker.config import OpenvinoPrecision
from tests.benchmarks.contestants import MODEL, Worker, plain_tokenizer
from tests.benchmarks.corpus import docstring_corpus
from tests.benchmarks.machine_load import wait_until_idle
from tests.benchmarks.measures import machine, percentiles, resident_mb

_OPENVINO = ("--provider", "openvino")


def start_up(rounds: int) -> dict[str, float]:
    """Return seconds from the spawn to the answer of `info`, medians in turns."""
    times: dict[str, list[float]] = {"cpu": [], "openvino": []}
    for _ in range(rounds):
        for name, arguments in (("cpu", ()), ("openvino", _OPENVINO)):
            started = time.perf_counter()
            worker = Worker(*arguments)
            times[name].append(time.perf_counter() - started)
            worker.close()
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def random_shapes(worker: Worker, count: int) -> list[float]:
    """Return resident MB before, and after each third of so many requests of random shapes."""
    choice = random.Random(1)
    sizes = [resident_mb(worker.process.pid)]
    for number in range(count):
        text = " ".join(["word"] * choice.randint(1, 250))
        worker.embed([text] * choice.choice((1, 1, 2, 5, 9)))
        if number % (count // 3) == count // 3 - 1:
            sizes.append(resident_mb(worker.process.pid))
    return sizes


def new_shapes(count: int) -> dict[str, float]:
    """Run a compiled graph with random shapes, each twice; return the median of ms, and the MB of a shape."""
    graph = Runtime(MODEL / "onnx" / "model.onnx").compile(
        OpenvinoPrecision.FLOAT32, threads=1, output="last_hidden_state"
    )
    choice = random.Random(2)
    first: list[float] = []
    again: list[float] = []
    before = resident_mb(os.getpid())
    for _ in range(count):
        ids = np.ones((choice.randint(1, 16), choice.randint(4, 64)), np.int64)
        feeds = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
        for times in (first, again):
            started = time.perf_counter()
            graph.run(feeds)
            times.append((time.perf_counter() - started) * 1e3)
    grown = resident_mb(os.getpid()) - before
    extra = statistics.median(one - other for one, other in zip(first, again, strict=True))
    return {"ms_more_when_new": round(extra, 1), "mb_a_shape": round(grown / count, 2)}


def beside_cpu(texts: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Compare the two workers: bulk in texts/s, and one text in ms, in turns."""
    workers = {"cpu": Worker(), "openvino": Worker(*_OPENVINO)}
    found: dict[str, Any] = {}
    try:
        for profile, some in texts.items():
            speeds: dict[str, list[float]] = {name: [] for name in workers}
            for number in range(rounds):
                for name in random.Random(number).sample(list(workers), 2):
                    started = time.perf_counter()
                    workers[name].embed(some)
                    speeds[name].append(len(some) / (time.perf_counter() - started))
            medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
            found[profile] = {**medians, "openvino ÷ cpu": round(medians["openvino"] / medians["cpu"], 2)}
        times: dict[str, list[float]] = {name: [] for name in workers}
        for number, text in enumerate((next(iter(texts.values())) * 3)[:200]):
            for name in random.Random(number).sample(list(workers), 2):
                started = time.perf_counter()
                workers[name].embed([text])
                times[name].append((time.perf_counter() - started) * 1e3)
        found["one text"] = {name: percentiles(values) for name, values in times.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return found


def info_of(*arguments: str) -> dict[str, Any]:
    """Return what a worker tells of its precision and its provider."""
    worker = Worker(*arguments)
    worker.send({"id": 1, "method": "info"})
    info = worker.receive()
    worker.close()
    return {"precision": info["precision"], **info["provider"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=128, help="of each profile (128)")
    parser.add_argument("--shapes", type=int, default=60, help="random ones (60)")
    options = parser.parse_args()
    print(machine())
    print("info:", info_of(*_OPENVINO))
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    print("info with ONEDNN_MAX_CPU_ISA=AVX2:", info_of(*_OPENVINO))
    del os.environ["ONEDNN_MAX_CPU_ISA"]
    print("spawn to info, s:", start_up(options.rounds), flush=True)
    worker = Worker(*_OPENVINO)
    wait_until_idle(worker.process.pid)  # the graph of all cores is compiled after the start
    print(
        f"resident MB, then after each third of {options.shapes} random shapes:", random_shapes(worker, options.shapes)
    )
    worker.close()
    print("without buckets:", new_shapes(options.shapes), flush=True)
    tokenizer = plain_tokenizer()
    texts = {profile: docstring_corpus(profile, options.texts, tokenizer) for profile in ("short", "mixed")}
    for name, row in beside_cpu(texts, options.rounds).items():
        print(f"{name}: {row}", flush=True)


if __name__ == "__main__":
    main()
