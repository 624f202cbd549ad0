"""What CoreML would make of a model: of the graph in its folder, and of the dedicated one, bucket by bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_worker.accelerators.coreml.graph import FOLDER, GRAPH
from embed_worker.accelerators.coreml.graph_export import export_for_coreml
from embed_worker.accelerators.coreml.shapes import LENGTHS, buckets_of
from embed_worker.encoders.checkpoint import ExportError
from embed_worker.model_files.plan import ModelPlan
from embed_worker.tools.inspect.coreml_partitions import Forecast, ForecastError, bucket_overrides, forecast

_USUAL_LENGTH = 128
_EVIDENCE = (
    "evidence: these rules are those of the provider's own code, which was compiled on Linux and asked about 25,304 "
    "nodes (docs/apple-silicon.md); no Mac was asked: `embed-worker check --provider coreml` on one says what it does"
)


def forecast_model(plan: ModelPlan) -> dict[str, Any]:
    """Forecast a model: `own` is its graph in the usual bucket, `dedicated` the dedicated graph in every bucket.

    What cannot be forecast is None, and `sentences` say why.
    """
    sentences: list[str] = []
    usual = (1, max(length for length in LENGTHS if length <= min(_USUAL_LENGTH, max(32, plan.max_tokens))))
    own = _try(plan.graph, usual, sentences)
    if own is not None:
        sentences += [f"its own graph at {usual[0]} × {usual[1]}: {line}" for line in own.sentences()]
    dedicated: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="embed-worker-") as scratch:
        try:
            graph = _dedicated(plan, Path(scratch))
        except ExportError as error:
            sentences.append(f"no dedicated graph: {error}")
        else:
            found = [(bucket, _try(graph, bucket, sentences)) for bucket in _buckets(plan.max_tokens)]
            dedicated = [_as_json(bucket, result) for bucket, result in found if result is not None]
            sentences += _of_dedicated([result for _, result in found if result is not None])
    sentences.append(_EVIDENCE)
    return {"own": None if own is None else _as_json(usual, own), "dedicated": dedicated, "sentences": sentences}


def _buckets(max_tokens: int) -> list[tuple[int, int]]:
    return [(shape.batch, shape.length) for shape in buckets_of(max_tokens)]


def _dedicated(plan: ModelPlan, scratch: Path) -> Path:
    made = plan.folder / FOLDER / GRAPH
    if not made.is_file():
        export_for_coreml(plan.folder, output=scratch)
        made = scratch / FOLDER / GRAPH
    return made


def _try(graph: Path, bucket: tuple[int, int], sentences: list[str]) -> Forecast | None:
    batch, length = bucket
    try:
        return forecast(graph, overrides=bucket_overrides(graph, batch=batch, length=length))
    except ForecastError as error:
        sentences.append(f"no forecast at {batch} × {length}: {error}")
        return None


def _as_json(bucket: tuple[int, int], found: Forecast) -> dict[str, Any]:
    return {
        "batch": bucket[0],
        "length": bucket[1],
        "partitions": found.partitions,
        "nodes": found.nodes,
        "coreml_nodes": found.coreml_nodes,
        "cpu_nodes": [node._asdict() for node in found.cpu_nodes],
    }


def _of_dedicated(found: list[Forecast]) -> Iterator[str]:
    whole = [result for result in found if result.partitions == 1 and not result.cpu_nodes]
    if whole:
        nodes = sorted({result.nodes for result in whole})
        yield f"the dedicated graph: one partition and no node on the CPU in {len(whole)} of {len(found)} buckets "\
            f"({' or '.join(str(count) for count in nodes)} nodes)"  # fmt: skip
    for result in found:
        if result not in whole:
            yield from (f"the dedicated graph: {line}" for line in result.sentences())
