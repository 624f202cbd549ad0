"""What is measured: throughput, latency alone, in a crowd and under load, start-up, memory, idleness.

Every comparison is made in interleaved rounds and told as a ratio of medians: machines are noisy, their speed drifts.
"""

from __future__ import annotations

import platform
import queue
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.machine import available_cores
from tests.benchmarks.contestants import MODEL, ROOT, Contestant, DirectAlone, Worker
from tests.benchmarks.machine_load import wait_until_idle

Row = dict[str, Any]


def throughput(makers: Sequence[Callable[[], Contestant]], texts: list[str], rounds: int) -> list[Row]:
    """Measure texts per second of each contestant, and how far its vectors are from the worker's.

    Returns:
        A row for each: `name`, `texts_per_s` (median), `spread` (lowest and highest), `vs_worker` (worker ÷ it) and
        `min_cosine`.
    """
    speeds: dict[str, list[float]] = {}
    contestants = [make() for make in makers]
    names = [contestant.name for contestant in contestants]
    if len(set(names)) < len(names):
        raise ValueError(f"two contestants have the same name: {names}")
    try:
        reference = contestants[0].embed(texts)
        nearness = {
            contestant.name: round(float((contestant.embed(texts) * reference).sum(axis=1).min()), 6)
            for contestant in contestants
        }
        for number in range(rounds):
            for contestant in random.Random(number).sample(contestants, len(contestants)):
                started = time.perf_counter()
                contestant.embed(texts)
                speeds.setdefault(contestant.name, []).append(len(texts) / (time.perf_counter() - started))
    finally:
        for contestant in contestants:
            contestant.close()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours = medians[contestants[0].name]
    return [
        {
            "name": name,
            "texts_per_s": round(medians[name], 1),
            "spread": [round(min(values), 1), round(max(values), 1)],
            "vs_worker": round(ours / medians[name], 3),
            "min_cosine": nearness[name],
        }
        for name, values in sorted(speeds.items(), key=lambda item: names.index(item[0]))
    ]


def single_latency(texts: list[str], count: int) -> Row:
    """Measure one short text at a time, alternating between the pipe and the runtime called directly, in ms."""
    worker, direct = Worker(request_texts=1), DirectAlone()
    times: dict[str, list[float]] = {"worker": [], "direct": []}
    try:
        for number in range(count + 20):
            text = [texts[number % len(texts)]]
            for name, contestant in (("worker", worker), ("direct", direct)):
                started = time.perf_counter()
                if name == "worker":
                    worker.send({"id": 1, "inputs": text, "encoding_format": "base64"})
                    worker.receive()
                else:
                    contestant.embed(text)
                if number >= 20:
                    times[name].append((time.perf_counter() - started) * 1e3)
    finally:
        worker.close()
        direct.close()
    row: Row = {name: percentiles(values) for name, values in times.items()}
    row["p50_difference_ms"] = round(row["worker"]["p50"] - row["direct"]["p50"], 3)
    row["p95_ratio"] = round(row["worker"]["p95"] / row["direct"]["p95"], 3)
    return row


def concurrency(texts: list[str], rounds: int) -> Row:
    """Compare many single-text requests with bulk, in texts per second: 64 at a time, and 1,000 at once."""
    worker = Worker()
    speeds: dict[str, list[float]] = {"bulk": [], "64 at a time": [], "1,000 at once": []}
    try:
        for _ in range(rounds):
            started = time.perf_counter()
            worker.embed(texts)
            speeds["bulk"].append(len(texts) / (time.perf_counter() - started))
            for name, window in (("64 at a time", 64), ("1,000 at once", 1000)):
                speeds[name].append(_singles(worker, texts, window))
    finally:
        worker.close()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        name: {"texts_per_s": round(speed, 1), "share_of_bulk": round(speed / medians["bulk"], 3)}
        for name, speed in medians.items()
    }


def _singles(worker: Worker, texts: list[str], window: int) -> float:
    started = time.perf_counter()
    sent = 0
    for answered in range(len(texts)):
        while sent < len(texts) and sent - answered < window:
            worker.send({"id": sent, "inputs": texts[sent], "encoding_format": "base64"})
            sent += 1
        worker.receive()
    return len(texts) / (time.perf_counter() - started)


