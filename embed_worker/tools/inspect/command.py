"""What the command does; its options and how it ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed_worker import machine
from embed_worker.config import RuntimeOptions, Verify
from embed_worker.errors import ModelError, OutOfMemoryError
from embed_worker.inference.engine import Engine, LoadedModel
from embed_worker.inference.graph_io import GraphIo
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.loading import load_model
from embed_worker.model_files.damage import damage_of
from embed_worker.model_files.fingerprint import unlisted_files
from embed_worker.model_files.graph_summary import GraphSummary, SummaryError, summarize
from embed_worker.model_files.known_models import find_known_model
from embed_worker.model_files.layout import read_json
from embed_worker.model_files.manifest import Manifest, ManifestError, verify
from embed_worker.model_files.onnx_outline import HIDDEN_OUTPUTS, HIDDEN_STATE, SENTENCE_OUTPUT
from embed_worker.model_files.plan import Decision, ModelPlan
from embed_worker.protocol import ExitCode
from embed_worker.tools.inspect.model_card import licence_of
from embed_worker.tools.model_options import add_model_arguments, model_folder, model_options
from embed_worker.tools.report import refuse, show

FORMAT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "--provider",
        choices=["coreml", "mlx"],
        help="also tell whether this provider could run the model; no Mac is needed",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    """Inspect a model and report on standard output; return the exit status."""
    try:
        # As a worker does it, on the CPU: what is refused there must not get a clean plan here.
        logging.getLogger("embed_worker").addHandler(logging.NullHandler())  # the report has the same warnings
        model = load_model(model_folder(args), model_options(args), RuntimeOptions(provider="cpu"), threads=1)
        report = describe(model)
    except (ModelError, ManifestError) as error:
        return refuse("inspect", error, ExitCode.UNUSABLE_MODEL)
    except OutOfMemoryError as error:
        return refuse("inspect", error, ExitCode.TRY_AGAIN)
    if args.provider is not None:
        report["forecast"] = _forecast(args.provider, model.plan)
    show([json.dumps(report)] if args.json else _lines(report))
    return 0


def _forecast(provider: str, plan: ModelPlan) -> dict[str, Any]:
    if provider == "mlx":
        from embed_worker.accelerators.mlx import backend as mlx_backend

        return mlx_backend.forecast_model(plan)
    from embed_worker.tools.inspect import coreml_forecast

    return coreml_forecast.forecast_model(plan)


def describe(model: LoadedModel) -> dict[str, Any]:
    """Describe a model, with the names of the JSON form.

    Raises:
        ModelError: A file that its plan names cannot be used.
        ManifestError: The folder's manifest is not one.
    """
    plan, engine = model.plan, model.engine
    manifest = Manifest.read(plan.folder)
    verified = {} if manifest is None else verify(plan.folder, manifest, Verify.AUTO, allow_links=plan.allow_links)
    unlisted = [] if manifest is None else unlisted_files(plan, verified)
    known = find_known_model(plan.name)
    decisions, warnings = list(plan.decisions), [*plan.warnings, *map(_unlisted, unlisted)]
    graph = None if plan.is_static else _summary(plan, warnings)
    if graph is not None:
        warnings += _graph_warnings(graph, engine.tokenizer.vocabulary)
    if graph is not None and isinstance(engine.backend, OnnxBackend):
        decisions += _graph_decisions(graph, plan, engine.backend.graph_io)
    decisions += _run_decisions(engine)
    if engine.one_by_one is not None:
        warnings.append(f"each text runs by itself, and many take longer: {engine.one_by_one}")
    warnings += _impostors(plan.folder)
    return {
        "format": FORMAT,
        "name": plan.name,
        "folder": str(plan.folder),
        "fingerprint": model.fingerprint,
        "source": None if manifest is None else manifest.source,
        "license": _licence(plan.folder, manifest),
        "is_verified_at_load": manifest is not None and not unlisted,
        "known_as": None if known is None else known.repository,
        "graph_file": plan.graph.relative_to(plan.folder).as_posix(),
        "other_graphs": _other_graphs(plan),
        "dimension": model.dimension,
        "precision": engine.backend.precision,
        "batch_invariant": engine.is_batch_invariant,
        "one_by_one": engine.one_by_one,
        "tolerance": engine.backend.tolerance,
        "pooling": [str(mode) for mode in plan.pooling],
        "include_prompt": plan.include_prompt,
        "dense": [layer.activation for layer in plan.dense],
        "normalize": plan.normalize,
        "max_tokens": plan.max_tokens,
        "prompts": dict(plan.prompts),
        "default_prompt_name": plan.default_prompt_name,
        "vocabulary": engine.tokenizer.vocabulary,
        "ignored_of_tokenizer_json": _ignored(plan),
        "graph": None if graph is None else asdict(graph),
        "decisions": [asdict(decision) for decision in decisions],
        "warnings": warnings,
    }


def _licence(folder: Path, manifest: Manifest | None) -> str | None:
    stated = None if manifest is None else manifest.license
    return licence_of(folder) or stated if stated in (None, "not stated") else stated


def _summary(plan: ModelPlan, warnings: list[str]) -> GraphSummary | None:
    try:
        return summarize(plan.graph, sessions=min(2, machine.choose_threads(None, os.environ).value))
    except SummaryError as error:
        warnings.append(f"nothing is told of the graph: {error}")
        return None


def _unlisted(name: str) -> str:
    return f"{name} is not in manifest.json: nothing says whether it is what it was, and --verify always refuses it"


def _impostors(folder: Path) -> Iterator[str]:
    """Yield what is wrong with files that nobody reads here, and that somebody else might read."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.stat().st_size and (damage := damage_of(file)) is not None:
            yield f"{file.relative_to(folder).as_posix()} is {damage}"


