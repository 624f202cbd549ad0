"""What is installed is what works: the wheel carries the model and needs no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from bridge_client.testing.conformance.transcript import TRANSCRIPTS
from tests.worker.harness import ROOT, WAIT_S, lines_of, parse_answer


def built(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=WAIT_S)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_packages_and_the_default_model_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {
        "embed_worker/__main__.py",
        "embed_worker/py.typed",
        "bridge_client/py.typed",
        "embed_worker/models/known_models.toml",
        "embed_worker/models/references/all-MiniLM-L6-v2.json",
        "embed_worker/models/all-MiniLM-L6-v2/onnx/model.onnx",
        "embed_worker/models/all-MiniLM-L6-v2/manifest.json",
        "bridge_client/testing/conformance/policy.json",
        "bridge_client/testing/conformance/hostile.json",
        f"{info}/licenses/LICENSE",
    } <= names
    assert {name.split("/")[0] for name in names} == {"embed_worker", "bridge_client", info}
    assert not [name for name in names if "/test_" in name or "__pycache__" in name]


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("embed_worker", "bridge_client"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names


def test_the_description_stands_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        description = archive.read(name).decode().split("\n\n", 1)[1]
    assert description.startswith("# embed-bridge")
    # A package index has none of the repository's files, so a link to one and a picture would be dead.
    assert re.findall(r"\]\(|<img|<a |^\[[^]]+\]: ", description, re.MULTILINE) == []


def test_the_source_archive_holds_what_builds_and_tests_it(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "constraints.txt",
        "docs/package.md",
        "docs/protocol.md",
        "embed_worker/__init__.py",
        "models/all-MiniLM-L6-v2/onnx/model.onnx",
        "tests/walls.py",
        "tests/models/bert-mean/onnx/model.onnx",
        "examples/rust/Cargo.toml",
    } <= names
    unwanted = ("examples/rust/target/", "examples/go/bin/", "examples/node/node_modules/", ".venv")
    assert not [name for name in names if name.startswith(unwanted) or "__pycache__" in name]


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
