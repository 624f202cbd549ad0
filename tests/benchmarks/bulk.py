"""`embed-worker embed` beside the same rows through the pipe: what reading, parts and the output cost.

Each contestant is a process that starts a worker, embeds all rows and ends: what they have in common is in all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bridge_client.bulk.arrow_parts import ArrowParts
from bridge_client.bulk.parts import Form, JsonlParts, NpyParts, Output, Rows
from tests.benchmarks.contestants import ROOT

_LINE_ROWS = 64
# The client alone: what a program does that has the texts, and keeps nothing of the vectors.
_CLIENT = """
import sys
from bridge_client import EmbedClient
with open(sys.argv[1], encoding="utf-8") as lines, EmbedClient() as client:
    assert sum(1 for vector in client.embed_iter(line.rstrip("\\n") for line in lines)) > 0
"""


def bulk(texts: list[str], rounds: int) -> dict[str, Any]:
    """Measure rows per second of the command, of the client, and of lines into the worker, in interleaved rounds.

    Returns:
        `rows_per_s` and `cpu_s` (both median) of each; `vs_pipe` and `vs_client`: the command's speed ÷ theirs, as the
        median over the rounds, and `cpu_vs_pipe`, `cpu_vs_client` the same with processor time; `bytes_per_row` of the
        vectors on disk.
    """
    seconds: dict[str, list[float]] = {"command": [], "client": [], "pipe": []}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as folder:
        corpus, requests = Path(folder) / "corpus.txt", Path(folder) / "requests.jsonl"
        corpus.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        pieces = [texts[start : start + _LINE_ROWS] for start in range(0, len(texts), _LINE_ROWS)]
        lines = (json.dumps({"inputs": piece, "encoding_format": "base64"}) for piece in pieces)
        requests.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        for number in range(rounds):
            worker = [sys.executable, "-m", "embed_worker"]
            commands = {
                "command": [*worker, "embed", str(corpus), "-o", str(Path(folder) / f"{number}.npy"), "-q"],
                "client": [sys.executable, "-c", _CLIENT, str(corpus)],
                "pipe": worker,
            }
            names = list(commands)
            for name in names[number % 3 :] + names[: number % 3]:
                before = os.times()
                begun = time.perf_counter()
                with requests.open("rb") as given:
                    subprocess.run(commands[name], cwd=ROOT, check=True, stdin=given, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - begun)
                after = os.times()
                cpu[name].append(
                    after.children_user + after.children_system - before.children_user - before.children_system
                )
        sizes = _bytes_per_row(np.load(Path(folder) / "0.npy"), Path(folder))
    return {
        "rows": len(texts),
        "rounds": rounds,
        "bytes_per_row": sizes,
        "rows_per_s": {name: round(len(texts) / statistics.median(times), 1) for name, times in seconds.items()},
        "cpu_s": {name: round(statistics.median(times), 2) for name, times in cpu.items()},
        **{f"vs_{name}": _ratio(seconds[name], seconds["command"]) for name in ("pipe", "client")},
        **{f"cpu_vs_{name}": _ratio(cpu[name], cpu["command"]) for name in ("pipe", "client")},
    }


def _bytes_per_row(vectors: Any, folder: Path) -> dict[str, float]:
    """Write the vectors in every form that `embed` has, and say what a row takes."""
    sizes = {}
    for dtype in ("float32", "float16"):
        rows = Rows(vectors=vectors.astype(dtype), has_vector=np.ones(len(vectors), np.bool_), columns={})
        forms: dict[str, Form] = {"npy": NpyParts(), "jsonl": JsonlParts()}
        for output in (Output.ARROW, Output.PARQUET):
            forms[output] = ArrowParts(pa.schema([]), {}, output, is_folder=True)
        for name, form in forms.items():
            form.write(rows, folder / "part")
            sizes[f"{name} {dtype}"] = round((folder / "part").stat().st_size / len(vectors), 1)
    return sizes


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return round(statistics.median(their / our for their, our in zip(theirs, ours, strict=True)), 3)