def _other_graphs(plan: ModelPlan) -> list[str]:
    found = (path for path in plan.folder.rglob("*.onnx") if path != plan.graph)
    return sorted(path.relative_to(plan.folder).as_posix() for path in found)


def _ignored(plan: ModelPlan) -> dict[str, Any]:
    """Find what `tokenizer.json` was saved with and is reset: it would pad texts, and cut those of a graph."""
    document = read_json(plan.tokenizer_file) if plan.tokenizer_file.suffix == ".json" else {}
    reset = ("padding",) if plan.is_static else ("truncation", "padding")
    return {key: document[key] for key in reset if document.get(key) is not None}


def _graph_decisions(graph: GraphSummary, plan: ModelPlan, graph_io: GraphIo) -> Iterator[Decision]:
    """Yield what was taken of the graph: as the runtime sees it, which knows shapes that the file leaves out."""
    output = graph_io.output
    if plan.onnx_output is not None:
        reason = "--onnx-output"
    elif graph_io.is_end_to_end:
        reason = "a vector of the whole text"
    elif output == HIDDEN_STATE:
        reason = "the hidden state that is pooled"
    else:
        reason = "a usual name" if output in HIDDEN_OUTPUTS else "the only output of tokens in floats"
    yield Decision("output", output, reason)
    if graph_io.is_end_to_end:
        yield Decision("vectors", "the graph's own", f"its output {output}: pooling and Dense modules are inside")
    elif plan.onnx_output is None and any(tensor.name == SENTENCE_OUTPUT for tensor in graph.outputs):
        yield Decision(
            "vectors", "of tokens", f"its output {output}: the folder's own modules come before {SENTENCE_OUTPUT}"
        )
    if plan.padding_position is not None and any(tensor.name == "position_ids" for tensor in graph.inputs):
        first = plan.padding_position + 1
        yield Decision("position_ids", f"from {first}", "config.json: the architecture begins behind the padding's own")


