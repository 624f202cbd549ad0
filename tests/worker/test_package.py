"""What is installed is what works: the wheel carries the model and needs no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

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


def test_an_installed_worker_serves_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:  # what pip does with a pure wheel
        archive.extractall(site)
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from embed_worker.__main__ import main; main()"],
        input=lines_of({"inputs": "hello world"}),
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        timeout=WAIT_S,
        check=True,
    )
    (line,) = done.stdout.splitlines(keepends=True)
    answer = parse_answer(line)
    assert (answer["model"], answer["dimension"], answer["tokens"]) == ("all-MiniLM-L6-v2", 384, [4])


def test_the_run_time_dependencies_are_four() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {dependency.split(">")[0] for dependency in project["dependencies"]}
    assert names == {"onnxruntime", "tokenizers", "numpy", "orjson"}
    assert project["scripts"]["embed-worker"] == "embed_worker.__main__:main"