def latency_under_load(texts: list[str], query: str, *arguments: str) -> Row:
    """Send a short text again and again while a request of 10,000 texts is admitted and runs; times in ms."""
    worker = Worker(*arguments)
    bulk = (texts * (10_000 // len(texts) + 1))[:10_000]
    times: list[float] = []
    done = threading.Event()
    answers: queue.SimpleQueue[float] = queue.SimpleQueue()
    try:
        alone = []
        for _ in range(50):
            started = time.perf_counter()
            worker.send({"id": "query", "inputs": query})
            worker.receive()
            alone.append((time.perf_counter() - started) * 1e3)

        def read() -> None:
            while True:
                answer = worker.receive()
                if answer["id"] == "bulk":
                    done.set()
                    answers.put(0.0)
                    return
                answers.put(time.perf_counter())

        reader = threading.Thread(target=read)
        reader.start()
        worker.send({"id": "bulk", "inputs": bulk, "encoding_format": "base64"})
        began = time.perf_counter()
        while not done.is_set():
            started = time.perf_counter()
            worker.send({"id": "query", "inputs": query})
            ended = answers.get(timeout=600)
            if ended:
                times.append((ended - started) * 1e3)
        took = time.perf_counter() - began
        reader.join()
    finally:
        worker.close()
    return {"alone": percentiles(alone), "under_load": percentiles(times), "bulk_texts_per_s": round(10_000 / took, 1)}


def longest_texts(query: str) -> Row:
    """Send a text of 1 MiB of each kind, and a short one again and again beside it; the slowest of each, in ms."""
    kinds = {
        "prose": "the quick brown fox ", "one word": "a", "digits": "7", "blanks": " ", "lines": "a\n", "marks": "?!",
        "accents": "é", "combining": "e\u0301", "Han": "東", "emoji": "😀", "mixed": "größer 東京 42 ",
    }  # fmt: skip
    worker = Worker()
    longest: dict[str, float] = {}
    beside: list[float] = []
    try:
        for kind, piece in kinds.items():
            text = (piece * (2**20 // len(piece.encode())))[: 2**20]
            began = time.perf_counter()
            worker.send({"id": "long", "inputs": text})
            while kind not in longest:
                started = time.perf_counter()
                worker.send({"id": "query", "inputs": query})
                while (answered := worker.receive()["id"]) == "long":
                    longest[kind] = round((time.perf_counter() - began) * 1e3, 1)
                assert answered == "query"
                beside.append((time.perf_counter() - started) * 1e3)
    finally:
        worker.close()
    slowest = max(longest, key=lambda kind: longest[kind])
    return {"slowest_kind": slowest, "ms": longest[slowest], "beside_max_ms": round(max(beside), 1), "kinds": longest}


_BARE = """
import onnxruntime, tokenizers, numpy
folder = {folder!r}
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
options = onnxruntime.SessionOptions()
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx", options, providers=["CPUExecutionProvider"])
ids = numpy.array([tokenizer.encode("ready").ids])
mask = numpy.ones_like(ids)
session.run(["last_hidden_state"], {{"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0}})
print("ready", flush=True)
"""


def start_up(rounds: int) -> Row:
    """Compare spawn to the answer of `info` with a bare process that loads the same files and runs once, in seconds."""
    bare, worker = [], []
    code = _BARE.format(folder=str(MODEL))
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        contestant = Worker()
        worker.append(time.perf_counter() - started)
        contestant.close()
    ratio = statistics.median(worker) / statistics.median(bare)
    return {
        "bare_s": round(statistics.median(bare), 3),
        "worker_s": round(statistics.median(worker), 3),
        "ratio": round(ratio, 2),
    }


def memory(texts: list[str], *, first: int, then: int) -> Row:
    """Follow resident memory over so many texts and then more, in MB; Linux tells it."""
    worker = Worker()
    sizes = []

    def embed(count: int) -> float:
        done = 0
        while done < count:
            worker.embed(texts[: count - done])
            done += len(texts[: count - done])
            sizes.append(resident_mb(worker.process.pid))
        return resident_mb(worker.process.pid)

    try:
        wait_until_idle(worker.process.pid)  # the session of all cores is opened after the start
        at_start = resident_mb(worker.process.pid)
        after_first = embed(first)
        after_then = embed(then)
    finally:
        worker.close()
    return {
        "at_start_mb": at_start,
        f"after_{first}_mb": after_first,
        f"after_{first + then}_mb": after_then,
        "growth": round(after_then / after_first - 1, 4),
        "highest_mb": max(sizes),
    }


def idle_cpu(seconds: float) -> Row:
    """Measure the share of a core that a worker takes while it has nothing to do."""
    worker = Worker()
    try:
        worker.embed(["warm"])
        time.sleep(1)
        before = _cpu_seconds(worker.process.pid)
        time.sleep(seconds)
        used = _cpu_seconds(worker.process.pid) - before
    finally:
        worker.close()
    return {"seconds": seconds, "share_of_a_core": round(used / seconds, 5)}


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def _cpu_seconds(pid: int) -> float:
    # schedstat counts nanoseconds, stat only ticks of 10 ms.
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text("ascii").split()[0]) for task in tasks) / 1e9


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Summarise times."""
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in (50, 95, 99)}


def machine() -> str:
    """Name the machine that the figures are of."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{available_cores()} cores of {models[0] if models else platform.processor()}"
