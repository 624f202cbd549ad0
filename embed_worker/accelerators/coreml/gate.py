"""Whether CoreML may be tried on this machine, and what of the machine CoreML needs."""

from __future__ import annotations

import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embed_worker.accelerators.coreml.child import PROVIDER, ChildRunner
from embed_worker.accelerators.coreml.static_session import StaticSession
from embed_worker.config import CoremlUnits, RuntimeOptions
from embed_worker.inference.ort import available_providers, runtime_version
from embed_worker.machine import cache_dir

_MIN_MACOS = 14
_MIN_ONNXRUNTIME = (1, 28)  # the first that takes every operator of the dedicated graphs

_COMPILE_LIMIT_S = 120.0
_GRAPH_LIMIT_S = 80.0  # two of these and one of those fit into a client's patience with `--provider coreml`
_MAX_CACHE_BYTES = 8 * 2**30
_MAX_SESSION_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the gate looks at, and what a compiled model depends on."""

    system: str
    machine: str
    macos: str
    macos_build: str
    onnxruntime: str
    providers: Sequence[str]
    has_onnx: bool
    has_cache: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What CoreML needs of the machine, so that tests can fake it.

    Attributes:
        cache: Folder of compiled models and dedicated graphs.
        open_session: `StaticSession`, or what stands for it.
        children: Runs what may crash.
        clock: Seconds, monotonic.
    """

    host: Host
    cache: Path
    open_session: Callable[..., StaticSession] = StaticSession
    children: ChildRunner = field(default_factory=ChildRunner)
    clock: Callable[[], float] = time.perf_counter
    compile_limit_s: float = _COMPILE_LIMIT_S
    graph_limit_s: float = _GRAPH_LIMIT_S
    max_cache_bytes: int = _MAX_CACHE_BYTES
    max_session_bytes: int = _MAX_SESSION_BYTES


def surroundings(runtime: RuntimeOptions) -> Surroundings:
    """Describe this machine."""
    users = cache_dir()
    cache = runtime.coreml_cache or (None if users is None else users / "coreml")
    host = Host(
        system=sys.platform,
        machine=platform.machine(),
        macos=platform.mac_ver()[0],
        macos_build=_macos_build(),
        onnxruntime=runtime_version(),
        providers=available_providers(),
        has_onnx=importlib.util.find_spec("onnx") is not None,
        has_cache=cache is not None,
    )
    return Surroundings(host=host, cache=(cache or Path()).absolute())


def _macos_build() -> str:
    """Read the build, such as 23F79: the compiler changes with it, also where the version stays."""
    import plistlib

    try:
        with Path("/System/Library/CoreServices/SystemVersion.plist").open("rb") as file:
            return str(plistlib.load(file)["ProductBuildVersion"])
    except (OSError, ValueError, KeyError, plistlib.InvalidFileException):
        return platform.release()


def gate(host: Host) -> str | None:
    """Say why CoreML cannot be used on a machine; None where it may be tried."""
    if host.system != "darwin" or host.machine != "arm64":
        return f"CoreML needs macOS on Apple silicon, and this is {host.system} on {host.machine}"
    if _numbers(host.macos)[:1] < (_MIN_MACOS,):
        return f"CoreML needs macOS {_MIN_MACOS}, and this is {host.macos}"
    if _numbers(host.onnxruntime)[:2] < _MIN_ONNXRUNTIME:
        return f"CoreML needs onnxruntime {'.'.join(map(str, _MIN_ONNXRUNTIME))}, and this is {host.onnxruntime}"
    if PROVIDER not in host.providers:
        return f"this onnxruntime has no {PROVIDER}"
    if not host.has_cache:
        return "there is no home to keep compiled models in: --coreml-cache names a folder"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def provider_options(units: CoremlUnits, cache: Path) -> dict[str, str]:
    """Give the provider's options: strings, and "1" alone means on."""
    return {
        "ModelFormat": "MLProgram",
        "MLComputeUnits": str(units),
        "RequireStaticInputShapes": "1",
        "ModelCacheDirectory": str(cache),
    }
