"""examples/llm-embed-bridge as a package, used by the real `llm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.neighbours import DOCUMENTS, QUESTIONS, model_named, other_model
from tests.worker.harness import ROOT

pytest.importorskip("llm", reason="llm is not there: make integrations")
pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("default")]
MODEL = "embed-bridge/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package into a folder of its own, as it is."""
    target = tmp_path_factory.mktemp("site")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run(
        [sys.executable, "-m", *install, str(ROOT / "examples" / "llm-embed-bridge")],
        check=True,
        timeout=120,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    return target


class Llm:
    """The command, with a folder of its own for its databases."""

    def __init__(self, installed: Path, user: Path, models: Path) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)]),
            "LLM_USER_PATH": str(user),
            "EMBED_WORKER_MODELS": str(models),
        }

    def run(self, *arguments: str, text: str = "", status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            input=text,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr


@pytest.fixture
def llm(installed: Path, tmp_path: Path) -> Llm:
    (tmp_path / "user").mkdir()
    return Llm(installed, tmp_path / "user", tmp_path / "models")


def rows() -> str:
    return json.dumps([{"id": str(number), "text": text} for number, text in enumerate(DOCUMENTS)])


def test_what_was_embedded_is_found(llm: Llm) -> None:
    assert MODEL in llm.run("embed-models")
    llm.run("embed-multi", "texts", "-", "--format", "json", "-m", MODEL, "--store", text=rows())
    for question, right in QUESTIONS.items():
        found = [json.loads(line) for line in llm.run("similar", "texts", "-n", "2", "-c", question).splitlines()]
        assert [found[0]["id"], found[0]["content"]] == [str(right), DOCUMENTS[right]]
        assert found[0]["score"] > 0.6
        assert found[1]["score"] < 0.4


def test_models_in_a_cache_of_the_hub_are_listed_by_their_names(llm: Llm, tmp_path: Path) -> None:
    (tmp_path / "models" / "models--org--cached" / "snapshots").mkdir(parents=True)
    assert "embed-bridge/cached" in llm.run("embed-models")


def test_a_folder_that_was_swapped_under_the_same_name_is_refused(llm: Llm, tmp_path: Path) -> None:
    folder = model_named("mine", tmp_path / "models")
    llm.run("embed-multi", "texts", "-", "--format", "json", "-m", "embed-bridge/mine", text=rows())
    noted = tmp_path / "user" / "embed-bridge.json"
    fingerprint = json.loads(noted.read_text("utf-8"))["mine"]
    other_model(folder)
    refused = llm.run("similar", "texts", "-c", "a river", status=1)
    assert fingerprint in refused
    assert str(noted) in refused
    noted.unlink()
    assert llm.run("similar", "texts", "-n", "1", "-c", "a river")
