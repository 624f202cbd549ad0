"""What OpenVINO costs and gives: `python -m tests.benchmarks.openvino_figures`.

Start-up in turns with the CPU worker; the precision that runs and why, also masked to a lesser processor; resident
memory at the start and after batches of random shapes; what a shape costs that was not there before, in a graph that
is compiled without buckets; what a token costs in shapes of the steps of the buckets and between them; what a text
costs behind one of another shape; how much of a corpus is padding; bulk and one text in turns with the CPU worker.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from embed_worker.accelerators.openvino.backend import buckets_of
from embed_worker.accelerators.openvino.runtime import Runtime
from embed_worker.config import OpenvinoPrecision, RuntimeOptions
from embed_worker.machine import available_cores
from embed_worker.serving.scheduler import Row, Scheduler
from tests.benchmarks.contestants import MODEL, Worker, plain_tokenizer
from tests.benchmarks.corpus import compared_corpora, docstring_corpus
from tests.benchmarks.machine_load import wait_until_idle
from tests.benchmarks.measures import machine, percentiles, resident_mb

_OPENVINO = ("--provider", "openvino")
_BATCH_TOKENS = RuntimeOptions().batch_tokens


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


def costs_of_tokens(precision: OpenvinoPrecision, rounds: int) -> dict[int, float]:
    """Run 16 texts of 8, 12, 16 … tokens on one core, in turns; return by tokens the µs that one of them takes."""
    graph = Runtime(MODEL / "onnx" / "model.onnx").compile(precision, threads=1, output="last_hidden_state")
    times: dict[int, list[float]] = {tokens: [] for tokens in range(8, 65, 4)}
    for number in range(rounds + 1):
        for tokens in random.Random(number).sample(list(times), len(times)):
            ids = np.full((16, tokens), 2003, np.int64)
            started = time.perf_counter()
            graph.run({"input_ids": ids, "attention_mask": ids // ids, "token_type_ids": ids * 0})
            if number:  # a shape's first run prepares it
                times[tokens].append((time.perf_counter() - started) * 1e6 / ids.size)
    return {tokens: round(statistics.median(values), 1) for tokens, values in times.items()}


def changes_of_shape(precision: OpenvinoPrecision, rounds: int) -> dict[int, str]:
    """Run one text of 12, 24, 48 … tokens on all cores; return by tokens the ms, and those behind another shape."""
    graph = Runtime(MODEL / "onnx" / "model.onnx").compile(
        precision, threads=available_cores(), output="last_hidden_state"
    )
    feeds = {}
    for tokens in (12, 24, 48, 64, 128):
        ids = np.full((1, tokens), 2003, np.int64)
        feeds[tokens] = {"input_ids": ids, "attention_mask": ids // ids, "token_type_ids": ids * 0}
    changed: dict[int, list[float]] = {tokens: [] for tokens in feeds}
    same: dict[int, list[float]] = {tokens: [] for tokens in feeds}
    for number in range(rounds + 1):
        for tokens in random.Random(number).sample(list(feeds), len(feeds)):
            for times in (changed, same, same):
                started = time.perf_counter()
                graph.run(feeds[tokens])
                if number:  # a shape's first run prepares it
                    times[tokens].append((time.perf_counter() - started) * 1e3)
    middle = statistics.median
    return {tokens: f"{middle(same[tokens]):.2f}, {middle(changed[tokens]):.2f}" for tokens in feeds}


def padding(texts: list[str], tokenizer: Tokenizer) -> dict[str, float]:
    """Return what is run over the tokens of texts, in requests of 64, by batches that fill their buckets or do not."""
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    buckets = buckets_of(_BATCH_TOKENS, 256)
    found = {}
    for name, fills in (("filled", True), ("not filled", False)):
        scheduler: Scheduler[int] = Scheduler(batch_tokens=_BATCH_TOKENS)
        for first in range(0, len(lengths), 64):
            told = {"padded_to": buckets.together} if fills else {}
            scheduler.open(first, model=None, expected_tokens=10**6, **told)
            some = lengths[first : first + 64]
            scheduler.add(Row(first, index, tokens) for index, tokens in enumerate(some))
        run = 0
        while batch := scheduler.next_batch(lanes=2):
            run += math.prod(buckets.together(len(batch), max(row.tokens for row in batch)))
        found[name] = round(run / sum(lengths), 2)
    return found


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
    core = Runtime(MODEL / "onnx" / "model.onnx")
    for precision in (each for each in OpenvinoPrecision if each is not OpenvinoPrecision.AUTO and core.lists(each)):
        print(f"µs a token, by tokens, {precision}:", costs_of_tokens(precision, 4 * options.rounds), flush=True)
        told = changes_of_shape(precision, 10 * options.rounds)
        print(f"ms of one text, and behind another shape, by tokens, {precision}:", told, flush=True)
    tokenizer = plain_tokenizer()
    for profile, some in compared_corpora(320, tokenizer).items():
        print(f"padded, over real tokens, {profile}:", padding(some, tokenizer), flush=True)
    texts = {profile: docstring_corpus(profile, options.texts, tokenizer) for profile in ("short", "mixed")}
    for name, row in beside_cpu(texts, options.rounds).items():
        print(f"{name}: {row}", flush=True)


if __name__ == "__main__":
    main()
