"""Which backend serves a model: the CPU, or what has proved itself against it."""

from __future__ import annotations

from embed_worker.config import RuntimeOptions
from embed_worker.model_folder import ModelPlan
from embed_worker.session import Backend, OnnxBackend
from embed_worker.tokenizer import TextTokenizer


def accelerate(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions, threads: int
) -> Backend:
    """Return the backend to serve with."""
    return cpu
