"""The name of a vector space: a hash over everything on disk that shapes a vector."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from embed_worker.model_files.external_data import external_files
from embed_worker.model_files.manifest import Manifest, file_sha256
from embed_worker.model_files.onnx_outline import HIDDEN_OUTPUTS, SENTENCE_OUTPUT, read_outline
from embed_worker.model_files.plan import ModelPlan


def fingerprint(plan: ModelPlan, manifest: Manifest | None) -> str:
    """Name the vector space of a plan in 16 hex digits: everything on disk that shapes a vector, nothing else.

    The provider, the precision it computes in and the machine have no part in it.
    """
    outline = read_outline(plan.graph)
    data = external_files(plan.graph, outline.external)
    files = [
        plan.graph,
        *data,
        plan.tokenizer_file,
        *(layer.weights for layer in plan.dense if layer.weights.is_file()),
    ]
    shape: dict[str, object] = {
        "files": [_content_hash(file, plan.folder, manifest) for file in files],
        "pooling": list(plan.pooling),
        "include_prompt": plan.include_prompt,
        "dense": [[layer.activation, layer.use_residual] for layer in plan.dense],
        "normalize": plan.normalize,
        "max_tokens": plan.max_tokens,
        "truncate_left": plan.truncate_left,
        "prompts": dict(sorted(plan.prompts.items())),
        "default_prompt_name": plan.default_prompt_name,
    }
    if plan.lowercase:
        shape["lowercase"] = True
    # Members that are there only where they shape a vector, so that other models keep their names.
    if plan.padding_position is not None and "position_ids" in outline.inputs:
        shape["padding_position"] = plan.padding_position
    if SENTENCE_OUTPUT in outline.outputs and not outline.outputs.isdisjoint(HIDDEN_OUTPUTS) and plan.takes_tokens:
        shape["output"] = "tokens"
    canonical = json.dumps(shape, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _content_hash(file: Path, folder: Path, manifest: Manifest | None) -> str:
    if manifest is not None and (entry := manifest.files.get(file.relative_to(folder).as_posix())) is not None:
        return entry.sha256
    return file_sha256(file)
