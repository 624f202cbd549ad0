"""The options that say what runs a model, and how: the worker's, and those of the commands that start one."""

from __future__ import annotations

import argparse

from embed_worker.config import (
    CoremlPrecision,
    CoremlUnits,
    MlxPrecision,
    OpenvinoPrecision,
    RuntimeOptions,
    path_argument,
    positive_argument,
    provider_argument,
)


def add_running_arguments(group: argparse._ActionsContainer) -> None:
    """Declare what decides what runs a model, and how; also for the commands that start a worker."""
    runtime = RuntimeOptions()
    group.add_argument(
        "--provider",
        type=provider_argument,
        default=runtime.provider,
        metavar="NAME",
        help="what runs the model: auto, cpu, coreml, mlx, openvino, cuda … (auto)",
    )
    group.add_argument(
        "--threads",
        type=positive_argument,
        metavar="N",
        help="how many cores to use (all that affinity and cgroup quota leave, at most $OMP_NUM_THREADS)",
    )
    group.add_argument(
        "--coreml-units",
        choices=[str(units) for units in CoremlUnits],
        default=str(runtime.coreml_units),
        help="what CoreML may compute on (ALL)",
    )
    group.add_argument(
        "--coreml-precision",
        choices=[str(precision) for precision in CoremlPrecision],
        default=str(runtime.coreml_precision),
        help="what CoreML computes in; the Neural Engine needs fp16 (fp32)",
    )
    group.add_argument(
        "--coreml-cache",
        type=path_argument,
        metavar="DIR",
        help="where models compiled for CoreML are kept (coreml in the user's cache folder)",
    )
    group.add_argument(
        "--mlx-precision",
        choices=[str(precision) for precision in MlxPrecision],
        default=str(runtime.mlx_precision),
        help="what MLX computes in (float32)",
    )
    group.add_argument(
        "--openvino-precision",
        choices=[str(precision) for precision in OpenvinoPrecision],
        default=str(runtime.openvino_precision),
        help="what OpenVINO computes in (auto: bfloat16 where it is right and faster)",
    )


def running_arguments(options: argparse.Namespace) -> list[str]:
    """Return what `add_running_arguments` has parsed as a worker's command line has it, without the defaults."""
    stated = [(name, getattr(options, name), getattr(RuntimeOptions(), name)) for name in _RUNNING]
    return [
        part
        for name, value, default in stated
        if str(value) != str(default)
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


_RUNNING = (
    "provider",
    "threads",
    "coreml_units",
    "coreml_precision",
    "coreml_cache",
    "mlx_precision",
    "openvino_precision",
)
