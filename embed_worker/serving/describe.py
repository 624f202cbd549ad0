"""What the worker tells of itself and of a model: the members of the answers to `info` and `load_model`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from embed_worker import __version__
from embed_worker.config import WorkerConfig
from embed_worker.machine import Threads, describe_machine
from embed_worker.protocol import PROTOCOL_VERSION

if TYPE_CHECKING:
    from embed_worker.inference.engine import LoadedModel


def info(model: LoadedModel, models: list[str], config: WorkerConfig, threads: Threads) -> dict[str, Any]:
    """Return the readiness handshake for a model.

    Args:
        model: The one that was asked for.
        models: The names of all that are ready.
        config: The worker's settings.
        threads: How many compute, and why.
    """
    plan, engine = model.plan, model.engine
    return {
        "protocol": PROTOCOL_VERSION,
        "version": __version__,
        "pid": os.getpid(),
        "model": model.name,
        "models": models,
        "fingerprint": model.fingerprint,
        "dimension": model.dimension,
        "max_dimension": engine.dimension,
        "max_tokens": plan.max_tokens,
        "pooling": [str(mode) for mode in plan.pooling],
        "normalize": model.normalizes,
        "prompts": dict(plan.prompts),
        "default_prompt_name": plan.default_prompt_name,
        "provider": dict(vars(engine.backend.provider)),
        "precision": engine.backend.precision,
        "machine": describe_machine(),
        "threads": asdict(threads),
        "batch_invariant": engine.is_batch_invariant or config.runtime.batch_invariant,
        "one_by_one": engine.one_by_one,
        "tolerance": engine.backend.tolerance,
        "batch_tokens": config.runtime.batch_tokens,
        "limits": asdict(config.limits),
    }


def loaded(model: LoadedModel) -> dict[str, Any]:
    """Return what is told of a model that `load_model` has asked for."""
    return {
        "model": model.name,
        "dimension": model.dimension,
        "fingerprint": model.fingerprint,
        "providers": [model.engine.backend.provider.chosen],
        "message": f"the model {model.name} is loaded",
    }
