"""How well cosines of vectors follow the similarity that people saw: `python -m tests.benchmarks.sts FILE …`.

FILE is a CSV with the columns sentence1, sentence2 and score, such as the test set of STSbenchmark (1,379 pairs); it is
not part of this repository. Each variant is a worker, asked through its pipe. Printed are Spearman × 100, as published
for models, the difference to the first variant, the smallest and the mean cosine to its vectors, and texts a second,
the median of rounds in turns, with the ratio to the first.
"""

from __future__ import annotations

import argparse
import csv
import random
import shlex
import statistics
import time
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.contestants import MODEL, Vectors, Worker
from tests.benchmarks.measures import machine

Floats: TypeAlias = NDArray[np.float64]


def read_pairs(file: Path) -> tuple[list[str], list[str], Floats]:
    """Read the first sentences, the second ones, and the scores."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return (
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        np.array([float(row["score"]) for row in rows]),
    )


def ranks(values: Floats) -> Floats:
    """Rank values from 1; equal ones share the mean of their places."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum()
    return (last - (sizes - 1) / 2)[group]


def spearman(a: Floats, b: Floats) -> float:
    """Return the correlation of ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def cosines(a: Vectors, b: Vectors) -> Floats:
    """Return the cosine of each pair of rows."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    products = (wide_a * wide_b).sum(axis=1)
    found: Floats = products / np.linalg.norm(wide_a, axis=1) / np.linalg.norm(wide_b, axis=1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL, help="the first variant's folder")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'[FOLDER] OPTIONS…'",
        help="a further worker: options, after another folder where it has one, such as '--provider openvino'",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    first, second, scores = read_pairs(options.file)
    texts = first + second
    workers: dict[str, Worker] = {}
    for variant in ["", *options.variant]:
        words = shlex.split(variant)
        folder = options.model if not words or words[0].startswith("-") else Path(words.pop(0))
        workers[variant or options.model.name] = Worker(*words, model=folder.resolve())
    print(f"{machine()}: {len(scores)} pairs")
    vectors: dict[str, Vectors] = {}
    speeds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for number in range(options.rounds):
            for name in random.Random(number).sample(list(workers), len(workers)):
                started = time.perf_counter()
                vectors[name] = workers[name].embed(texts)
                speeds[name].append(len(texts) / (time.perf_counter() - started))
    finally:
        for worker in workers.values():
            worker.close()
    of_first, speed_of_first = next(iter(workers)), statistics.median(next(iter(speeds.values())))
    base = 0.0
    for name in workers:
        found = 100 * spearman(cosines(vectors[name][: len(first)], vectors[name][len(first) :]), scores)
        base = base or found
        near = cosines(vectors[name], vectors[of_first])
        speed = statistics.median(speeds[name])
        print(
            f"{name}: {found:.2f} ({found - base:+.2f}), cosine min {near.min():.4f} mean {near.mean():.4f}, "
            f"{speed:.0f} texts/s, {speed / speed_of_first:.2f} of the first"
        )


if __name__ == "__main__":
    main()
