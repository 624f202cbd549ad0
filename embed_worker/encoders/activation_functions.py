"""The activations of encoders: as a graph, in the patterns that onnxruntime fuses into one operator, and in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from embed_worker.encoders.checkpoint import Floats
from embed_worker.encoders.onnx_writer import GraphWriter


def _write_gelu(graph: GraphWriter, scope: str, x: str) -> str:
    scaled = graph.node(f"{scope}.scaled", "Div", x, graph.scalar(math.sqrt(2)))
    raised = graph.node(f"{scope}.raised", "Add", graph.node(f"{scope}.erf", "Erf", scaled), graph.scalar(1))
    return graph.node(scope, "Mul", graph.node(f"{scope}.doubled", "Mul", x, raised), graph.scalar(0.5))


def _write_gelu_new(graph: GraphWriter, scope: str, x: str) -> str:
    cube = graph.node(f"{scope}.cube", "Pow", x, graph.scalar(3))
    bent = graph.node(f"{scope}.bent", "Mul", cube, graph.scalar(0.044715))
    inner = graph.node(f"{scope}.inner", "Add", x, bent)
    scaled = graph.node(f"{scope}.scaled", "Mul", inner, graph.scalar(math.sqrt(2 / math.pi)))
    raised = graph.node(f"{scope}.raised", "Add", graph.node(f"{scope}.tanh", "Tanh", scaled), graph.scalar(1))
    return graph.node(scope, "Mul", graph.node(f"{scope}.half", "Mul", x, graph.scalar(0.5)), raised)


def _write_relu(graph: GraphWriter, scope: str, x: str) -> str:
    return graph.node(scope, "Relu", x)


def _write_silu(graph: GraphWriter, scope: str, x: str) -> str:
    return graph.node(scope, "Mul", x, graph.node(f"{scope}.sigmoid", "Sigmoid", x))


def _gelu(x: Floats) -> Floats:
    # numpy has no erf; the check's few tokens can afford the slow one.
    erf = np.vectorize(math.erf, otypes=[np.float64])
    activated: Floats = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return activated


def _gelu_new(x: Floats) -> Floats:
    activated: Floats = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return activated


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def _silu(x: Floats) -> Floats:
    activated: Floats = x / (1 + np.exp(-x))
    return activated


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An activation, element by element: `write` adds it to a graph, `compute` does it with numpy."""

    name: str
    write: Callable[[GraphWriter, str, str], str]
    compute: Callable[[Floats], Floats]


_TANH_GELU = Activation(name="gelu_tanh", write=_write_gelu_new, compute=_gelu_new)
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": Activation(name="gelu", write=_write_gelu, compute=_gelu),
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": Activation(name="relu", write=_write_relu, compute=_relu),
    "silu": Activation(name="silu", write=_write_silu, compute=_silu),
}
