"""What is installed is what works: the wheel carries the model and needs no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from bridge_client.testing.conformance.transcript import TRANSCRIPTS
from tests.worker.harness import ROOT, WAIT_S, lines_of, parse_answer


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=WAIT_S)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_the_packages_and_the_default_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "embed_worker/__main__.py",
        "embed_worker/py.typed",
        "embed_worker/models/all-MiniLM-L6-v2/onnx/model.onnx",
        "embed_worker/models/all-MiniLM-L6-v2/manifest.json",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "examples/"))]


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: what pip makes of a pure wheel."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_installed(site: Path, folder: Path, *arguments: str, lines: bytes = b"") -> bytes:
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        input=lines,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        timeout=WAIT_S,
        check=True,
    )
    return done.stdout


def test_an_installed_worker_serves_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    command = "from embed_worker.__main__ import main; main()"
    (line,) = run_installed(site, tmp_path, "-c", command, lines=lines_of({"inputs": "hello world"})).splitlines(True)
    answer = parse_answer(line)
    assert (answer["model"], answer["dimension"], answer["tokens"]) == ("all-MiniLM-L6-v2", 384, [4])


def test_the_conformance_suite_plays_where_only_the_wheel_is_installed(site: Path, tmp_path: Path) -> None:
    suite = ("-m", "bridge_client.testing.conformance", "worker")
    # Between them these need every model that any transcript names.
    chosen = ("worker-embed", "worker-models", "worker-essentials")
    worker = ("--", sys.executable, "-P", "-m", "embed_worker")
    told = run_installed(site, tmp_path, *suite, *(f"--only={name}" for name in chosen), *worker)
    assert told.splitlines()[-1] == b"3 ok"
    assert {path.name for path in TRANSCRIPTS.iterdir()} == {
        path.name for path in (site / "bridge_client/testing/conformance/transcripts").iterdir()
    }


def test_the_run_time_dependencies_are_four() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {dependency.split(">")[0] for dependency in project["dependencies"]}
    assert names == {"onnxruntime", "tokenizers", "numpy", "orjson"}
    assert project["scripts"]["embed-worker"] == "embed_worker.__main__:main"
