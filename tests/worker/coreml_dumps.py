"""Graphs as onnxruntime 1.32 asks a provider about them, so that counts do not depend on the version that runs a test.

`python -m tests.worker.coreml_dumps` makes the archive anew with the onnxruntime that is installed.
"""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import onnx

from embed_worker.tools.inspect.coreml_partitions import bucket_overrides, optimized
from tests.worker.harness import ROOT

FIXTURES = ROOT / "tests" / "models"
DEFAULT_MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
ARCHIVE = Path(__file__).with_suffix(".zip")
RAW = ("bert-mean", "xlmr-unigram", "gemma-graph-pooled", "qwen3-last")


def raw(name: str) -> Path:
    """Name the graph of a fixture, as torch has exported it."""
    return FIXTURES / name / "onnx" / "model.onnx"


def raw_bert(layers: int) -> onnx.ModelProto:
    """Repeat the second layer of a raw export, and let it have LayerNormalization."""
    model = onnx.load(raw("bert-mean"))
    model.opset_import[0].version = 17
    second = [node for node in model.graph.node if "/layer.1/" in node.name]
    for node in second:
        model.graph.node.remove(node)
    result = "/model/encoder/layer.{}/output/LayerNorm/Add_1_output_0"
    for layer in range(1, layers):
        end = "last_hidden_state" if layer == layers - 1 else result.format(layer)
        moved = {result.format(0): result.format(layer - 1), "last_hidden_state": end}
        for node in second:
            node = copy.deepcopy(node)
            node.name = node.name.replace("/layer.1/", f"/layer.{layer}/")
            for names in (node.input, node.output):
                names[:] = [moved.get(name, name.replace("/layer.1/", f"/layer.{layer}/")) for name in names]
            model.graph.node.append(node)
    onnx.checker.check_model(model)
    return model


def dumped(name: str) -> onnx.ModelProto:
    """Read a graph of the archive: NAME-dynamic, or NAME-1x64 for one text of 64 tokens."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return onnx.load_from_string(archive.read(f"{name}.onnx"))


def main() -> None:
    """Make the archive."""
    graphs = {}
    for name in RAW:
        graphs[f"{name}-dynamic"] = optimized(raw(name), {})
        graphs[f"{name}-1x64"] = optimized(raw(name), bucket_overrides(raw(name), batch=1, length=64))
    bucket = {"batch_size": 1, "sequence_length": 128}
    graphs["six-layers-dynamic"] = optimized(raw_bert(6), {})
    graphs["six-layers-1x128"] = optimized(raw_bert(6), bucket)
    graphs["default-1x128"] = optimized(DEFAULT_MODEL / "onnx" / "model.onnx", bucket)
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, graph in graphs.items():
            archive.writestr(
                zipfile.ZipInfo(f"{name}.onnx"), graph.SerializeToString(deterministic=True), zipfile.ZIP_DEFLATED, 9
            )


if __name__ == "__main__":
    main()
