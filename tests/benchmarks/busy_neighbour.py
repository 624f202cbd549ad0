"""One text beside processes that compute: `python -m tests.benchmarks.busy_neighbour`.

These take turns: the worker's own way, which chooses between all cores and one as it goes; one thread; and all threads
as the worker's spin, each on a core of its own or wherever the system puts it, spinning without bound, for so many
microseconds, or not at all. The neighbours multiply matrices
on none, half and all of the cores; what they get done beside each is told as a share of what they do alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.inference import ort
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.placement import own_cores, run_on
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.machine import available_cores
from embed_worker.model_files.folder import read_model_folder
from tests.benchmarks.contestants import MODEL
from tests.benchmarks.measures import machine

Done: TypeAlias = "list[Synchronized[int]]"  # pieces of work, by neighbour
Run: TypeAlias = Callable[[TokenBatch], object]
_BLOCK = 8  # texts of a session before the next has its turn
_START_S = 60.0  # until a neighbour computes
_PAUSE_S = 0.002  # a text alone comes after a while, when the session's threads sleep


def neighbour(done: Synchronized[int]) -> None:
    """Compute without end on one core."""
    matrix = np.ones((128, 128), np.float32)
    while True:
        matrix = np.tanh(matrix @ matrix)
        done.value += 1


@contextmanager
def neighbours(count: int) -> Iterator[Done]:
    """Let so many processes compute meanwhile."""
    context = multiprocessing.get_context("spawn")
    done: Done = [context.Value("q", 0, lock=False) for _ in range(count)]
    processes = [context.Process(target=neighbour, args=(value,), daemon=True) for value in done]
    for process in processes:
        process.start()
    try:
        until = time.monotonic() + _START_S
        while not all(value.value for value in done):
            if time.monotonic() > until or not all(process.is_alive() for process in processes):
                raise RuntimeError("a neighbour did not begin to compute")
            time.sleep(0.05)
        yield done
    finally:
        for process in processes:
            process.kill()
            process.join()


def open_session(threads: int, spin_us: int | None) -> ort.Session:
    """Open the default model; `spin_us` of None lets threads spin without bound."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0" if spin_us == 0 else "1")
    if spin_us:
        settings.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return ort.open_session(MODEL / "onnx" / "model.onnx", settings)


def one_text(tokens: int) -> TokenBatch:
    """Make a text up."""
    ids = np.random.default_rng(tokens).integers(1000, 20_000, (1, tokens))
    return TokenBatch(ids, np.ones_like(ids))


def runner(session: ort.Session, cores: Sequence[int] = ()) -> Run:
    """Return what runs a text in a session, on the first of these cores."""

    def run(batch: TokenBatch) -> None:
        feeds = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": np.zeros_like(batch.ids)}
        run_on(cores, lambda: session.run(["last_hidden_state"], feeds))

    return run


def worker(cores: int) -> Run:
    """Return what runs a text as the worker does where nothing else waits, with an empty memory."""
    plan = read_model_folder(MODEL, ModelOptions(name_or_path=MODEL.name))
    backend = OnnxBackend.load(plan, RuntimeOptions(provider="cpu"), threads=cores)
    backend.use_all_cores()
    return lambda batch: backend.embed(batch, exclusive=True)


def measure(ways: dict[str, Run], tokens: int, rounds: int, done: Done) -> dict[str, Any]:
    """Return for each way the quartiles of one text in ms, and how much the neighbours did beside it."""
    text = one_text(tokens)
    times: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    alone = _rate(done, lambda: time.sleep(0.5))
    for number in range(rounds):
        for name in random.Random(number).sample(list(ways), len(ways)):
            rate = _rate(done, partial(_block, ways[name], text, times[name]))
            shares[name].append(rate / alone if alone else 1.0)
    return {
        name: {
            "ms": [round(float(value), 2) for value in np.percentile(times[name], (25, 50, 75))],
            "neighbours": round(statistics.median(shares[name]), 2),
        }
        for name in ways
    }


def _block(run: Run, text: TokenBatch, times: list[float]) -> None:
    for _ in range(_BLOCK):
        time.sleep(_PAUSE_S)
        started = time.perf_counter()
        run(text)
        times.append((time.perf_counter() - started) * 1e3)


def _rate(done: Done, run: Callable[[], None]) -> float:
    started, before = time.perf_counter(), sum(value.value for value in done)
    run()
    return (sum(value.value for value in done) - before) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help=f"of {_BLOCK} texts each way (20)")
    parser.add_argument("--tokens", default="8,24,128", help="lengths of the text (8,24,128)")
    parser.add_argument("--spin-us", default="", help="further sessions whose threads spin so long, such as 5,50,200")
    options = parser.parse_args()
    # The numbers of the neighbours are of one thread each.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    cores, graph = available_cores(), MODEL / "onnx" / "model.onnx"
    own = own_cores(cores)
    ways = {
        "worker": worker(cores),
        "one thread": runner(open_session(1, 0)),
        "always wide": runner(ort.open_session(graph, ort.session_options(cores, own[1:])), own),
        "always wide, anywhere": runner(ort.open_session(graph, ort.session_options(cores))),
        "unbounded spinning": runner(open_session(cores, None)),
        "no spinning": runner(open_session(cores, 0)),
    }
    for spin_us in filter(None, options.spin_us.split(",")):
        ways[f"{spin_us} us"] = runner(open_session(cores, int(spin_us)))
    print(f"{machine()}, onnxruntime {version('onnxruntime')}: quartiles in ms, work of the neighbours ÷ alone")
    for count in dict.fromkeys((0, max(1, cores // 2), cores)):
        with neighbours(count) as done:
            for tokens in map(int, options.tokens.split(",")):
                for name, row in measure(ways, tokens, options.rounds, done).items():
                    print(f"{count} neighbours, {tokens} tokens, {name}: {json.dumps(row)}", flush=True)


if __name__ == "__main__":
    main()
