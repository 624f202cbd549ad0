"""One text at a time: what the way through the worker adds: `python -m tests.benchmarks.one_text`.

In turns: the runtime in this process (tokenise, feed, run, average, normalise), the same behind a pipe in a loop that
does nothing else (the least that any bridge in Python adds), the worker's bare pipe, and the Python client over another
worker. All on one thread by default, where runs differ least; with a tiny model (`--model
tests/models/bert-mean`) the difference is hardly drowned by the time of the run itself. With `--threads` as many as
there are cores, the runtime also takes part with its threads wherever the system puts them; `--pause-ms 20` lets them
sleep before every text. With turns of one text each finds the caches full of what another has run; with `--turn 50` it
finds its own weights there, as a host does that asks for one text after the other.
"""

from __future__ import annotations

import argparse
import base64
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bridge_client import EmbedClient
from embed_worker.inference import ort
from embed_worker.inference.placement import own_cores, run_on
from tests.benchmarks.contestants import MODEL, ROOT
from tests.benchmarks.measures import machine, percentiles

Ask: TypeAlias = Callable[[str], object]


class Direct:
    """A text in this process, with a session as the worker's; `cores` are those of its threads, or none."""

    def __init__(self, model: Path, threads: int, cores: Sequence[int]) -> None:
        self._cores = cores
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(256)
        (graph,) = model.rglob("model.onnx")
        self._session = ort.open_session(graph, ort.session_options(threads, cores[1:]))
        self._inputs = {node.name for node in self._session.get_inputs()}

    def __call__(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        mask = np.ones_like(ids)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = run_on(
            self._cores,
            lambda: self._session.run(["last_hidden_state"], {name: feeds[name] for name in self._inputs}),
        )
        pooled = hidden[0].mean(axis=0)
        vector: NDArray[np.float32] = pooled / np.linalg.norm(pooled)
        return vector


def answer_in_a_loop(direct: Direct) -> None:
    """Answer one text a line until the end of standard input; nothing is checked."""
    for line in sys.stdin.buffer:
        vector = direct(orjson.loads(line)["inputs"])
        answer = {"id": 1, "embeddings_base64": base64.b64encode(vector.tobytes()).decode(), "timing_ms": {}}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()


class Pipe:
    """Another process, with a line written and a line read by the same thread."""

    def __init__(self, module: str, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        self.parts: list[dict[str, float]] = []

    def __call__(self, text: str) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps({"id": 1, "inputs": text, "encoding_format": "base64"}) + b"\n")
        self._process.stdin.flush()
        answer = orjson.loads(self._process.stdout.readline())
        self.parts.append(answer["timing_ms"])
        return answer["embeddings_base64"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def measure(asks: dict[str, Ask], texts: list[str], pause_s: float, turn: int) -> dict[str, list[float]]:
    """Ask everybody for some texts in a row, in an order that changes, each after a pause; return the times in ms."""
    times: dict[str, list[float]] = {name: [] for name in asks}
    for first in range(0, len(texts), turn):
        for name in random.Random(first).sample(list(asks), len(asks)):
            for text in texts[first : first + turn]:
                time.sleep(pause_s)
                started = time.perf_counter()
                asks[name](text)
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="a folder with a graph that gives token vectors")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turn", type=int, default=1, help="texts in a row (1)")
    parser.add_argument("--pause-ms", type=float, default=0, help="before every text (0)")
    parser.add_argument("--loop", action="store_true", help="be the loop that does nothing else")
    options = parser.parse_args()
    if options.loop:
        answer_in_a_loop(Direct(options.model, options.threads, own_cores(options.threads)))
        return
    model, threads = str(options.model.resolve()), ("--threads", str(options.threads))
    words = "a row for every text and rain on green hills while nobody counts boats".split()  # noqa: SIM905
    texts = [" ".join(random.Random(number).choices(words, k=12)) for number in range(options.texts + 50)]
    pipe = Pipe("embed_worker", ["--model", model, *threads])
    loop = Pipe("tests.benchmarks.one_text", ["--loop", "--model", model, *threads])
    with EmbedClient(model, worker_args=threads) as client:
        cores, pause_s = own_cores(options.threads), options.pause_ms / 1e3
        asks: dict[str, Ask] = {"direct": Direct(options.model, options.threads, cores)}
        asks |= {"a loop behind a pipe": loop, "pipe": pipe, "client": client.embed}
        if cores:
            asks["direct, threads anywhere"] = Direct(options.model, options.threads, ())
        measure(asks, texts[:50], pause_s, options.turn)
        pipe.parts.clear()
        times = measure(asks, texts[50:], pause_s, options.turn)
    pipe.close()
    loop.close()
    print(f"{machine()}, onnxruntime {version('onnxruntime')}, {options.model.name}, {options.threads} threads, ms")
    direct = statistics.median(times["direct"])
    for name, values in times.items():
        print(f"{name}: {percentiles(values)}, p50 - direct {statistics.median(values) - direct:.3f}")
    parts = {name: round(statistics.median(each[name] for each in pipe.parts), 3) for name in pipe.parts[0]}
    print(f"the worker's own timing_ms, medians: {parts}")


if __name__ == "__main__":
    main()
