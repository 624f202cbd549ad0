"""Where a folder's graph usually is, and what its owner can do where it is not there."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_worker.model_files.layout import USUAL_GRAPHS


def usual_graphs(head: str) -> list[str]:
    """Return the paths where a graph is looked for, the first first; `head` is the folder of the first module."""
    return list(dict.fromkeys([*(f"{head}{path}" for path in USUAL_GRAPHS), *USUAL_GRAPHS]))


def way_to_a_graph(folder: Path, config: Mapping[str, Any]) -> str:
    """Return how a message ends that tells of a missing graph: with what to do, where the folder shows it.

    Args:
        folder: The model's.
        config: Its config.json.
    """
    # Two levels down: what is not a model's folder may be somebody's whole disk.
    levels = ("*.onnx", "*/*.onnx", "*/*/*.onnx")
    found = sorted(Path(path).as_posix() for level in levels for path in glob.glob(level, root_dir=folder))
    if found:
        return f"; --onnx-file can choose one of: {', '.join(found[:8])}"
    if config.get("model_type") == "model2vec":
        way = "SentenceTransformer(modules=[StaticEmbedding.from_model2vec(FOLDER)]).save_pretrained(OUT)"
        return f": it is model2vec's own form without modules.json, of which `{way}` makes one that is served"
    if any(folder.glob("*.safetensors")):
        return ": `embed-worker export DIR` makes one of its weights"
    return ""
