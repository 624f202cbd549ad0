"""`Dense` modules against a plain loop in float64; the goldens of whole models are in test_engine.py."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.errors import ModelError
from embed_worker.inference.dense import load_modules
from embed_worker.loading import load_model
from embed_worker.model_files.plan import DensePlan, ModelPlan
from tests.worker.harness import ROOT
from tests.worker.test_tokenizer import plan_for

MODELS = ROOT / "tests" / "models"

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "Identity": lambda x: x,
    "Tanh": math.tanh,
    "ReLU": lambda x: max(x, 0.0),
    "Sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "SiLU": lambda x: x / (1 + math.exp(-x)),
    "GELU": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
}


def save(path: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = tensor.astype("<f4").tobytes()
        key = name.replace("__", ".")
        header[key] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def plan(weights: Path, activation: str = "Identity", *, use_residual: bool = False, bias: bool = True) -> ModelPlan:
    layer = DensePlan(weights=weights, activation=activation, use_residual=use_residual, bias=bias)
    return plan_for("bert-mean", modules=(layer,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("rows", "use_residual"), [(3, False), (3, True), (4, True)])
def test_a_layer_is_what_its_definition_says(
    tmp_path: Path, activation: str, has_bias: bool, rows: int, use_residual: bool
) -> None:
    random = np.random.default_rng(5)
    weight, bias, residual = random.normal(size=(rows, 4)), random.normal(size=rows), random.normal(size=(rows, 4))
    tensors = {"linear__weight": weight, **({"linear__bias": bias} if has_bias else {})}
    if use_residual and rows != 4:
        tensors["residual__weight"] = residual
    (layer,) = load_modules(
        plan(save(tmp_path / "w.safetensors", **tensors), activation, use_residual=use_residual, bias=has_bias)
    )
    vectors = random.normal(size=(2, 4)).astype(np.float32)
    for vector, mapped in zip(vectors, layer(vectors), strict=True):
        for row, value in enumerate(mapped):
            expected = ACTIVATIONS[activation](float(weight[row] @ vector) + (bias[row] if has_bias else 0.0))
            if use_residual:
                expected += vector[row] if rows == 4 else residual[row] @ vector
            assert value == pytest.approx(expected, abs=1e-5)
    assert layer(vectors).dtype == np.float32


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no tensor linear.weight"),
        ({"linear__weight": np.zeros(4)}, "1 dimensions, not 2"),
        ({"linear__weight": np.zeros((3, 4)), "linear__bias": np.zeros(4)}, "do not fit together"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, tensors: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_modules(plan(save(tmp_path / "w.safetensors", **tensors)))


def test_an_unknown_activation_and_missing_weights_are_refused(tmp_path: Path) -> None:
    weights = save(tmp_path / "w.safetensors", linear__weight=np.zeros((3, 4)))
    with pytest.raises(ModelError, match=r"no tensor linear\.bias"):
        load_modules(plan(weights))
    with pytest.raises(ModelError, match="'Swish' is not known"):
        load_modules(plan(weights, "Swish"))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a program"):
        load_modules(plan(tmp_path / "missing"))


def test_the_layers_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "dense-module"
    shutil.copytree(MODELS / "dense-module", folder)
    before = load_model(folder, ModelOptions(), RuntimeOptions(), 1).fingerprint
    weights = folder / "2_Dense" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_model(folder, ModelOptions(), RuntimeOptions(), 1).fingerprint != before


@pytest.mark.parametrize("stray", ["linear__bias", "residual__weight"])
def test_weights_that_the_configuration_does_not_know_are_refused(tmp_path: Path, stray: str) -> None:
    weights = save(tmp_path / "w.safetensors", linear__weight=np.zeros((3, 4)), **{stray: np.zeros((3, 4))})
    with pytest.raises(ModelError, match=f"has '{stray.replace('__', '.')}', and its configuration says otherwise"):
        load_modules(plan(weights, bias=False))
