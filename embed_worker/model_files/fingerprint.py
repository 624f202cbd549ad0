"""The name of a vector space: a hash over everything on disk that shapes a vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from embed_worker.model_files.external_data import external_files
from embed_worker.model_files.manifest import file_sha256
from embed_worker.model_files.onnx_outline import HIDDEN_OUTPUTS, SENTENCE_OUTPUT, Outline, read_outline
from embed_worker.model_files.plan import ChatPlan, ModelPlan


def fingerprint(plan: ModelPlan, verified: Mapping[str, str]) -> str:
    """Return the name of a plan's vector space, 16 hex digits: everything on disk that shapes a vector, nothing else.

    The provider, the precision it computes in and the machine have no part in it.

    Args:
        plan: How the model is run.
        verified: The SHA-256 of files that are known to be what they were, by their paths; others are hashed now.
    """
    shape: dict[str, object] = {
        "files": [_content_hash(file, plan.folder, verified) for file in files_that_shape(plan)],
        "pooling": list(plan.pooling),
        "include_prompt": plan.include_prompt,
        "dense": [[layer.activation, layer.use_residual] for layer in plan.dense],
        "normalize": plan.normalize,
        "max_tokens": plan.max_tokens,
        "truncate_left": plan.tokenizer.truncate_left,
        "prompts": dict(sorted(plan.prompts.items())),
        "default_prompt_name": plan.default_prompt_name,
    }
    shape |= {name: value for name, value in _rarities(plan).items() if value not in (None, False)}
    canonical = json.dumps(shape, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _rarities(plan: ModelPlan) -> dict[str, object]:
    """Collect what few models have: the others keep the names that they had before these were known."""
    outline = Outline() if plan.is_static else read_outline(plan.graph)
    takes_tokens = SENTENCE_OUTPUT in outline.outputs and not outline.outputs.isdisjoint(HIDDEN_OUTPUTS)
    return {
        "lowercase": plan.lowercase,
        "padding_position": plan.padding_position if "position_ids" in outline.inputs else None,
        "output": plan.onnx_output or ("tokens" if takes_tokens and plan.takes_tokens else None),
        "static": plan.is_static,
        "truncate_dim": plan.truncate_dim,
        "hidden_state": plan.hidden_state,
        "tokenizer": plan.tokenizer.shape or None,
        "no_special_tokens": not plan.adds_special_tokens and plan.chat is None and not plan.is_static,
        "modules": _module_names(plan) if len(plan.dense) < len(plan.modules) else None,
        "chat": None if plan.chat is None else _chat_shape(plan.chat),
    }


def _chat_shape(chat: ChatPlan) -> list[object]:
    return [chat.template, chat.is_structured, chat.restores_suffix, dict(chat.variables)]


def _module_names(plan: ModelPlan) -> list[str]:
    return [type(module).__name__.removesuffix("Plan") for module in plan.modules]


def files_that_shape(plan: ModelPlan) -> list[Path]:
    """Return the files whose bytes shape vectors: the graph with its data, the tokenizer, the weights of modules."""
    data = [] if plan.is_static else external_files(plan.graph, read_outline(plan.graph).external, home=plan.home)
    return [plan.graph, *data, plan.tokenizer_file, *(file for file in plan.weights_of_modules if file.is_file())]


def unlisted_files(plan: ModelPlan, verified: Mapping[str, str]) -> list[str]:
    """Return the paths of files that shape vectors, and of which nothing says what they were."""
    paths = [file.relative_to(plan.folder).as_posix() for file in files_that_shape(plan)]
    return [path for path in paths if path not in verified]


def _content_hash(file: Path, folder: Path, verified: Mapping[str, str]) -> str:
    return verified.get(file.relative_to(folder).as_posix()) or file_sha256(file)
