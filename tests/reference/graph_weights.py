"""The weights of a published graph as safetensors, for folders whose weights lie on no registry but in a graph.

An exporter keeps the names of biases and norms, and renames the matrices it transposes: a matrix is known by the bias
that is added to its product, or else by the name of its node, which is the path of its module. transformers then loads
what it would have loaded from the hub; a weight that is not found is an error and never a random one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file


def with_weights(folder: Path, beside: Path) -> Path:
    """Return the folder, or, where it has a graph alone, a copy in `beside` that has `model.safetensors` too."""
    graph = folder / "onnx/model.onnx"
    if (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file() or not graph.is_file():
        return folder
    copy = beside / folder.resolve().name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.onnx", "*.onnx_data"))
    save_weights(graph, copy / "model.safetensors")
    return copy


def missing_weights(model: Any, file: Path) -> list[str]:
    """List the parameters that a model has and a file has not; the pooler is none of a sentence's vector."""
    with safe_open(file, "np") as opened:
        names = set(opened.keys())
    return sorted(name for name, _ in model.named_parameters() if name not in names and not name.startswith("pooler."))


def save_weights(graph: Path, out: Path) -> None:
    """Write a graph's initialisers under the names of the model they were exported from."""
    body = onnx.load(str(graph)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in body.initializer}
    products = {node.output[0]: node.input[1] for node in body.node if node.op_type == "MatMul"}
    weights = {name: array for name, array in arrays.items() if name.endswith((".weight", ".bias"))}
    for node in body.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name.endswith("/MatMul"):
            module = node.name.removesuffix("/MatMul").strip("/").removeprefix("model/").replace("/", ".")
            weights[f"{module}.weight"] = arrays[node.input[1]].T.copy()
    for node in body.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        matrix = next((products[name] for name in node.input if name in products), None)
        if bias is not None and matrix in arrays:
            weights[bias.removesuffix(".bias") + ".weight"] = arrays[matrix].T.copy()
    save_file(weights, out, metadata={"format": "pt"})
