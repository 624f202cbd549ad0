"""Measure the worker by itself and against the runtime; `tests.benchmarks.compare` has what others offer."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import measures
from tests.benchmarks.bulk import bulk
from tests.benchmarks.contestants import contestants, plain_tokenizer
from tests.benchmarks.corpus import PROFILES, docstring_corpus, read_corpus


def main() -> None:
    options = parse_arguments()
    texts = load_texts(options)
    short = next(iter(texts.values()))
    only = set(options.only.split(",")) if options.only else None
    results: dict[str, Any] = {
        "machine": measures.machine(),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "rounds": options.rounds,
    }

    def wanted(name: str) -> bool:
        return only is None or name in only

    if wanted("throughput"):
        makers = contestants()
        for profile, corpus in texts.items():
            say(f"throughput, {profile}: {len(corpus)} texts, {options.rounds} rounds")
            results[f"throughput {profile}"] = measures.throughput(makers, corpus, options.rounds)
    steps: dict[str, Callable[[], Any]] = {
        "latency": lambda: measures.single_latency(short, options.singles),
        "concurrency": lambda: measures.concurrency(short[:1000], options.rounds),
        "embed": lambda: bulk(rows_of(options), options.rounds),
        "load": lambda: measures.latency_under_load(short, short[0]),
        "longest": lambda: measures.longest_texts(short[0]),
        "start": lambda: measures.start_up(2 * options.rounds + 1),
        "memory": lambda: measures.memory(
            texts.get("mixed", list(texts.values())[-1]), first=10_000, then=options.memory_texts
        ),
        "idle": lambda: measures.idle_cpu(10),
    }
    for name, step in steps.items():
        if name in ("memory", "idle") and sys.platform != "linux":
            say(f"{name}: left out, it is read from /proc")
        elif wanted(name):
            say(name)
            results[name] = step()
    write(results, options.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a file of texts, one a line")
    parser.add_argument("--texts", type=int, default=1024, help="texts of each built-in profile (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the corpus of `embed` (10,000)")
    parser.add_argument("--singles", type=int, default=300, help="texts of the latency measure (300)")
    parser.add_argument("--memory-texts", type=int, default=10_000, help="texts after the first 10,000 (10,000)")
    parser.add_argument("--only", help="some of throughput,latency,concurrency,embed,load,longest,start,memory,idle")
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="folder of the results")
    return parser.parse_args()


def load_texts(options: argparse.Namespace) -> dict[str, list[str]]:
    if options.corpus:
        return {file.stem: read_corpus(file) for file in options.corpus}
    tokenizer = plain_tokenizer()
    return {profile: docstring_corpus(profile, options.texts, tokenizer) for profile in PROFILES}


def rows_of(options: argparse.Namespace) -> list[str]:
    """Return a corpus that is long beside the start of what embeds it."""
    if options.corpus:
        return read_corpus(options.corpus[0])
    return docstring_corpus("short", options.rows, plain_tokenizer())


def say(what: str) -> None:
    print(f"… {what}", flush=True)


def write(results: dict[str, Any], folder: Path) -> None:
    """Leave the figures as JSON and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    table = markdown(results)
    (folder / "results.md").write_text(table, "utf-8")
    print(f"\n{table}\nwritten to {folder}/")


def markdown(results: dict[str, Any]) -> str:
    head = (results[key] for key in ("machine", "python", "onnxruntime", "rounds"))
    lines = ["{}, Python {}, onnxruntime {}, medians of {} interleaved rounds".format(*head), ""]
    for key, value in results.items():
        if key.startswith("throughput "):
            lines += [f"| {key.removeprefix('throughput ')} | texts/s | worker ÷ it |", "|---|---|---|"]
            lines += [f"| {row['name']} | {row['texts_per_s']:.0f} | {row['vs_worker']:.2f} |" for row in value]
            lines.append("")
        elif isinstance(value, dict):
            lines += [f"{key}: `{json.dumps(value)}`", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
