"""What the tests of the export have in common: tiny random folders, runs of the command, and published fixtures.

Most fixtures have no safetensors. Their ONNX graphs hold the torch weights, which are put back under published names.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.loading import load_model
from embed_worker.tools import export
from tests.worker.test_safetensors import file_of_tensors

MODELS = Path(__file__).parents[1] / "models"
Tensors: TypeAlias = Mapping[str, NDArray[Any]]

# A tiny BERT.


CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 70,
}


def random_tensors(config: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Make every published tensor of a BERT, pooler included."""
    random = np.random.default_rng(7)
    width, inner = config["hidden_size"], config["intermediate_size"]
    tensors: dict[str, NDArray[Any]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        tensors[f"{name}.weight"] = random.normal(0, 0.3, (outputs, inputs)).astype(np.float32)
        tensors[f"{name}.bias"] = random.normal(0, 0.1, outputs).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.LayerNorm.weight"] = random.normal(1, 0.1, width).astype(np.float32)
        tensors[f"{name}.LayerNorm.bias"] = random.normal(0, 0.1, width).astype(np.float32)

    for table, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        shape = (config[rows], width)
        tensors[f"embeddings.{table}_embeddings.weight"] = random.normal(0, 1, shape).astype(np.float32)
    norm("embeddings")
    for layer in range(config["num_hidden_layers"]):
        scope = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{scope}.attention.{part}", width, width)
        norm(f"{scope}.attention.output")
        linear(f"{scope}.intermediate.dense", inner, width)
        linear(f"{scope}.output.dense", width, inner)
        norm(f"{scope}.output")
    linear("pooler.dense", width, width)
    return tensors


def make_folder(folder: Path, *, tensors: Tensors | None = None, bfloat16: bool = False, **changes: Any) -> Path:
    """Write config.json and model.safetensors of the tiny BERT; `changes` are the configuration's."""
    config = CONFIG | changes
    return write_folder(folder, config, random_tensors(config) if tensors is None else tensors, bfloat16=bfloat16)


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Tensors, *, bfloat16: bool = False) -> Path:
    """Write config.json and model.safetensors, cut to bfloat16 where that is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    dtypes = {}
    if bfloat16:
        tensors = {name: (tensor.view(np.uint32) >> 16).astype(np.uint16) for name, tensor in tensors.items()}
        dtypes = dict.fromkeys(tensors, "BF16")
    (folder / "model.safetensors").write_bytes(file_of_tensors(tensors, dtypes))
    return folder


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="embed-worker export")
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(argument) for argument in arguments]))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 78) -> str:
    """Run an export that must fail, and give its one sentence."""
    assert run(*arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("embed-worker export: ")
    return line.removeprefix("embed-worker export: ")


def session_of(graph: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def graph_of(folder: Path) -> Path:
    return folder / "onnx" / "model.onnx"


# The fixtures --------------------------------------------------------------------------------------------------------


def published_tensors(fixture: str) -> dict[str, NDArray[Any]]:
    """Take the weights out of a fixture's graph, under the names that they have in a checkpoint.

    torch's exporter keeps all names but those of matrices, which it transposes and names after their place in the
    graph; the node that multiplies by one is called after the module.
    """
    graph = onnx.load(MODELS / fixture / "onnx" / "model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name: tensor for name, tensor in stored.items() if "::" not in name}
    for node in graph.node:
        if node.op_type == "MatMul" and "::" in node.input[1]:
            module = node.name.removeprefix("/model/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{module}.weight"] = np.ascontiguousarray(stored.pop(node.input[1]).T)
    return tensors


def expected_of(fixture: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((MODELS / f"{fixture}.expected.json").read_bytes())
    return expected


def config_of(fixture: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((MODELS / fixture / "config.json").read_bytes())
    return config


def publish(fixture: str, folder: Path, tensors: Tensors, config: Mapping[str, Any] | None = None) -> Path:
    """Make a folder as a hub has it: the fixture without graphs, with the tensors in model.safetensors."""
    shutil.copytree(MODELS / fixture, folder, ignore=shutil.ignore_patterns("*.onnx*"))
    (folder / "model.safetensors").write_bytes(file_of_tensors(tensors))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_shards(folder: Path, tensors: Tensors, shards: int) -> None:
    """Write tensors to several files with an index, as transformers does."""
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    shard_of_tensors = {tensor: names[place % shards] for place, tensor in enumerate(tensors)}
    for name in names:
        mine = {tensor: values for tensor, values in tensors.items() if shard_of_tensors[tensor] == name}
        (folder / name).write_bytes(file_of_tensors(mine))
    index = {"metadata": {"total_size": 1}, "weight_map": shard_of_tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pad_on_the(side: str, folder: Path) -> None:
    """Change the side on which a folder's tokenizer pads."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"padding_side": side}))


def served_vectors(
    folder: Path, fixture: str, *, together: bool = True
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32]]]:
    """Serve a folder with the engine; yield each case of the fixture and the vectors that its texts get.

    Args:
        folder: Made from the fixture.
        fixture: Its name.
        together: The texts of a case in one padded batch, or each alone.
    """
    is_bare = not (folder / "modules.json").exists()
    options = ModelOptions(pooling="mean" if is_bare else None)
    model = load_model(folder, options, RuntimeOptions(verify=Verify.NEVER), 1)
    for case in expected_of(fixture)["cases"]:
        name = case["prompt_name"] or model.plan.default_prompt_name
        rows = model.engine.tokenizer.encode(case["texts"], model.plan.prompts[name] if name else "")
        groups = [rows] if together else [[row] for row in rows]
        raw = np.concatenate([model.engine.embed(group, exclusive=not together) for group in groups])
        yield case, model.finish(raw, case["dimensions"], case["normalize"])


def assert_goldens(folder: Path, fixture: str, *, together: bool) -> None:
    """Compare every case of a fixture with sentence-transformers, within its tolerance; see `served_vectors`."""
    expected, cases = expected_of(fixture), 0
    for case, vectors in served_vectors(folder, fixture, together=together):
        np.testing.assert_allclose(
            vectors, case["embeddings"], rtol=0, atol=expected["tolerance"], err_msg=case["name"]
        )
        cases += 1
    assert cases == len(expected["cases"]) > 20
