"""Equal texts that wait together: `python -m tests.benchmarks.duplicates`.

Two workers take turns with the same texts, one of which computes every text by itself: without equal texts, what it
costs to look for them is told, and with a share of repetitions what sharing gains.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time

import numpy as np

from tests.benchmarks.contestants import Worker, plain_tokenizer
from tests.benchmarks.corpus import docstring_corpus
from tests.benchmarks.measures import machine

_WITHOUT = """
from embed_worker.serving import work
work.may_share = lambda task: False
from embed_worker.__main__ import main
main()
"""


def repeated(texts: list[str], share: float, seed: int = 1) -> list[str]:
    """Replace a share of texts by others of them, in an order without pattern."""
    choice = random.Random(seed)
    distinct = texts[: round(len(texts) * (1 - share))]
    found = distinct + choice.choices(distinct, k=len(texts) - len(distinct))
    choice.shuffle(found)
    return found


def ratios(sharing: Worker, plain: Worker, texts: list[str], rounds: int) -> list[float]:
    """Return the speed of the first worker over that of the second, for each of so many pairs of runs."""
    found = []
    for number in range(rounds):
        seconds = {}
        for worker in random.Random(number).sample((sharing, plain), 2):
            started = time.perf_counter()
            worker.embed(texts)
            seconds[worker] = time.perf_counter() - started
        found.append(seconds[plain] / seconds[sharing])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shares", default="0,0.3", help="of texts that are repeated (0,0.3)")
    options = parser.parse_args()
    texts = docstring_corpus("short", options.texts, plain_tokenizer())
    print(f"{machine()}: speed with sharing ÷ without, {options.rounds} pairs of {options.texts} texts")
    sharing, plain = Worker(), Worker(command=(sys.executable, "-c", _WITHOUT))
    try:
        for share in map(float, options.shares.split(",")):
            found = ratios(sharing, plain, repeated(texts, share), options.rounds)
            quartiles = ", ".join(f"{value:.3f}" for value in np.percentile(found, (25, 75)))
            print(f"{share:.0%} repeated: median {statistics.median(found):.3f}, quartiles {quartiles}", flush=True)
    finally:
        sharing.close()
        plain.close()


if __name__ == "__main__":
    main()
