"""Make the folders of tests/layouts: published configurations of much used models with tiny random weights.

With what sentence-transformers makes of them; for the environment of `make reference`:
`python -m tests.reference.layouts [NAME …]`. Each layout names the repository whose configurations it has (modules,
pooling, limit, prompts, tokenizer class and settings); sizes are cut, vocabularies are those of tokenizers.json.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnx
import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from tests.reference.arbiter import load, run_set
from tests.reference.layout_table import LAYOUTS, SETS, TEXTS
from tests.reference.tokenizer_variants import files_of

ROOT = Path(__file__).parents[1]
BASES = json.loads((ROOT / "reference/tokenizers.json").read_bytes())["bases"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Encoder(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """A model with its inputs in the graph's order and one output."""

    def __init__(self, model: Any, inputs: list[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state."""
        output: torch.Tensor = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)[0]
        return output


def export(model: Any, path: Path, *, token_types: bool) -> None:
    """Write the graph of an encoder, with the exporter of torch."""
    accepted = inspect.signature(model.forward).parameters
    inputs = [name for name in INPUTS if name in accepted and (token_types or name != "token_type_ids")]
    ids = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    batch["attention_mask"][1, 5:] = 0
    axes = {0: "batch_size", 1: "sequence_length"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        Encoder(model, inputs),
        tuple(batch[name] for name in inputs),
        str(path),
        input_names=inputs,
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys((*inputs, "last_hidden_state"), axes),
        opset_version=17,
        dynamo=False,
    )
    graph = onnx.load(str(path))
    parts = (graph.graph.input, graph.graph.output, graph.graph.initializer)
    kept = {"", *(item.name for part in parts for item in part)}
    short: dict[str, str] = {}
    for place, node in enumerate(graph.graph.node):
        node.name = f"n{place}"
        if any(attribute.HasField("g") for attribute in node.attribute):
            return  # names inside a subgraph are another matter
        for names in (node.input, node.output):
            names[:] = [name if name in kept else short.setdefault(name, f"v{len(short)}") for name in names]
    del graph.graph.value_info[:]
    onnx.save(graph, str(path))


def make_head(folder: Path, layout: dict[str, Any]) -> None:
    """Write the transformer: configuration, weights, graph, tokenizer."""
    base = BASES[layout["base"]]
    vocabulary = len(base["model"]["vocab"]) + 8
    config = AutoConfig.for_model(layout["model_type"], vocab_size=vocabulary, **layout["config"])
    torch.manual_seed(len(layout["of"]))
    model = getattr(transformers, layout["class"])(config) if "class" in layout else AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so that no layer is nearly the identity
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model = model.eval().float()
    model.save_pretrained(folder)
    export(model, folder / "onnx/model.onnx", token_types=layout.get("token_types", True))
    for name, content in files_of(base, layout["tokenizer"] | {"model_type": ""}).items():
        if name != "config.json":
            (folder / name).write_text(content, "utf-8")


def make_static(folder: Path, layout: dict[str, Any]) -> None:
    """Write a table of vectors and its tokenizer."""
    base = BASES[layout["base"]]
    document = base | layout["tokenizer"].get("json", {})
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    torch.manual_seed(3)
    table = torch.randn(len(base["model"]["vocab"]) + 4, 12)
    tensors = {layout["table"]: table}
    if layout.get("mapped"):
        tensors = {
            "embeddings": table[:50],
            "mapping": torch.arange(len(table)) % 50,
            "weights": torch.rand(len(table)) + 0.5,
        }
    if layout.get("whole"):
        tensors["embeddings"] = (tensors["embeddings"] * 40).round().to(torch.int8)
    save_file(tensors, str(folder / "model.safetensors"))
    if layout.get("config"):
        (folder / "config.json").write_text(json.dumps(layout["config"]), "utf-8")


def make_modules(folder: Path, layout: dict[str, Any]) -> None:
    """Write modules.json and what its entries have."""
    entries = []
    torch.manual_seed(7)
    for place, (kind, path, config) in enumerate(layout["modules"]):
        name = kind if "." in kind else f"sentence_transformers.models.{kind}"
        entries.append({"idx": place, "name": str(place), "path": path, "type": name})
        if config is not None and path not in ("", "."):
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config), "utf-8")
        if kind.endswith("Dense"):
            sizes = config["out_features"], config["in_features"]
            tensors = {"linear.weight": torch.randn(sizes) / 4}
            if config.get("bias", True):
                tensors["linear.bias"] = torch.randn(sizes[0]) / 4
            save_file(tensors, str(folder / path / "model.safetensors"))
        if kind.endswith("LayerNorm"):
            size = config["dimension"]
            save_file(
                {"norm.weight": torch.rand(size) + 0.5, "norm.bias": torch.randn(size)},
                str(folder / path / "model.safetensors"),
            )
    (folder / "modules.json").write_text(json.dumps(entries, indent=1), "utf-8")
    if "template" in layout:
        (folder / "chat_template.jinja").write_text(layout["template"], "utf-8")
    for name, content in layout.get("files", {}).items():
        if content is None:
            continue
        (folder / name).write_text(json.dumps(content), "utf-8")


def main() -> None:
    """Make the folders that are asked for, or all."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or LAYOUTS:
        layout = LAYOUTS[name]
        folder = ROOT / "layouts" / name / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (make_static if "table" in layout else make_head)(folder, layout)
        make_modules(folder, layout)
        model: SentenceTransformer = load(folder)
        sets = [run_set(model, TEXTS, request) for request in layout.get("sets", SETS)]
        for one in sets:
            one["embeddings"] = [[float(f"{number:.6g}") for number in row] for row in one["embeddings"]]
            del one["texts"]
            rows = np.array(one["embeddings"])
            assert np.isfinite(rows).all(), name
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        document = {"of": layout["of"], "reference": versions, "sets": sets}
        (folder.parent / "expected.json").write_text(json.dumps(document) + "\n", "utf-8")
        if "table" not in layout:
            (folder / "model.safetensors").unlink()
        print(name, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >> 10, "KiB")


if __name__ == "__main__":
    main()
