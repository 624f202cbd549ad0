"""How a graph that pools by itself pools, as far as the operators before its sentence vector show.

It follows the nodes from the vector backwards and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embed_worker.model_files.onnx_outline import Node, read_nodes, read_outline
from embed_worker.model_files.plan import PoolingMode

_SUMS = frozenset({PoolingMode.MEAN, PoolingMode.MEAN_SQRT_LEN, PoolingMode.WEIGHTED_MEAN})
_PICKS = frozenset({PoolingMode.CLS, PoolingMode.LAST_TOKEN})
_POOLING_OPERATORS: Mapping[str, frozenset[PoolingMode]] = {
    **dict.fromkeys(("ReduceSum", "ReduceMean", "Einsum"), _SUMS),
    **dict.fromkeys(("Gather", "GatherND", "GatherElements", "Slice"), _PICKS),
    "ReduceMax": frozenset({PoolingMode.MAX}),
}
# What a value goes through on its way: activations, L2 normalisation and changes of shape.
_PASSED = frozenset(
    {"Add", "Cast", "Clip", "Div", "Erf", "Expand", "Flatten", "Gelu", "Identity", "LpNormalization", "Mul", "Relu"}
    | {"Reshape", "Sigmoid", "Squeeze", "Sub", "Tanh", "Unsqueeze"}
)
_MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class Tail:
    """What is behind the token vectors: which modes it may be, and how many linear layers follow it."""

    modes: frozenset[PoolingMode]
    linear_layers: int


def read_tail(graph: Path, output: str) -> Tail | None:
    """Follow a sentence vector back to where tokens become one vector; None where that is not recognised."""
    nodes = read_nodes(graph)
    producers = {name: node for node in nodes for name in node.outputs}
    computed = _computed(nodes, read_outline(graph).inputs)
    value, linear_layers = output, 0
    for _ in range(_MAX_STEPS):
        node = producers.get(value)
        if node is None:
            return None
        if (modes := _POOLING_OPERATORS.get(node.operator)) is not None:
            return Tail(modes, linear_layers)
        read = [name for name in node.inputs if name in computed]
        if node.operator in ("MatMul", "Gemm"):
            if len(read) > 1:  # weights of the tokens times their vectors
                return Tail(_SUMS, linear_layers)
            linear_layers += 1
        elif node.operator not in _PASSED:
            return None
        value = next(iter(read), "")
    return None


def _computed(nodes: Iterable[Node], inputs: Iterable[str]) -> set[str]:
    """Collect the values that depend on a graph's inputs; the others are weights, perhaps cast or transposed."""
    found = set(inputs)
    for node in nodes:
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found
