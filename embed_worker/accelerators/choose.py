"""Which backend serves a model: the CPU, or what has proved itself against it."""

from __future__ import annotations

import sys

from embed_worker.accelerators import onnx_provider
from embed_worker.config import RuntimeOptions, short_provider
from embed_worker.inference.backend import Backend
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.plan import ModelPlan


def choose_backend(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions, threads: int
) -> Backend:
    """Return the backend to serve with. `auto` takes what is proved; what was asked for by name must be.

    Args:
        cpu: The model on the CPU: it serves, or it is what another provider is compared with.
        plan: The model's folder.
        tokenizer: The model's own.
        runtime: The provider that is asked for.
        threads: Cores that a batch alone may use.

    Raises:
        ConfigError: The provider that is asked for is not there.
        ModelError: It is there and does not give the model's vectors.
    """
    match short_provider(runtime.provider):
        case "cpu":
            return cpu
        case "auto" if not _is_mac():
            reason = "no other provider is chosen by itself but CoreML, which needs a Mac"
            return cpu.chosen_because(reason)
        case "auto" | "coreml":
            from embed_worker.accelerators.coreml import backend as coreml
            from embed_worker.accelerators.coreml import (
                environment as coreml_environment,
            )  # nothing of it is loaded anywhere else

            return coreml.accelerate(cpu, plan, tokenizer, runtime, coreml_environment.environment_of(runtime))
        case "mlx":
            from embed_worker.accelerators.mlx import backend as mlx_backend  # as above

            return mlx_backend.accelerate(cpu, plan, tokenizer, runtime)
        case "openvino":
            from embed_worker.accelerators.openvino import backend as openvino  # as above

            return openvino.accelerate(cpu, plan, tokenizer, runtime, threads)
        case _:
            return onnx_provider.accelerate(cpu, plan, tokenizer, runtime, threads)


def _is_mac() -> bool:
    return sys.platform == "darwin"
