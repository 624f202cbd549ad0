"""The worker's settings, frozen, with units in their names; nothing deeper in reads the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from embed_worker.protocol import MAX_ID_INTEGER, Limits
from embed_worker.protocol.spelling import closest

DEFAULT_MODEL = "all-MiniLM-L6-v2"
START_LIMIT_S = 600  # above what compiling a model for CoreML may take

# What onnxruntime calls its providers, without "ExecutionProvider", and what is chosen or built here.
_PROVIDERS = frozenset(
    """auto cpu coreml mlx openvino cuda tensorrt nvtensorrtrtx dml rocm migraphx qnn xnnpack acl armnn azure cann dnnl
    js nnapi rknpu snpe tvm vitisai vsinpu webgpu webnn""".split()  # noqa: SIM905 - a list of words
)


class Verify(StrEnum):
    """When the files of a model are hashed: always, never, or where they changed since they last were."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class LogFormat(StrEnum):
    """How a line on standard error looks."""

    TEXT = "text"
    JSON = "json"


class CoremlUnits(StrEnum):
    """What CoreML may compute on; the values are CoreML's own names."""

    ALL = "ALL"
    CPU_ONLY = "CPUOnly"
    CPU_AND_GPU = "CPUAndGPU"
    CPU_AND_NEURAL_ENGINE = "CPUAndNeuralEngine"


class CoremlPrecision(StrEnum):
    """What CoreML computes in: float32, which runs on the CPU and the GPU, or float16, also on the Neural Engine."""

    FP32 = "fp32"
    FP16 = "fp16"


class OpenvinoPrecision(StrEnum):
    """What OpenVINO computes in; `auto` is bfloat16 where the processor multiplies it and it proves right."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class MlxPrecision(StrEnum):
    """What MLX computes in; the values are MLX's own names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """One `--model` and the options after it that decide about its folder. `None`: what the folder says."""

    name_or_path: str = DEFAULT_MODEL
    onnx_file: str | None = None
    onnx_output: str | None = None
    variant: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    ignore_config: tuple[str, ...] = ()
    allow_links: bool = False


CPU_BATCH_TOKENS = 384
# Of a GPU, most of which 384 tokens would leave idle. A guess: no GPU has been at hand to measure it.
_GPU_BATCH_TOKENS = 8192
_GPU_PROVIDERS = ("cuda", "tensorrt", "nvtensorrtrtx", "rocm", "migraphx", "dml", "webgpu")


def default_batch_tokens(provider: str) -> int:
    """Return the budget of a micro-batch for a provider, named with or without `ExecutionProvider`, in any case."""
    return _GPU_BATCH_TOKENS if short_provider(provider) in _GPU_PROVIDERS else CPU_BATCH_TOKENS


def short_provider(name: str) -> str:
    """Return the short name of a provider of onnxruntime, in lower case."""
    return name.lower().removesuffix("executionprovider")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How the runtime runs models.

    Attributes:
        provider: `auto`, `cpu`, `coreml`, `mlx`, `openvino`, or the name of another of onnxruntime's providers.
        threads: Cores to use; None: all that the affinity mask and the cgroup quota leave, at most OMP_NUM_THREADS.
        batch_tokens: Budget of a micro-batch: rows times the longest row.
        batch_invariant: Run one text at a time, so that no vector can depend on its neighbours.
        verify: When the files of a model are hashed and compared with its manifest.
        coreml_units, coreml_precision: What CoreML may compute on, and in.
        coreml_cache: Where compiled models are kept; None: `coreml` in the user's cache folder.
        mlx_precision: What MLX computes in.
        openvino_precision: What OpenVINO computes in.
    """

    provider: str = "auto"
    threads: int | None = None
    batch_tokens: int = CPU_BATCH_TOKENS
    batch_invariant: bool = False
    verify: Verify = Verify.AUTO
    coreml_units: CoremlUnits = CoremlUnits.ALL
    coreml_precision: CoremlPrecision = CoremlPrecision.FP32
    coreml_cache: Path | None = None
    mlx_precision: MlxPrecision = MlxPrecision.FLOAT32
    openvino_precision: OpenvinoPrecision = OpenvinoPrecision.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Everything that the command line decides.

    Attributes:
        models: The first is the default.
        models_dirs: Where names are looked for first.
        allow_links: Whether files of a model may be links out of its folder; those of the hub's cache always may.
        drain_timeout_s: How long a drain may take; None: as long as it needs.
        start_limit_s: How long the loading of a model may take before the worker gives up.
        rss_limit_bytes: Resident memory above which the worker finishes what it has and exits, to be restarted.
    """

    models: tuple[ModelOptions, ...] = (ModelOptions(),)
    models_dirs: tuple[Path, ...] = ()
    allow_links: bool = False
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    limits: Limits = field(default_factory=Limits)
    is_supervised: bool = False
    drain_timeout_s: float | None = None
    start_limit_s: float = START_LIMIT_S
    rss_limit_bytes: int | None = None


def path_argument(text: str) -> Path:
    """Read a path of the command line; `~` is the home also where no shell has seen it, as in `--output=~/model`.

    Raises:
        argparse.ArgumentTypeError: It is empty, as an unset variable is, and would be the working directory; or
            there is no such home: a folder named `~` is never meant.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text!r} begins with a home, and there is none")
    return Path(expanded)


def folder_argument(text: str) -> Path:
    """Read the path of a folder that has to be there.

    Raises:
        argparse.ArgumentTypeError: It is not, or `path_argument` refuses it.
    """
    path = path_argument(text)
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"there is no folder {text[:200]!r}")
    return path


def stated_models_dirs(options: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders of the options `--models-dir`, and behind them those of $EMBED_WORKER_MODELS."""
    from_environment = os.environ.get("EMBED_WORKER_MODELS", "")
    return (*options, *(Path(part) for part in from_environment.split(os.pathsep) if part))


def positive_argument(text: str) -> int:
    """Read a number of the command line that counts something.

    Raises:
        argparse.ArgumentTypeError: Not between 1 and what JSON keeps exactly.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_ID_INTEGER:
        raise argparse.ArgumentTypeError(f"{text[:64]!a} is no whole number of 1 or more, of at most 16 digits")
    return value


def provider_argument(text: str) -> str:
    """Read the name of a provider: in lower case and without `ExecutionProvider`, however it is written.

    Whether it is installed is found out later.

    Raises:
        argparse.ArgumentTypeError: Nothing has this name.
    """
    name = short_provider(text)
    if name not in _PROVIDERS:
        meant = closest(name, sorted(_PROVIDERS))
        hint = "" if meant is None else f"; did you mean `{meant}`?"
        raise argparse.ArgumentTypeError(f"there is no provider {text[:64]!a}{hint}")
    return name
