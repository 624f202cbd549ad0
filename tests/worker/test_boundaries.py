"""Who may import what: looked up in the syntax trees, and tried in fresh interpreters."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.harness import ROOT, WAIT_S

PACKAGE = ROOT / "embed_worker"
SERVING = [path for path in sorted(PACKAGE.rglob("*.py")) if "tools" not in path.relative_to(PACKAGE).parts]
HEAVY = {"numpy", "onnxruntime", "tokenizers"}
NETWORK = {
    "aiohttp",
    "asyncio",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "urllib",
    "urllib3",
    "xmlrpc",
}


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str() as module, level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                raise AssertionError(f"{path.name} has a relative import")
            case _:
                pass


def top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path)}


def loaded_after(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter; return the modules that it added."""
    found = "sorted(set(sys.modules) - before)"
    code = f"import json, sys; before = set(sys.modules)\n{statement}\nprint(json.dumps({found}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded_after("import embed_worker") - {"__future__"} == {"embed_worker"}


@pytest.mark.parametrize(
    "module", ["protocol", "arguments.serve", "serving.server", "serving.stdio", "serving.lanes", "serving.model_store"]
)
def test_what_runs_before_the_model_is_there_imports_nothing_heavy(module: str) -> None:
    loaded = {name.partition(".")[0] for name in loaded_after(f"import embed_worker.{module}")}
    assert not loaded & HEAVY


def test_the_protocol_needs_the_standard_library_and_orjson_only() -> None:
    ours = {name for name in loaded_after("import embed_worker.protocol") if name.startswith("embed_worker")}
    assert {".".join(name.split(".")[:2]) for name in ours} == {"embed_worker", "embed_worker.protocol"}
    used = set().union(*map(top_level, (PACKAGE / "protocol").glob("*.py")))
    assert used - sys.stdlib_module_names - {"embed_worker"} == {"orjson"}


def test_the_arguments_are_parsed_before_anything_heavy_is_imported() -> None:
    loaded = {name.partition(".")[0] for name in loaded_after("import embed_worker.__main__")}
    assert not loaded & HEAVY


PURE = [
    "serving/scheduler",
    "serving/stdio",
    "machine",
    *(f"model_files/{name}" for name in ("folder", "plan", "search", "onnx_outline", "known_models", "manifest")),
]


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_stay_pure(module: str) -> None:
    outside = top_level(PACKAGE / f"{module}.py") - sys.stdlib_module_names - {"embed_worker"}
    assert outside == set()


@pytest.mark.parametrize(
    ("package", "owner"), [("onnxruntime", "inference/ort.py"), ("tokenizers", "inference/tokenizer.py")]
)
def test_a_native_library_has_one_owner(package: str, owner: str) -> None:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "bridge_client").rglob("*.py")]
    assert [path for path in files if package in top_level(path)] == [PACKAGE / owner]


def test_serving_imports_no_network() -> None:
    found = {path.name: sorted(top_level(path) & NETWORK) for path in SERVING if top_level(path) & NETWORK}
    assert found == {}


def test_run_time_dependencies_are_four_and_those_that_are_asked_for_by_name() -> None:
    outside = set().union(*(top_level(path) for path in SERVING)) - sys.stdlib_module_names - {"embed_worker"}
    assert outside <= HEAVY | {"orjson", "mlx", "openvino", "onnx", "tqdm", "jinja2"}