def _run_decisions(engine: Engine) -> Iterator[Decision]:
    """Yield how texts share a run, where the warm-up has found that they cannot do it as usual."""
    if engine.one_by_one is not None:
        yield Decision("runs", "one text at a time", f"the warm-up: {engine.one_by_one}")
    if engine.pad_left != engine.plan.pad_left:
        yield Decision("padding", "right", "the warm-up: on the left the graph gives other vectors")


def _graph_warnings(graph: GraphSummary, vocabulary: int) -> Iterator[str]:
    if graph.table_rows is not None and vocabulary > graph.table_rows:
        yield f"the tokenizer has {vocabulary} tokens, the graph a table of {graph.table_rows}: some texts would fail"
    if any(operator.startswith("DynamicQuantize") for operator in graph.operators):
        yield "activations are quantised by batch: vectors depend on their neighbours; --batch-invariant prevents it"
    elif graph.quantization is not None:
        yield f"the weights are quantised to {graph.quantization}: vectors differ from those of the float graph"


# For people ---------------------------------------------------------------------------------------------------------


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report['name']}  ({report['folder']})"
    if report["source"] is not None:
        yield f"  from {report['source']}"
    if report["license"] is not None:
        yield f"  licence {report['license']}"
    if report["is_verified_at_load"]:
        verified = "verified at load"
    elif report["source"] is None:
        verified = "no manifest.json: files are not verified"
    else:
        verified = "verified at load, but for files that manifest.json does not list"
    yield f"  fingerprint {report['fingerprint']}, {verified}"
    yield ""
    yield from _table(
        ("decided", "is", "because of"),
        [(item["subject"], _short(item["value"]), item["source"]) for item in report["decisions"]],
    )
    for name, prompt in report["prompts"].items():
        yield f"  prompt {name:<12} {prompt!r}"
    if report["ignored_of_tokenizer_json"]:
        yield f"  tokenizer.json's own {' and '.join(report['ignored_of_tokenizer_json'])} are not used"
    if report["graph"] is not None:
        yield ""
        yield from _graph_lines(report["graph_file"], report["graph"])
    if report["other_graphs"]:
        yield f"  other graphs in the folder: {', '.join(report['other_graphs'])}"
    if "forecast" in report:
        yield ""
        yield from (f"  {line}" for line in report["forecast"]["sentences"])
    for warning in report["warnings"]:
        yield f"  ! {warning}"


def _graph_lines(file: str, graph: Mapping[str, Any]) -> Iterator[str]:
    domains = "".join(f", {domain} {version}" for domain, version in graph["domains"].items())
    made_by = f", made by {graph['producer']}" if graph["producer"] else ""
    yield f"  {file}: opset {graph['opset']}{domains}{made_by}"
    for kind in ("inputs", "outputs"):
        for tensor in _without_caches(graph[kind]):
            shape = ", ".join("?" if size is None else str(size) for size in tensor["shape"])
            yield f"    {kind[:-1]:<6} {tensor['name']} {tensor['type']} [{shape}]"
    counted = ", ".join(f"{count} {operator}" for operator, count in list(graph["operators"].items())[:8])
    yield f"    {sum(graph['operators'].values())} operators: {counted}{', …' if len(graph['operators']) > 8 else ''}"
    where = f", in {', '.join(graph['external_files'])}" if graph["external_files"] else ""
    yield f"    {graph['parameters'] / 1e6:.1f} million parameters, {graph['weight_bytes'] / 1e6:.1f} MB stored{where}"
    yield f"    about {graph['resident_bytes'] / 1e6:.0f} MB resident in an idle worker, by estimate"


def _without_caches(tensors: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out all but the first of a decoder's caches: there are two a layer, all alike."""
    is_told = False
    for tensor in tensors:
        is_cache = tensor["name"].startswith(("past_key_values", "present"))
        if not (is_cache and is_told):
            yield tensor
        is_told = is_told or is_cache


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    if isinstance(value, list):
        return " + ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
