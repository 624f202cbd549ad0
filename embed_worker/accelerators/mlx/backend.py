"""MLX: the same model with the same weights on the GPU of Apple Silicon, behind the contract of every backend.

What it gives is compared with the CPU before it serves; docs/apple-silicon.md has the whole story. Nothing here needs
the package mlx until a model is loaded for it. B, T and D are batch, tokens and dimension.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_worker.accelerators.agreement import ProofError, agreement_with_cpu, golden_batches
from embed_worker.config import MlxPrecision, RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.inference.backend import TOLERANCES, Backend, ProviderReport
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.ort import is_out_of_memory
from embed_worker.inference.pooling import Float32, Int64, pool
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.layout import WEIGHTS
from embed_worker.model_files.plan import ModelPlan
from embed_worker.model_files.safetensors import Tensor

if TYPE_CHECKING:
    from embed_worker.accelerators.mlx.models import MlxModel
    from embed_worker.encoders.bert import Bert
    from embed_worker.encoders.qwen3 import Qwen3

# MLX's streams belong to the thread that made them, and so do arrays until they are evaluated: one thread does all.
_mlx_thread = ThreadPoolExecutor(1, "mlx")

# Of freed buffers that MLX keeps for the next batch; by default it keeps as much as the GPU may have at all.
_CACHE_BYTES = 256 * 2**20

# Rows and tokens of the batches that are compared with the CPU. Metal has kernels for whole blocks of 32 tokens,
# for parts of one, and for at most 8; before MLX 0.32 it rotated only the first of several texts of one token.
_GOLDEN_SHAPES = ((8, 32), (4, 7), (2, 1))

_INSTALL = "pip install 'embed-bridge[mlx]'"

_TIMED_RUNS = 3
_TIMING_S = 1.0  # no further run is begun after this


@dataclass(frozen=True, kw_only=True)
class MlxReport(ProviderReport):
    """What `info` tells of MLX.

    Attributes:
        version: Of the package mlx.
        device: What it computes on: gpu, or cpu where there is no other.
        weights: The file that they were read from.
        cosine: The smallest to the CPU's vectors.
        speed_ratio: Its time over that of all cores of the CPU for a full batch.
    """

    version: str
    device: str
    weights: str
    cosine: float
    speed_ratio: float


class MlxBackend:
    """A model in MLX. Any number of lanes may call it; their batches run one after another on MLX's own thread."""

    scales_by_batch = False
    is_end_to_end = False
    max_rows = None

    def __init__(self, model: MlxModel, plan: ModelPlan, precision: MlxPrecision, provider: ProviderReport) -> None:
        self.provider = provider
        self.precision = str(precision)
        self.tolerance = TOLERANCES[self.precision]
        self._model = model
        self._plan = plan

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the batch's own shape."""
        return rows, tokens

    def use_all_cores(self) -> None:
        """There is nothing that could wait until now."""

    def close(self) -> None:
        """There is nothing that outlives the process."""

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Run a padded batch and pool it; see `Backend.embed`."""
        hidden = _mlx_thread.submit(_run, self._model, batch.ids, batch.mask, self._plan.name).result()
        return pool(hidden, batch.mask, self._plan.pooling, batch.skipped)


def _run(model: MlxModel, ids: Int64, mask: Int64, name: str) -> Float32:
    """Compute the (B, T, D) last hidden state, on MLX's thread: nothing that leaves it is MLX's."""
    import mlx.core as mx

    try:
        hidden = model.forward(ids, mask).astype(mx.float32)
        mx.eval(hidden)
        return np.array(hidden, np.float32)
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise OutOfMemoryError(f"no memory for a batch of {ids.shape} with the model {name!r}") from error
        raise


def _is_out_of_memory(error: Exception) -> bool:
    signs = ("unable to allocate", "insufficient memory")
    return is_out_of_memory(error) or any(sign in str(error).lower() for sign in signs)


# Loading and proof --------------------------------------------------------------------------------------------------


def accelerate(cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions) -> Backend:
    """Load a model for MLX and compare it with the CPU, which is not needed any more after that.

    Raises:
        ConfigError: MLX is not there.
        ModelError: MLX cannot run the model, or does not give its vectors.
        OutOfMemoryError: There is no memory for it.
    """
    refusal = f"--provider {runtime.provider}: the model {plan.name!r} cannot be run by MLX"
    try:
        models = _mlx_thread.submit(_import_models).result()
        _check_graph(plan, is_end_to_end=cpu.is_end_to_end, scales_by_batch=cpu.scales_by_batch)
        weights = _read_weights(plan)
        model = _mlx_thread.submit(models.make_mlx_model, weights.encoder, runtime.mlx_precision).result()
        backend = MlxBackend(model, plan, runtime.mlx_precision, cpu.provider)
        batches = [
            batch
            for rows, tokens in _GOLDEN_SHAPES
            for batch in golden_batches(tokenizer, rows, tokens, pad_left=plan.pad_left)
        ]
        cosine = agreement_with_cpu(lambda batch: backend.embed(batch, exclusive=True), cpu, batches, backend.precision)
        speed_ratio = _speed_ratio(backend, cpu, batches[0])
    except (ConfigError, OutOfMemoryError):
        raise
    except ModelError as error:
        raise ModelError(f"{refusal}: {error}") from error
    except ProofError as error:
        raise ModelError(f"{refusal}: it {error}") from error
    except Exception as error:
        if _is_out_of_memory(error):
            raise OutOfMemoryError(f"no memory to load the model {plan.name!r} for MLX") from error
        raise ModelError(f"{refusal}: {brief(error)}") from error
    judgement = "" if speed_ratio <= 1 else ": the CPU is faster"
    report = MlxReport(
        asked=runtime.provider,
        chosen="mlx",
        reason=f"asked for; its smallest cosine to the CPU is {cosine:.7f}, "
        f"and it takes {speed_ratio:.2f} of the CPU's time{judgement}",
        version=version("mlx"),
        device=models.device(),
        weights=weights.source.relative_to(plan.folder).as_posix(),
        cosine=round(cosine, 7),
        speed_ratio=round(speed_ratio, 3),
    )
    return MlxBackend(model, plan, runtime.mlx_precision, report)


def _import_models() -> ModuleType:
    """Import what needs MLX, on MLX's thread, and tell MLX what it should know first."""
    # Unless it is told not to, MLX multiplies float32 with 10 bits of mantissa from M5 on. It looks once, when loaded.
    os.environ["MLX_ENABLE_TF32"] = "0"
    try:
        import mlx.core as mx

        from embed_worker.accelerators.mlx import models as mlx_models
    except ModuleNotFoundError as error:
        raise ConfigError(f"--provider mlx: the package {error.name} is not installed: {_INSTALL}") from error
    except ImportError as error:
        problem = f"the package mlx cannot be loaded here: {brief(error)}"
        raise ConfigError(f"--provider mlx: {problem}: {_INSTALL}") from error
    mx.set_cache_limit(_CACHE_BYTES)
    return mlx_models


