"""CUDA where it is there: the goldens, what is told of it, and mixed lengths one after the other."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import pytest

from tests.worker.harness import ROOT, WorkerProcess, cosines, matrix_of
from tests.worker.test_golden import GOLDEN, TEXTS

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or shutil.which("nvidia-smi") is None,
    reason="no GPU, or an onnxruntime without CUDA: see docs/installing.md",
)
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"


def test_a_gpu_gives_the_vectors_of_sentence_transformers_in_float32() -> None:
    with WorkerProcess("--provider", "cuda", model=MODEL) as worker:
        info = worker.ask({"method": "info"})
        found = cosines(matrix_of(worker.ask({"inputs": TEXTS})), GOLDEN["embeddings"])
    assert (info["provider"]["chosen"], info["precision"]) == ("CUDAExecutionProvider", "float32")
    assert info["batch_tokens"] == 8192
    assert found.min() >= 0.9999


def test_texts_of_many_lengths_are_the_cpus_one_by_one_and_together() -> None:
    texts = [" ".join(["word"] * (1 + 37 * number % 250)) for number in range(60)]
    with WorkerProcess("--provider", "cuda", model=MODEL) as gpu, WorkerProcess(model=MODEL) as cpu:
        expected = matrix_of(cpu.ask({"inputs": texts}))
        together = matrix_of(gpu.ask({"inputs": texts}))
        alone = np.concatenate([matrix_of(gpu.ask({"inputs": text})) for text in texts])
    assert min(cosines(together, expected).min(), cosines(alone, expected).min()) >= 0.9999
