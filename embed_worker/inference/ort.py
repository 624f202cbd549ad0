"""onnxruntime, in the one file that imports it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

# From 1.29 on it reports to its maker from the moment that it is loaded; a call of its own to stop that comes too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
# CoreML's provider writes the weights of its Gemm nodes as text, by the gigabyte: microsoft/onnxruntime#32212.
COREML_DISABLED_OPTIMIZERS = ("MatMulAddFusion",)

# Above the smallest number that float16 has: a norm's 1e-12 would become 0, and a constant text divide by it.
_MIN_FLOAT16 = 6e-8

# What a provider is opened with. A GPU's arena would double with a longer batch and never shrink: it grows by what is
# asked for. Products of float32 are computed in float32, not in TF32 with its 10 bits, which `precision` would hide.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    _CUDA: {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"},
}

Session: TypeAlias = onnxruntime.InferenceSession
Value: TypeAlias = onnxruntime.OrtValue
# onnxruntime's class, or what stands for it in a test.
SessionFactory: TypeAlias = Callable[..., Any]


def session_options(threads: int = 1, cores: Sequence[int] = ()) -> onnxruntime.SessionOptions:
    """Return the options of a session.

    Args:
        threads: How many compute, the caller's included.
        cores: Where each of the others stays, as the system numbers them; none for wherever they are put.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Threads spin for microseconds while a batch runs, which takes a third off a short text, and stop with it: idling
    # costs nothing. One that spins on waits for a thread whose core another process has. Before 1.26 there is no bound.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    settings.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if cores:
        numbers = ";".join(str(core + 1) for core in cores)  # the runtime counts from 1
        settings.add_session_config_entry("session.intra_op_thread_affinities", numbers)
    return settings


def open_session(
    graph: Path | bytes,
    settings: onnxruntime.SessionOptions | None = None,
    *,
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = (CPU,),
    disabled_optimizers: Sequence[str] = (),
    factory: SessionFactory | None = None,
) -> Any:
    """Open a graph.

    Args:
        graph: An ONNX file, or what one holds.
        settings: By default one thread.
        providers: By onnxruntime's names, with their options; the first that can takes a node.
        disabled_optimizers: Passes over the graph to leave out.
        factory: Stands for `onnxruntime.InferenceSession`.

    Raises:
        Exception: Whatever the runtime raises; its exceptions have no narrower base.
    """
    if _CUDA in (provider if isinstance(provider, str) else provider[0] for provider in providers):
        _load_cuda()
    more = {"disabled_optimizers": list(disabled_optimizers)} if disabled_optimizers else {}
    # With its fallback, onnxruntime prints to standard output and opens another session than was asked for.
    return (factory or onnxruntime.InferenceSession)(
        graph if isinstance(graph, bytes) else str(graph),
        settings or session_options(),
        providers=list(providers),
        enable_fallback=0,
        **more,
    )


def _load_cuda() -> None:
    """Load CUDA's libraries from where pip puts them (`onnxruntime-gpu[cuda,cudnn]`); the provider looks elsewhere."""
    load = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if load is not None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            load()


def with_options(providers: Sequence[str]) -> list[str | tuple[str, Mapping[str, str]]]:
    """Return providers with the options that they are opened with, where they have any."""
    return [(name, _PROVIDER_OPTIONS[name]) if name in _PROVIDER_OPTIONS else name for name in providers]


def look_for_data_in(settings: onnxruntime.SessionOptions, folder: Path) -> None:
    """Name the folder of the external data of a graph that is opened from memory."""
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(folder))


def value_of(array: NDArray[Any], kind: int | None = None) -> Value:
    """Wrap an array without copying it; the array must live as long as the value.

    Args:
        array: Of a type that numpy has, or the bits of another.
        kind: The ONNX type of the elements where numpy has no such type.
    """
    if kind is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)


def dump_optimized(graph: Path, target: Path, dimensions: Mapping[str, int]) -> None:
    """Let the level 1 passes run and write the graph that a provider would be asked about.

    Large weights are written into a file beside `target`.

    Args:
        graph: An ONNX file.
        target: What to write.
        dimensions: The sizes of free dimensions by name. onnxruntime ignores a name that is wrong.

    Raises:
        Exception: Whatever the runtime raises.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = os.fspath(target)
    for key, value in {
        # A protobuf holds 2 GB at most.
        "session.optimized_model_external_initializers_file_name": f"{target.name}.weights",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.disable_prepacking": "1",
    }.items():
        settings.add_session_config_entry(key, value)
    for name, size in dimensions.items():
        settings.add_free_dimension_override_by_name(name, size)
    open_session(graph, settings, disabled_optimizers=COREML_DISABLED_OPTIMIZERS)


def inferred_shapes(graph: Path, names: Sequence[str]) -> dict[str, list[int | str | None]]:
    """Return the shapes of values within a graph as this runtime infers them; a dimension is a number, a name or None.

    A number, and a value of unknown rank, have no dimensions. Needs the package `onnx`, and writes beside the graph.

    Raises:
        Exception: Whatever the runtime raises.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    told = graph.with_name(f"{graph.name}.told")
    onnx.save(model, told)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs = open_session(told, settings).get_outputs()
    return {output.name: list(output.shape) for output in outputs if output.name in set(names)}


def float16_of(graph: Path) -> Any:
    """Convert a graph to an `onnx.ModelProto` that computes in float16, with inputs and outputs in float32.

    Needs the package `onnx`.

    Raises:
        ImportError: The package is not there.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Shape inference would write a copy beside the graph, where writing may not be allowed.
    model = convert_float_to_float16(str(graph), keep_io_types=True, disable_shape_infer=True)
    # The converter appends the casts of the inputs; ONNX wants them before what reads them.
    inputs = {node.name for node in model.graph.input}
    nodes = sorted(model.graph.node, key=lambda node: not inputs.intersection(node.input))
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = max(attribute.f, _MIN_FLOAT16)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(onnxruntime.__version__)


def available_providers() -> list[str]:
    """Return the providers of this onnxruntime."""
    return list(onnxruntime.get_available_providers())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a failure is a failed allocation; onnxruntime has no type for it."""
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    return any(
        sign in message for sign in ("bad_alloc", "failed to allocate memory", "out of memory", "bad allocation")
    )
