"""A graph that only gives a sentence vector, compared with what its folder says: what it cannot honour is refused."""

from __future__ import annotations

from collections.abc import Iterator

from embed_worker.errors import ModelError
from embed_worker.model_files.graph_tail import Tail, read_tail
from embed_worker.model_files.onnx_outline import SENTENCE_OUTPUT
from embed_worker.model_files.plan import DensePlan, ModelPlan, PoolingSource


def check_pooled_graph(plan: ModelPlan, dimension: int, *, normalizes: bool) -> None:
    """Compare a graph that pools by itself with its folder, and with `--pooling`.

    Args:
        plan: The model.
        dimension: Of the graph's vectors.
        normalizes: They have length 1.

    Raises:
        ModelError: It gives something else than the folder says, or nothing shows that it gives what `--pooling` says.
    """
    tail = read_tail(plan.graph, plan.onnx_output or SENTENCE_OUTPUT)
    if (problem := next(_differences(plan, tail, dimension, normalizes=normalizes), None)) is not None:
        given = f"has a graph that gives no token vectors but a vector of the whole text, and {problem}"
        raise ModelError(f"the model {plan.name!r} {given}: export it with token vectors")


def _differences(plan: ModelPlan, tail: Tail | None, dimension: int, *, normalizes: bool) -> Iterator[str]:
    asked = f"{', '.join(plan.pooling)} as {_ASKERS[plan.pooling_source]} says"
    if not plan.include_prompt:
        yield "it cannot leave a prompt out of the pooling (include_prompt: false)"
    if plan.pooling_source is PoolingSource.OPTION and (tail is None or len(plan.pooling) != 1):
        yield f"nothing shows that it pools by {asked}"
    if tail is not None and len(plan.pooling) == 1 and plan.pooling[0] not in tail.modes:
        yield f"it pools by {' or '.join(sorted(tail.modes))}, not by {asked}"
    if plan.pooling_source is not PoolingSource.FOLDER:
        return
    yield from _differences_of_modules(plan, tail, dimension)
    if normalizes and not plan.normalize:
        yield "that has length 1, where the folder does not normalise"


_ASKERS = {
    PoolingSource.FOLDER: "the folder",
    PoolingSource.OPTION: "--pooling",
    PoolingSource.TABLE: "the table of known models",
    PoolingSource.GRAPH: "the graph",
}


def _differences_of_modules(plan: ModelPlan, tail: Tail | None, dimension: int) -> Iterator[str]:
    pooled = None if plan.pooling_dimension is None else plan.pooling_dimension * len(plan.pooling)
    stated = plan.dense[-1].out_features if plan.dense else pooled
    if stated is not None and dimension != stated:
        yield f"its dimension is {dimension}, where the folder's modules give {stated}"
    if tail is not None and tail.linear_layers != len(plan.dense):
        yield f"it has {tail.linear_layers} linear layers behind the pooling, where the folder has {len(plan.dense)}"
    if tail is None and plan.dense and stated in (None, pooled):
        yield "nothing shows whether the folder's Dense modules are inside"
    inner = plan.modules[: len(plan.modules) - len(plan.last_normalize)]
    if any(not isinstance(module, DensePlan) for module in inner):
        yield "nothing shows whether the folder's norms before its other modules are inside"
