"""What an accelerator does on this machine, bucket by bucket, in one block that can be pasted into a report.

Two workers answer the same texts in turns, one with the provider and one on the CPU: what is told is what a host has.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embed_worker import __version__, protocol
from embed_worker.inference.ort import runtime_version
from embed_worker.inference.pooling import cosine_distances
from embed_worker.tools.quality import Embedded

_TIMED_RUNS = 20
_PROOF_LIMIT_S = 300.0
_POLL_S = 0.5
_WORD = "rain"


class Asked(Protocol):
    """A worker as this report needs it: `WorkerProcess`, or what stands for it."""

    def ask(self, request: protocol.Request) -> dict[str, Any]:
        """Put a question and return the members of its answer."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed some texts in one request."""

    def time_s(self, texts: Sequence[str]) -> float:
        """Measure a request, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketReport:
    """What was found of one bucket; times in ms, of requests that fill it.

    Attributes:
        found: What the worker's `info` says of the bucket.
        cosine: The smallest between the two workers' vectors.
        provider_ms, cpu_ms: 50th and 95th percentiles.
    """

    batch: int
    length: int
    found: Mapping[str, Any]
    cosine: float
    provider_ms: tuple[float, float]
    cpu_ms: tuple[float, float]


def measure_buckets(
    accelerated: Asked,
    cpu: Asked,
    buckets: Sequence[tuple[int, int]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[BucketReport]:
    """Fill each bucket with texts, wait for its proof, and time both workers in turns.

    Args:
        accelerated: With the provider.
        cpu: With the same model on the CPU.
        buckets: Texts and tokens of each.
        clock: Seconds, monotonic.
        sleep: Waits for so many seconds.

    Raises:
        WorkerError: A worker could not serve.
    """
    for batch, length in buckets:
        texts = [text_of(accelerated, length)] * batch
        accelerated.embed(texts)  # asks for the bucket
        found = _verdict_on(accelerated, batch, length, clock, sleep)
        cosine = float(1 - cosine_distances(accelerated.embed(texts).vectors, cpu.embed(texts).vectors).max())
        times = np.array([(accelerated.time_s(texts), cpu.time_s(texts)) for _ in range(_TIMED_RUNS)]) * 1e3
        (p50, cpu_p50), (p95, cpu_p95) = np.percentile(times, (50, 95), axis=0).tolist()
        yield BucketReport(
            batch=batch,
            length=length,
            found=found,
            cosine=cosine,
            provider_ms=(p50, p95),
            cpu_ms=(cpu_p50, cpu_p95),
        )


def text_of(worker: Asked, tokens: int) -> str:
    """Make a text of at most so many tokens, and nearly as many, whatever the tokenizer makes of a word."""
    words = 16
    per_word = max(1.0, (worker.embed([" ".join([_WORD] * words)]).tokens[0] - 2) / words)
    return " ".join([_WORD] * max(1, int((tokens - 4) / per_word)))


def _verdict_on(
    worker: Asked, batch: int, length: int, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Mapping[str, Any]:
    """Wait until a bucket has its verdict, at most five minutes; empty where the provider has no buckets."""
    until_s = clock() + _PROOF_LIMIT_S
    while True:
        provider = worker.ask(protocol.Info())["provider"]
        buckets = [
            found for found in provider.get("buckets", []) if (found["batch"], found["length"]) == (batch, length)
        ]
        if not buckets or buckets[0]["state"] != "proving" or clock() > until_s:
            return buckets[0] if buckets else {}
        sleep(_POLL_S)


def block(info: Mapping[str, Any], reports: Sequence[BucketReport], rss_bytes: tuple[int, int]) -> str:
    """Write everything as one block of text.

    Args:
        info: Of the worker with the provider.
        reports: Of its buckets.
        rss_bytes: Resident memory of the worker with the provider, and of the one on the CPU.
    """
    provider, machine = info["provider"], info["machine"]
    cache = provider.get("cache")
    lines = [
        "```",
        f"embed-bridge {__version__}, onnxruntime {runtime_version()}, Python {platform.python_version()}",
        f"{platform.platform()}, {machine['architecture']}, {info['threads']['value']} threads",
        f"model {info['model']}, fingerprint {info['fingerprint']}, precision {info['precision']}",
        f"provider {provider['chosen']}, asked for {provider['asked']}: {provider['reason']}",
        f"units {provider.get('units')}, precision {provider.get('precision')}, cache {_size_of(cache)}",
        "",
        "batch length state    partitions nodes    hit   build ms  cosine      P50/P95 ms      CPU P50/P95 ms  ratio",
        *(_row(report) for report in reports),
        "",
        f"resident: {rss_bytes[0] / 1e6:.0f} MB with it, {rss_bytes[1] / 1e6:.0f} MB on the CPU alone",
        *(f"{report.batch}x{report.length}: {report.found.get('reason')}" for report in reports),
        "```",
    ]
    return "\n".join(lines)


def _row(report: BucketReport) -> str:
    found = report.found
    nodes = f"{found.get('coreml_nodes')}/{found.get('nodes')}"
    build = "–" if found.get("build_ms") is None else f"{found['build_ms']:.0f}"
    times = [f"{p50:.2f}/{p95:.2f}" for p50, p95 in (report.provider_ms, report.cpu_ms)]
    return (
        f"{report.batch:5} {report.length:6} {found.get('state', '–')!s:<8} {found.get('partitions')!s:>10} {nodes:<8} "
        f"{found.get('cache_hit')!s:<5} {build:>8}  {report.cosine:.8f}  {times[0]:<15} {times[1]:<15} "
        f"{report.provider_ms[0] / report.cpu_ms[0]:.2f}"
    ).rstrip()


def _size_of(cache: object) -> str:
    """Return how much a cache holds, and not where: the path has a user's name in it."""
    if not isinstance(cache, str):
        return "none"
    files = [file for file in Path(cache).rglob("*") if file.is_file()]
    return f"of {sum(file.stat().st_size for file in files) / 1e6:.0f} MB in {len(files)} files"
