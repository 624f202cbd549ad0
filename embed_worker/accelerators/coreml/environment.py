"""Whether CoreML may be tried on this machine, and what of the machine CoreML needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import stat
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
    """What of a machine decides whether CoreML may be tried, and what a compiled model depends on."""

    system: str
    machine: str
    macos: str
    macos_build: str
    onnxruntime: str
    providers: Sequence[str]
    has_onnx: bool
    cache: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlEnvironment:
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


def environment_of(runtime: RuntimeOptions) -> CoremlEnvironment:
    """Describe this machine."""
    cache = runtime.coreml_cache or _usual_cache()
    host = Host(
        system=sys.platform,
        machine=platform.machine(),
        macos=platform.mac_ver()[0],
        macos_build=_macos_build(),
        onnxruntime=runtime_version(),
        providers=available_providers(),
        has_onnx=importlib.util.find_spec("onnx") is not None,
        cache=None if cache is None else cache.absolute(),
    )
    return CoremlEnvironment(host=host, cache=host.cache or Path())


def _usual_cache() -> Path | None:
    """Return the user's cache folder, or where its path is none for CoreML, one of the user's under /var/tmp."""
    users = cache_dir()
    if users is None or is_safe(users / "coreml") or sys.platform == "win32":
        return None if users is None else users / "coreml"
    return Path("/var/tmp", f"embed-bridge-{os.getuid()}", "coreml")  # noqa: S108 - checked before it is used


def is_safe(path: Path) -> bool:
    """Return whether CoreML's provider can make a URL of a path: "Failed to create model URL from path" otherwise."""
    return re.fullmatch(r"[A-Za-z0-9/._~+@=-]+", str(path)) is not None


def _is_ours(folder: Path) -> bool:
    """Make a folder under /var/tmp for this user alone; False where another user has been there first."""
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        status = folder.parent.lstat()
    except OSError:
        return False
    return sys.platform == "win32" or (stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid())


def _macos_build() -> str:
    """Read the build, such as 23F79: the compiler changes with it, also where the version stays."""
    import plistlib

    try:
        with Path("/System/Library/CoreServices/SystemVersion.plist").open("rb") as file:
            return str(plistlib.load(file)["ProductBuildVersion"])
    except (OSError, ValueError, KeyError, plistlib.InvalidFileException):
        return platform.release()


def unsupported_reason(host: Host) -> str | None:
    """Return why CoreML cannot be used on a machine; None where it may be tried."""
    if host.system != "darwin" or host.machine != "arm64":
        return f"CoreML needs macOS on Apple silicon, and this is {host.system} on {host.machine}"
    if _numbers(host.macos)[:1] < (_MIN_MACOS,):
        return f"CoreML needs macOS {_MIN_MACOS}, and this is {host.macos}"
    if _numbers(host.onnxruntime)[:2] < _MIN_ONNXRUNTIME:
        return f"CoreML needs onnxruntime {'.'.join(map(str, _MIN_ONNXRUNTIME))}, and this is {host.onnxruntime}"
    if PROVIDER not in host.providers:
        return f"this onnxruntime has no {PROVIDER}"
    if host.cache is None:
        return "there is no home to keep compiled models in: --coreml-cache names a folder"
    if not is_safe(host.cache):
        return f"CoreML cannot keep compiled models in {host.cache}: --coreml-cache names a folder of plain letters"
    if host.cache.is_relative_to("/var/tmp") and not _is_ours(host.cache):  # noqa: S108 - that is what is checked
        return f"{host.cache.parent} is another user's: --coreml-cache names a folder"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def provider_options(units: CoremlUnits, cache: Path) -> dict[str, str]:
    """Return the provider's options: strings, and "1" alone means on."""
    return {
        "ModelFormat": "MLProgram",
        "MLComputeUnits": str(units),
        "RequireStaticInputShapes": "1",
        "ModelCacheDirectory": str(cache),
    }
