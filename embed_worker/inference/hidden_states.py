"""A graph that gives one of its inner hidden states, for folders that pool another layer than the last.

Such a state is what a layer of a BERT begins with: three projections read it, and the addition behind the attention.
The graph gets an output more by bytes behind its own: a message that is given twice is one message, in protobuf.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from embed_worker.errors import ModelError
from embed_worker.model_files.layout import read_json
from embed_worker.model_files.onnx_outline import HIDDEN_STATE, read_nodes
from embed_worker.model_files.plan import ModelPlan


def graph_with_hidden_state(plan: ModelPlan) -> bytes | None:
    """Return a model's graph with the output `HIDDEN_STATE`; None where the last state is meant, which all graphs give.

    Raises:
        ModelError: The graph is not one of layers that end with a norm, or has another number of them than config.json.
    """
    if plan.hidden_state is None:
        return None
    states = layer_inputs(plan.graph)
    if not states or len(states) != _layers(plan.folder):
        raise ModelError(
            f"the model {plan.name!r} pools the hidden state {plan.hidden_state}, and its graph does not show where "
            "its layers begin: export it so that this state is its output"
        )
    every = [*states, None]
    if not -len(every) <= plan.hidden_state < len(every):
        raise ModelError(f"the model {plan.name!r} pools the hidden state {plan.hidden_state} of {len(every)}")
    state = every[plan.hidden_state]
    return None if state is None else plan.graph.read_bytes() + _more(state)


def layer_inputs(graph: Path) -> list[str]:
    """Return what the layers of an encoder begin with, in their order; empty where that is not recognised."""
    nodes = read_nodes(graph)
    readers: dict[str, Counter[str]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, Counter())[node.operator] += 1
    made = [name for node in nodes for name in node.outputs if name in readers]
    return [name for name in made if readers[name]["MatMul"] == 3 and readers[name]["Add"] == 1]


def _layers(folder: Path) -> int | None:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    layers = config.get("num_hidden_layers", config.get("n_layers")) if isinstance(config, dict) else None
    return layers if isinstance(layers, int) else None


def _more(state: str) -> bytes:
    """Write a graph of one node that names a value anew, and of one output; field numbers are those of `onnx.proto`."""
    node = _field(1, state.encode()) + _field(2, HIDDEN_STATE.encode()) + _field(4, b"Identity")
    return _field(7, _field(1, node) + _field(12, _field(1, HIDDEN_STATE.encode())))


def _field(number: int, content: bytes) -> bytes:
    length = len(content)
    size = bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content
