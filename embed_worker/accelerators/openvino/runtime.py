"""The package openvino, in the one file that imports it: graphs compiled for the CPU."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed_worker.config import OpenvinoPrecision
from embed_worker.errors import ConfigError, brief

_INSTALL = "pip install 'embed-bridge[openvino]'"
_DEVICE = "CPU"
_HINTS = {OpenvinoPrecision.FLOAT32: "f32", OpenvinoPrecision.BFLOAT16: "bf16"}
# Of the layers that do nearly all of the work.
_PRODUCTS = ("FullyConnected", "MatMul")
_NAMES = {"f32": OpenvinoPrecision.FLOAT32, "bf16": OpenvinoPrecision.BFLOAT16}


class OpenvinoError(Exception):
    """OpenVINO cannot do it; the message is a clause that says why."""


class CompiledGraph:
    """A graph compiled for some cores, which runs one batch at a time.

    One stream each: two streams of one compiled model, run at once, have given lastingly wrong vectors in float32.

    Attributes:
        precision: What its products are computed in, read back after a run.
    """

    def __init__(self, compiled: Any, output: str, tensor: Callable[..., Any]) -> None:
        self._request = compiled.create_infer_request()
        self._compiled = compiled
        self._output = output
        self._tensor = tensor
        self._lock = threading.Lock()

    @property
    def precision(self) -> OpenvinoPrecision | None:
        """What the products really compute in; None for something else than was asked for."""
        found = set()
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            if _text(facts["layerType"]) in _PRODUCTS:
                found.add(_text(facts["runtimePrecision"]))
        return _NAMES.get(found.pop()) if len(found) == 1 else None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Run a batch; return the output as float32.

        Raises:
            OpenvinoError: It fails.
        """
        with self._lock:
            try:
                # The wrapper of `infer` would copy every input and every output; these arrays live until it returns.
                for name, values in feeds.items():
                    self._request.set_tensor(name, self._tensor(values, shared_memory=values.flags.writeable))
                self._request.infer({}, share_outputs=True)
                return np.array(self._request.get_tensor(self._output).data, np.float32)  # the next run overwrites it
            except RuntimeError as error:
                raise OpenvinoError(brief(error)) from error


class Runtime:
    """A graph that was read, to be compiled as often as it is needed."""

    def __init__(self, graph: Path) -> None:
        """Read an ONNX file.

        Raises:
            ConfigError: The package is not there.
            OpenvinoError: It does not read this graph.
        """
        self._openvino = _import()
        self._core = self._openvino.Core()
        try:
            self._model = self._core.read_model(str(graph))
        except RuntimeError as error:
            raise OpenvinoError(f"it does not read the graph: {brief(error)}") from error

    def compile(self, precision: OpenvinoPrecision, *, threads: int, output: str) -> CompiledGraph:
        """Compile the graph.

        Args:
            precision: What to compute in. A processor may list it and still refuse it, or compute in another.
            threads: Cores that a run uses.
            output: The name of the output to take.

        Raises:
            OpenvinoError: It cannot be compiled so.
        """
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "EXECUTION_MODE_HINT": "ACCURACY" if precision is OpenvinoPrecision.FLOAT32 else "PERFORMANCE",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # other processes want their cores, too
        }
        try:
            compiled = self._core.compile_model(self._model, _DEVICE, settings)
            return CompiledGraph(compiled, output, self._openvino.Tensor)
        except RuntimeError as error:
            raise OpenvinoError(f"it does not compile the graph in {precision}: {_last_line(error)}") from error

    def lists(self, precision: OpenvinoPrecision) -> bool:
        """Whether the processor is said to have a precision; that does not mean that it computes in it."""
        known = {OpenvinoPrecision.FLOAT32: "FP32", OpenvinoPrecision.BFLOAT16: "BF16"}
        return known[precision] in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


def runtime_version() -> str:
    """Return the version of openvino."""
    return version("openvino")


def _import() -> Any:
    """Import openvino without the package that reports its use: it does as if that were not installed."""
    absent = "openvino_telemetry"
    was_there = absent in sys.modules
    if not was_there:
        sys.modules[absent] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded: {brief(error)}"
        raise ConfigError(f"--provider openvino: the package openvino {problem}: {_INSTALL}") from error
    finally:
        if not was_there:
            del sys.modules[absent]
    # The first look into a tensor makes a table, and two threads that do it at once wait for each other for good: the
    # one for the table, the other, which makes it, for the interpreter lock. So one look is made here.
    _ = openvino.Tensor(np.zeros(1, np.float32)).data
    return openvino


def _text(value: Any) -> str:
    """Return what OpenVINO's own wrapper of a value holds."""
    return str(getattr(value, "value", value))


def _last_line(error: Exception) -> str:
    """Return what an exception ends with; before it come the places in the source that it passed."""
    return brief(RuntimeError(str(error).strip().rpartition("\n")[2]))