def _check_graph(plan: ModelPlan, *, is_end_to_end: bool, scales_by_batch: bool) -> None:
    """Refuse a graph whose vectors its weights alone do not give.

    Raises:
        ModelError: It is one.
    """
    if is_end_to_end:
        raise ModelError("its graph pools by itself, and the weights do not say how")
    if plan.hidden_state is not None:
        raise ModelError("it pools an inner hidden state")
    if scales_by_batch:
        raise ModelError("its graph is quantised, and MLX computes with floats")


def _speed_ratio(backend: Backend, cpu: OnnxBackend, batch: TokenBatch) -> float:
    """Run a batch on both in turn and divide the times: the median of some pairs. Both have run it before."""
    cpu.use_all_cores()  # to be fair: with all cores
    ratios: list[float] = []
    began_s = time.monotonic()
    while len(ratios) < _TIMED_RUNS and (not ratios or time.monotonic() - began_s < _TIMING_S):
        mlx_s, cpu_s = (_seconds(each, batch) for each in (backend, cpu))
        ratios.append(mlx_s / max(cpu_s, 1e-9))
    return statistics.median(ratios)


def _seconds(backend: Backend, batch: TokenBatch) -> float:
    began_s = time.perf_counter()
    backend.embed(batch, exclusive=True)
    return time.perf_counter() - began_s


# The weights --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Weights:
    """A model's weights as they were published, and the file that they are in."""

    encoder: Bert | Qwen3
    source: Path


def _read_weights(plan: ModelPlan) -> _Weights:
    """Read the weights of the folder's safetensors, or where it has none those of its ONNX file.

    Raises:
        ModelError: There is no such architecture here, or the weights cannot be had; one sentence says why.
    """
    # The readers of `embed-worker export`, which nothing else that serves needs.
    from embed_worker.encoders import checkpoint
    from embed_worker.encoders.architectures import ACCELERATED

    home = checkpoint.transformer_folder(plan.folder)  # whose path has been checked with the folder
    weight_files = (home / name for name in (WEIGHTS, checkpoint.INDEX))
    source = next((file for file in weight_files if file.exists()), plan.graph)
    try:
        config = checkpoint.read_json_object(home / "config.json")
        architecture = config.get("model_type")
        if not isinstance(architecture, str) or architecture not in ACCELERATED:
            known = ", ".join(ACCELERATED)
            raise ModelError(f"its architecture is {architecture!r}, and those that are known to run are {known}")
        if checkpoint.has_own_code(config):
            raise ModelError("it brings code of its own (auto_map), which is neither read nor run")
        tensors = _onnx_weights(source) if source == plan.graph else checkpoint.open_weights(home)
        encoder = ACCELERATED[architecture](config, tensors)
    except checkpoint.ExportError as error:
        # The readers take every file for the usual one.
        problem = str(error).replace(WEIGHTS, source.name)
        raise ModelError(f"its weights cannot be used: {problem}") from error
    return _Weights(encoder=encoder, source=source)


def _onnx_weights(graph: Path) -> Mapping[str, Tensor]:
    try:
        from embed_worker.encoders.onnx_weights import read_onnx_weights
    except ImportError as error:
        problem = "its weights are in an ONNX file alone, and reading them needs the package onnx"
        raise ModelError(f"{problem}: {_INSTALL}") from error
    return read_onnx_weights(graph)


def forecast_model(plan: ModelPlan) -> dict[str, Any]:
    """Return whether MLX could run a model; the package mlx is not needed for it.

    Returns:
        `weights`: The file that they would be read from, None where it cannot. `sentences`: The same for people.
    """
    from embed_worker.inference.graph_io import choose_output, is_sentence
    from embed_worker.model_files.graph_summary import SummaryError, summarize

    try:
        graph = summarize(plan.graph, sessions=1)
        _check_graph(
            plan,
            is_end_to_end=is_sentence(choose_output(graph.outputs, plan)),
            scales_by_batch=any(operator.startswith("DynamicQuantize") for operator in graph.operators),
        )
        weights = _read_weights(plan)
    except (ModelError, SummaryError) as error:
        return {"weights": None, "sentences": [f"MLX cannot run it: {error}"]}
    source = weights.source.relative_to(plan.folder).as_posix()
    return {"weights": source, "sentences": [f"MLX can run it, with the weights of {source}"]}
