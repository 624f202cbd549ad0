"""What a worker gets of its host: variables by allow-list, and the folders in which its packages lie."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

# What a locale, a home, a temporary folder, Windows, a linker and an accelerator need. `HF_*` would pass a token.
PASSED_ENVIRONMENT = (
    "PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "HOME", "XDG_*", "TMPDIR", "TEMP", "TMP",
    "USERPROFILE", "HOMEDRIVE", "HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA",
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT",
    "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER",
    "LD_LIBRARY_PATH", "DYLD_*", "CUDA_*", "ORT_*", "OMP_*", "HF_HOME", "HF_HUB_CACHE", "EMBED_WORKER_*",
)  # fmt: skip
ENVIRONMENT_BY_DEFAULT = {"ORT_DISABLE_TELEMETRY": "1"}
_PACKAGES = ("embed_worker", "onnxruntime", "tokenizers", "numpy", "orjson")


class Variables(Mapping[str, str]):
    """Environment variables that do not change, so that options may be hashed."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)
        strange: list[object] = [each for each in (*self, *self.values()) if not isinstance(each, str)]
        if strange:
            raise TypeError(f"`env` must map strings to strings: {strange[0]!r} is none")

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __hash__(self) -> int:
        return hash(frozenset(self._variables.items()))

    def __repr__(self) -> str:
        return repr(self._variables)


def worker_environment(host: Mapping[str, str], added: Mapping[str, str], *, is_windows: bool) -> dict[str, str]:
    """Return what a worker gets of its host's environment, and what is added; on Windows names have no case."""

    def key(name: str) -> str:
        return name.upper() if is_windows else name

    passed = {
        name: value
        for name, value in host.items()
        if any(fnmatch.fnmatchcase(key(name), pattern) for pattern in PASSED_ENVIRONMENT)
    }
    environment = dict(ENVIRONMENT_BY_DEFAULT)
    for names in (passed, added):
        taken = {key(name) for name in names}
        environment = {name: value for name, value in environment.items() if key(name) not in taken} | dict(names)
    return environment


def search_path(*, is_own_interpreter: bool) -> list[str]:
    """Return the folders that the worker's interpreter must search beside its own to find its packages.

    An interpreter that is not the host's gets the one of `embed_worker` only: the others hold compiled code.

    They are the entries of the host's `sys.path` in which it finds them: a checkout, a folder of `pip --target`, an
    archive that Spark has sent. Never the working directory nor the script's folder, unless PYTHONPATH names it: a file
    there that is named like a module of Python's would be imported in its place.

    Raises:
        ValueError: A package lies in one of these two and nowhere else.
    """
    known = {_real(folder) for folder in _own_folders()}
    named = {_real(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder}
    kept_out = {_real(""), *_script_folders()} - named
    found: list[str] = []
    for name in _PACKAGES if is_own_interpreter else _PACKAGES[:1]:
        homes = [_real(entry) for entry in sys.path if _holds(entry, name)]
        home = next((entry for entry in homes if entry in known or entry not in kept_out), None)
        if homes and home is None and is_own_interpreter:
            raise ValueError(
                f"{name} lies in {homes[0]} only, the working directory or the script's folder, where the worker"
                " does not look: install it, or name the folder in env={'PYTHONPATH': …}"
            )
        if home is not None and home not in known and home not in found:
            found.append(home)
    return found


def _holds(entry: str, package: str) -> bool:
    spec = PathFinder.find_spec(package, [entry])
    return spec is not None and spec.origin is not None  # else it is an empty folder of that name


def _own_folders() -> Iterator[str]:
    """Yield the folders that an interpreter of this installation searches by itself."""
    import site

    folders = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")] + site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    yield from folders
    for pth in {path for folder in folders for path in Path(folder).glob("*.pth")}:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in pth.read_text("utf-8").splitlines():
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    yield os.path.join(pth.parent, line.strip())


def _script_folders() -> Iterator[str]:
    main: Any = sys.modules.get("__main__")
    for script in (getattr(main, "__file__", None), sys.argv[0] if getattr(sys, "argv", None) else None):
        if script and os.path.isfile(script):
            yield os.path.dirname(_real(script))


def _real(path: str) -> str:
    """Return an entry of `sys.path` as one absolute path without links; "" is the working directory."""
    try:
        return os.path.realpath(path)
    except OSError:  # the working directory is gone
        return path
