"""What a model's folder puts behind the pooling: Dense, LayerNorm and Normalize. (B, in) to (B, out), float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import ModelError
from embed_worker.inference.pooling import Float32, finish_vectors
from embed_worker.model_files.plan import DensePlan, LayerNormPlan, ModelPlan, ModulePlan, NormalizePlan
from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile

# (B, in) to (B, out).
Module: TypeAlias = Callable[[Float32], Float32]

# What `torch.nn.LayerNorm` adds to the variance.
_EPSILON = 1e-5

# By the last component of the class in `torch.nn`.
_ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "LeakyReLU": lambda x: np.where(x > 0, x, x * np.float32(0.01)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "Softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, np.float32(0))),
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


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """`weight` and `bias` are (D,)."""

    weight: Float32
    bias: Float32

    def __call__(self, vectors: Float32) -> Float32:
        """Normalise each vector over its components. Reference: `torch.nn.LayerNorm`."""
        centred = vectors - vectors.mean(axis=1, keepdims=True)
        variance = np.square(centred).mean(axis=1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + np.float32(_EPSILON)) * self.weight + self.bias, np.float32)


def load_modules(plan: ModelPlan, *, is_pooled: bool = False) -> list[Module]:
    """Read what follows the pooling of a model.

    Args:
        plan: The model.
        is_pooled: Its graph pools by itself, and has all of them inside but a Normalize at the end.

    Raises:
        ModelError: Weights that are missing, damaged or do not fit, or an activation that is not known.
    """
    try:
        return [_load_module(module) for module in (plan.last_normalize if is_pooled else plan.modules)]
    except (SafetensorsError, ValueError, OSError) as error:
        raise ModelError(f"the model {plan.name!r} has a module that cannot be used: {error}") from error


def _load_module(plan: ModulePlan) -> Module:
    match plan:
        case DensePlan():
            return _load(plan)
        case LayerNormPlan():
            file = _open(plan.weights)
            weight, bias = (_tensor(file, f"norm.{name}", rank=1) for name in ("weight", "bias"))
            if weight.shape != bias.shape:
                raise ValueError("its tensors do not fit together")
            return LayerNorm(weight, bias)
        case NormalizePlan():
            return lambda vectors: finish_vectors(vectors, None, normalize=True)
        case _:
            assert_never(plan)


def _load(plan: DensePlan) -> DenseLayer:
    if plan.activation not in _ACTIVATIONS:
        raise ValueError(f"the activation {plan.activation!r} is not known; known are {', '.join(_ACTIVATIONS)}")
    file = _open(plan.weights)
    weight = _tensor(file, "linear.weight", rank=2)
    stated = tuple(
        size or found for size, found in zip((plan.out_features, plan.in_features), weight.shape, strict=True)
    )
    if weight.shape != stated:
        raise ValueError(f"its weight is {weight.shape}, and its configuration says {stated}")
    bias = _tensor(file, "linear.bias", rank=1) if plan.bias else None
    residual: Float32 | bool = plan.use_residual
    if plan.use_residual and weight.shape[0] != weight.shape[1]:
        residual = _tensor(file, "residual.weight", rank=2)
    expected = {"linear.weight": True, "linear.bias": plan.bias, "residual.weight": not isinstance(residual, bool)}
    if stray := [name for name in file if not expected.get(name)]:
        raise ValueError(
            f"its model.safetensors has {', '.join(map(ascii, stray))}, and its configuration says otherwise"
        )
    if (bias is not None and bias.shape != weight.shape[:1]) or (
        not isinstance(residual, bool) and residual.shape != weight.shape
    ):
        raise ValueError("its tensors do not fit together")
    return DenseLayer(weight, bias, residual, _ACTIVATIONS[plan.activation])


def _open(weights: Path) -> SafetensorsFile:
    if not weights.is_file():
        raise ValueError(
            f"{weights.parent.name} has no {weights.name}, and a pytorch_model.bin is a program that is not run: "
            f"convert it where torch is, with `from safetensors.torch import save_file; "
            f"save_file(torch.load('pytorch_model.bin', weights_only=True), '{weights.name}')`"
        )
    return SafetensorsFile.open(weights)


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
