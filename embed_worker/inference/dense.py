"""`Dense` modules: linear layers that a model's folder puts behind the pooling. float32 in, float32 out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import ModelError
from embed_worker.inference.pooling import Float32
from embed_worker.model_files.plan import DensePlan, ModelPlan
from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile

# By the last component of the class in `torch.nn`.
_ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: _sigmoid(x),
    "SiLU": lambda x: x * _sigmoid(x),
    "GELU": lambda x: np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2, np.float32),
}


@dataclass(frozen=True, slots=True, eq=False)
class DenseLayer:
    """One layer: `weight` is (out, in), `bias` (out,), `residual` (out, in) or True for the input itself."""

    weight: Float32
    bias: Float32 | None
    residual: Float32 | bool
    activation: Callable[[Float32], Float32]

    def __call__(self, vectors: Float32) -> Float32:
        """Map (B, in) to (B, out).

        Reference: sentence-transformers, the module `Dense`.
        """
        linear = vectors @ self.weight.T
        if self.bias is not None:
            linear = linear + self.bias
        mapped = self.activation(linear)
        if self.residual is False:
            return mapped
        return mapped + (vectors if self.residual is True else vectors @ self.residual.T)


def load_dense(plan: ModelPlan) -> list[DenseLayer]:
    """Read the layers of a model.

    Raises:
        ModelError: Weights that are missing, damaged or do not fit, or an activation that is not known.
    """
    try:
        return [_load(layer) for layer in plan.dense]
    except (SafetensorsError, ValueError, OSError) as error:
        raise ModelError(f"the model {plan.name!r} has a Dense module that cannot be used: {error}") from error


def _load(plan: DensePlan) -> DenseLayer:
    if plan.activation not in _ACTIVATIONS:
        raise ValueError(f"the activation {plan.activation!r} is not known; known are {', '.join(_ACTIVATIONS)}")
    if not plan.weights.is_file():
        raise ValueError("it has no model.safetensors; a pytorch_model.bin is a program and is not run: convert it")
    file = SafetensorsFile.open(plan.weights)
    weight = _tensor(file, "linear.weight", rank=2)
    bias = _tensor(file, "linear.bias", rank=1) if "linear.bias" in file else None
    residual: Float32 | bool = plan.use_residual
    if plan.use_residual and weight.shape[0] != weight.shape[1]:
        residual = _tensor(file, "residual.weight", rank=2)
    if (bias is not None and bias.shape != weight.shape[:1]) or (
        not isinstance(residual, bool) and residual.shape != weight.shape
    ):
        raise ValueError("its tensors do not fit together")
    return DenseLayer(weight, bias, residual, _ACTIVATIONS[plan.activation])


def _tensor(file: SafetensorsFile, name: str, *, rank: int) -> Float32:
    if name not in file:
        raise ValueError(f"model.safetensors has no tensor {name}")
    tensor = np.array(file[name], np.float32)
    if tensor.ndim != rank:
        raise ValueError(f"the tensor {name} has {tensor.ndim} dimensions, not {rank}")
    return tensor


def _sigmoid(x: Float32) -> Float32:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _erf(x: NDArray[Any]) -> Float32:
    """Compute the error function; numpy has none."""
    erf: Float32 = np.vectorize(math.erf, otypes=[np.float32])(x)
    return erf
