"""`embed-worker check`: is a model what it should be, and fast enough? A real worker process answers.

Quality is judged by reference vectors: those of `--references`, the folder's own `references.json`, or those that
embed-bridge has of a known model. Without any, figures are printed, and nothing is judged but whether vectors can be
used and have the length that they should. Every figure of speed is the best of three rounds, because a busy machine can
only make it worse. Only the default model has targets for speed.
Exit status: 0 all gates passed, 1 a gate failed, 2 wrong usage, 3 there is no reference to judge by, 75 no memory or no
threads for it now, 78 the model or the configuration cannot be used.

`--quick` judges nothing: it is for what starts a service, and asks whether these options give a worker that embeds.
It loads the model, proves the provider, embeds one text, and ends with 0, or with one sentence and 1, 2, 75 or 78.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from embed_worker import protocol
from embed_worker.arguments.running import add_running_arguments, running_arguments
from embed_worker.config import DEFAULT_MODEL, path_argument
from embed_worker.errors import ModelError
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.known_models import Quality, find_known_model
from embed_worker.model_files.plan import ModelPlan
from embed_worker.protocol import ErrorCode, ExitCode
from embed_worker.tools.model_options import add_model_arguments, model_folder, model_options
from embed_worker.tools.progress import shown
from embed_worker.tools.quality import Gate, judge_pairs, judge_references
from embed_worker.tools.references import References, ReferencesError, find_references
from embed_worker.tools.report import refuse, show
from embed_worker.tools.texts import SIMILAR_PAIRS
from embed_worker.tools.worker_process import WorkerError, WorkerProcess, worker_arguments

_FAILED = 1
_NOT_JUDGED = 3

_ROUNDS = 3
_SINGLES = 100
_BATCHES = 5
_ROUND_S = 5.0  # a slow model takes fewer singles in it, and at least some
_MIN_SINGLES = 20
_BULK_TEXTS = 128
_SHORT_TEXTS = [text for pair in SIMILAR_PAIRS for text in pair]


class SpeedVerdict(StrEnum):
    """What the 95th percentile of a short text alone amounts to for the default model on two cores."""

    EXCELLENT = "excellent"
    TARGET = "target"
    CLOSE = "close"
    MISS = "miss"

    @classmethod
    def of(cls, p95_ms: float) -> SpeedVerdict:
        """Judge milliseconds."""
        limits = ((15.0, cls.EXCELLENT), (20.0, cls.TARGET), (30.0, cls.CLOSE))
        return next((verdict for limit, verdict in limits if p95_ms < limit), cls.MISS)


# What the default model must be on two cores, best of the rounds.
_SPEED_LIMITS = (("single_p95_ms", "<", 20.0), ("batch_8_ms", "<", 50.0), ("batch_32_ms", "<", 150.0))
_MIN_TEXTS_PER_S = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Times in ms from the first byte of a request to the last of its answer, of texts of about ten tokens.

    Attributes:
        single_p50_ms, single_p95_ms, single_p99_ms: Of requests of one text, in the best round.
        batch_8_ms, batch_32_ms: Of requests of so many texts: the median of a round, in the best round.
        texts_per_s: In a request of 128 texts, in the best round.
        rounds: The percentiles and medians of each round, in its order: what noise there was.
    """

    single_p50_ms: float
    single_p95_ms: float
    single_p99_ms: float
    batch_8_ms: float
    batch_32_ms: float
    texts_per_s: float
    rounds: tuple[dict[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check found; the `--json` output has these names.

    Attributes:
        is_known: Whether the table of known models has limits for its pairs.
        references: Where they are from; None where there are none.
        block: What CoreML did in each bucket, to be pasted into a report; None for other providers.
        verdict: Of the default model's speed.
        passed: None where there is nothing to judge by.
    """

    model: str
    graph: str
    fingerprint: str
    dimension: int
    precision: str
    tolerance: float | None
    one_by_one: str | None
    provider: dict[str, Any]
    cores: int
    is_known: bool
    references: str | None
    gates: tuple[Gate, ...]
    speed: Speed | None
    block: str | None
    verdict: SpeedVerdict | None
    passed: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickReport:
    """What `--quick` found of a model that serves; the `--json` output has these names."""

    model: str
    folder: str
    fingerprint: str
    dimension: int
    precision: str
    provider: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `check`."""
    add_model_arguments(parser)
    add_running_arguments(parser)
    parser.add_argument(
        "--references",
        type=path_argument,
        metavar="FILE",
        help="judge by this file: JSON with `texts` and their `embeddings` by sentence-transformers",
    )
    parser.add_argument(
        "--quality-only", "--no-latency", dest="is_timed", action="store_false", help="do not measure the speed"
    )
    parser.add_argument(
        "--quick", action="store_true", help="load the model, embed one text, judge nothing: would a worker serve?"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Check a model and report on standard output; return the exit status."""
    try:
        if args.quick:
            served = check_quickly(args)
            show([json.dumps(asdict(served)) if args.json else _sentence(served)])
            return ExitCode.OK
        report = check(args)
    except (ModelError, ReferencesError) as error:
        return refuse("check", error, ExitCode.UNUSABLE_MODEL)
    except WorkerError as error:
        is_model_wrong = error.code == ErrorCode.NON_FINITE_EMBEDDING
        return refuse("check", error, _FAILED if is_model_wrong else error.exit_status)
    show([json.dumps(asdict(report))] if args.json else _readable(report))
    return {True: ExitCode.OK, False: _FAILED, None: _NOT_JUDGED}[report.passed]


def check_quickly(args: argparse.Namespace) -> QuickReport:
    """Start a worker with the model, and embed one text.

    Raises:
        ModelError: The folder is not there or cannot be used.
        WorkerError: The worker could not serve.
    """
    folder = model_folder(args)
    read_model_folder(folder, model_options(args))  # what is wrong with it is told by this command, not by its child
    with WorkerProcess([*worker_arguments(args, folder), *running_arguments(args)]) as worker:
        embedded = worker.embed([_SHORT_TEXTS[0]])
    return QuickReport(
        model=worker.info["model"],
        folder=str(folder),
        fingerprint=worker.info["fingerprint"],
        dimension=embedded.vectors.shape[1],
        precision=worker.info["precision"],
        provider=worker.info["provider"],
    )


def _sentence(served: QuickReport) -> str:
    provider = served.provider
    runs = f"{provider['chosen']}, asked for {provider['asked']}: {provider['reason']}"
    return f"{served.model}: serves, {served.precision}, dimension {served.dimension}, {served.fingerprint}; {runs}"


def check(args: argparse.Namespace) -> CheckReport:
    """Start a worker with the model, and judge it.

    Raises:
        ModelError: The folder is not there or cannot be used.
        ReferencesError: The reference vectors cannot be read.
        WorkerError: The worker could not serve.
    """
    folder = model_folder(args)
    plan = read_model_folder(folder, model_options(args))
    known = find_known_model(plan.name)
    references = References.read(args.references) if args.references else find_references(plan.name, folder)
    quality = None if known is None else known.quality
    with WorkerProcess([*worker_arguments(args, folder), *running_arguments(args)]) as worker:
        gates = judge_quality(worker, quality, references)
        speed = measure_speed(worker) if args.is_timed else None
        block = _provider_block(worker, plan, worker_arguments(args, folder)) if args.is_timed else None
        info = worker.ask(protocol.Info())  # again: what a provider tells of itself grows with its work
    has_targets = known is not None and known.name == DEFAULT_MODEL
    if speed is not None and has_targets:
        gates += judge_speed(speed)
    judged = [gate.passed for gate in gates if gate.passed is not None]
    return CheckReport(
        model=plan.name,
        graph=plan.graph.relative_to(folder).as_posix(),
        fingerprint=info["fingerprint"],
        dimension=info["dimension"],
        precision=info["precision"],
        tolerance=info["tolerance"],
        one_by_one=info["one_by_one"],
        provider=info["provider"],
        cores=info["threads"]["value"],
        is_known=quality is not None,
        references=None if references is None else references.source,
        gates=tuple(gates),
        speed=speed,
        block=block,
        verdict=SpeedVerdict.of(speed.single_p95_ms) if speed is not None and has_targets else None,
        passed=None if all(judged) and references is None else all(judged),
    )


def _provider_block(worker: WorkerProcess, plan: ModelPlan, arguments: list[str]) -> str | None:
    """Measure what CoreML does in each bucket that the model can need, against a worker on the CPU."""
    if "buckets" not in worker.info["provider"] or worker.info["provider"]["asked"] != "coreml":
        return None
    from embed_worker.accelerators.coreml.shapes import buckets_of
    from embed_worker.tools import provider_report

    with WorkerProcess([*arguments, "--provider", "cpu"]) as cpu:
        buckets = [(shape.batch, shape.length) for shape in buckets_of(plan.max_tokens)]
        reports = list(provider_report.measure_buckets(worker, cpu, buckets))
        rss = tuple(each.ask(protocol.Metrics())["metrics"]["rss_bytes"] for each in (worker, cpu))
    return provider_report.block(worker.ask(protocol.Info()), reports, (rss[0], rss[1]))


def judge_quality(worker: WorkerProcess, quality: Quality | None, references: References | None) -> list[Gate]:
    """Judge the vectors; one that is not finite or has no length ends the judgement.

    Args:
        worker: With the model.
        quality: What its pairs must come to; without references they are figures all the same.
        references: What its vectors must be.

    Raises:
        WorkerError: The worker could not serve.
    """
    try:
        gates = judge_pairs(worker.embed, None if references is None else quality, normalizes=worker.info["normalize"])
        if references is not None:
            gates += judge_references(worker.embed, references, worker.info)
    except WorkerError as error:
        if error.code != ErrorCode.NON_FINITE_EMBEDDING:
            raise
        return [Gate(name="unusable_vectors", measured=None, comparison="<", limit=1, passed=False, note=str(error))]
    return [Gate.of("unusable_vectors", 0, "<", 1), *gates]


def judge_speed(speed: Speed) -> list[Gate]:
    """Hold the times against what the default model must be."""
    gates = [Gate.of(name, getattr(speed, name), comparison, limit) for name, comparison, limit in _SPEED_LIMITS]
    return [*gates, Gate.of("texts_per_s", speed.texts_per_s, ">", _MIN_TEXTS_PER_S)]


# Times --------------------------------------------------------------------------------------------------------------


def measure_speed(worker: WorkerProcess) -> Speed:
    """Measure in rounds, each of singles, batches of 8 and 32, and one of 128 texts, after a warm-up.

    Raises:
        WorkerError: The worker could not serve.
    """
    _, *rounds = (_measure_round(worker) for _ in shown(range(1 + _ROUNDS), "measuring", "round"))
    best = {name: min(measured[name] for measured in rounds) for name in rounds[0] if name.endswith("_ms")}
    texts_per_s = max(measured["texts_per_s"] for measured in rounds)
    return Speed(**best, texts_per_s=texts_per_s, rounds=tuple(rounds))


def _measure_round(worker: WorkerProcess) -> dict[str, float]:
    singles: list[float] = []
    while len(singles) < _SINGLES and (len(singles) < _MIN_SINGLES or sum(singles) < _ROUND_S):
        singles.append(worker.time_s(_texts(1, len(singles))))
    p50, p95, p99 = np.percentile(singles, (50, 95, 99)) * 1e3
    measured = {"single_p50_ms": p50, "single_p95_ms": p95, "single_p99_ms": p99}
    for size in (8, 32):
        times = [worker.time_s(_texts(size, start)) for start in range(_BATCHES)]
        measured[f"batch_{size}_ms"] = statistics.median(times) * 1e3
    measured["texts_per_s"] = _BULK_TEXTS / worker.time_s(_texts(_BULK_TEXTS, 0))
    return {name: round(float(value), 3) for name, value in measured.items()}


def _texts(count: int, start: int) -> list[str]:
    return [_SHORT_TEXTS[place % len(_SHORT_TEXTS)] for place in range(start, start + count)]


# The report ---------------------------------------------------------------------------------------------------------


def _readable(report: CheckReport) -> list[str]:
    provider = dict(report.provider)
    asked, chosen, reason = (provider.pop(name) for name in ("asked", "chosen", "reason"))
    lines = [
        f"{report.model}: {report.graph}, {report.precision}, dimension {report.dimension}, {report.fingerprint}",
        f"provider: {chosen}, asked for {asked}: {reason}; {report.cores} cores",
    ]
    if report.one_by_one is not None:
        lines.append(f"each text runs by itself: {report.one_by_one}")
    for name, value in provider.items():
        members = value if isinstance(value, list) else [value]
        lines += [f"  {name}: {member if isinstance(member, str) else json.dumps(member)}" for member in members]
    lines.append(f"references: {report.references or _NO_REFERENCES}")
    rows = [("gate", "measured", "limit", "")]
    rows += [_gate_row(gate) for gate in report.gates]
    if report.speed is not None:
        gated = {gate.name for gate in report.gates}
        rows += [(name, f"{value:g}", "", "") for name, value in _speed_figures(report.speed) if name not in gated]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines += ["", *("  ".join(_aligned(row, widths)).rstrip() for row in rows), ""]
    speed = f"; {report.verdict} for one short text (P95)" if report.verdict is not None else ""
    block = [*report.block.split("\n"), ""] if report.block is not None else []
    return [*lines, *block, f"{_conclusion(report)}{speed}"]


_NO_REFERENCES = "none are stored for it, its folder has no references.json, and no --references is given"


def _conclusion(report: CheckReport) -> str:
    failed = [gate.name for gate in report.gates if gate.passed is False]
    if failed:
        return f"FAILED: {len(failed)} of {len(report.gates)} gates failed: {', '.join(failed)}"
    if report.passed is None:
        return "not judged: there is no reference to judge by; `make reference` or sentence-transformers makes one"
    return "passed: all gates passed"


def _speed_figures(speed: Speed) -> list[tuple[str, float]]:
    return [(name, value) for name, value in asdict(speed).items() if name != "rounds"]


def _gate_row(gate: Gate) -> tuple[str, str, str, str]:
    passed = {True: "pass", False: f"FAIL {gate.note}".rstrip(), None: ""}[gate.passed]
    limit = "" if gate.limit is None else f"{gate.comparison} {_figure(gate.limit)}"
    return gate.name, _figure(gate.measured), limit, passed


def _figure(value: float | str | None) -> str:
    match value:
        case None:
            return "–"
        case str():
            return value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…"
        case _:
            return f"{value:.7g}"


_MAX_SHOWN = 40  # characters of a prompt


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    name, measured, limit, passed = row
    return [name.ljust(widths[0]), measured.rjust(widths[1]), limit.ljust(widths[2]), passed]
