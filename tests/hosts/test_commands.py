"""Every command and every Python block of the pages is run here, or by another test, or has a reason why it is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "walks.md"),  # tests/hosts/test_walks.py
    *sorted((ROOT / "examples").glob("*/README.md")),
]
_PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*"
    r"(embed-\w+|make|pip|python3?|npm|go|cargo|llm|uv|echo|printf|yes|jq|paste|cd|git|command|docker) "
)

# What is not run here, by how it begins, and the test that runs it or the reason why nothing does.
ELSEWHERE = {
    r"git clone ": "no public address is known to the repository",
    r"(.*/)?pip install |npm install |uv |pipx |python -m venv ": "would install into the machine that runs the tests",
    r"embed-worker pull |HF_ENDPOINT=": "needs the hub; tests/worker/test_pull.py has one of its own",
    r"onnx-export/|SentenceTransformer\(|embed-worker check out/name": "needs torch, gigabytes of it",
    r"embed-worker check bge-small-en-v1.5": "needs the published weights; tests/worker/test_check.py",
    r"embed-worker quantize ": "measures for long; tests/worker/test_quantize.py",
    r"make ": "the two commands of every change, or a suite of its own",
    r"embed-worker check --provider coreml|embed-worker --coreml|embed-worker --provider mlx": "needs a Mac",
    r"python -m bridge_client\.testing\.conformance|cd \.\./\.\. ": "tests/conformance/test_conformance.py",
    r"go |npm |EMBED_BRIDGE_PYTHON=|cargo |yes \| head -5 \| cargo": "`make clients` builds and tests them",
    r"llm ": "tests/integrations/test_llm.py",
    r"\.venv/bin/|pre-commit ": "a contributor's own; `make lint` and `make test` run the same tools",
    r"sudo |systemd-analyze |curl ": "writes to the system's folders; `make deploy-check` reads the unit",
    r"(.*\| )?docker ": "no container daemon may be expected where the tests run",
}

# Python blocks that are not run here; the number counts the blocks of its page.
BLOCKS_ELSEWHERE = {
    "engines.md": "tests/integrations/test_frames.py and its neighbours",
    "recipes.md": "tests/integrations/test_recipes.py",
    "models.md": "needs torch",
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="there is no bash")


def commands_of(page: Path) -> list[str]:
    """Return the lines of a page's blocks that are commands, without their comments."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if language not in ("", "console", "sh"):
            continue
        for line in block.splitlines():
            command = line.removeprefix("$ ")
            if line.startswith("$ ") if language == "console" else _PROGRAM.match(f"{command} "):
                found.append(re.sub(r"\s{2,}# .*", "", command).rstrip())
    return found


def is_of_the_tour(page: Path, command: str) -> bool:
    """Whether tests/hosts/test_shell.py runs it: the README's section for shells, line by line."""
    section = page.read_text("utf-8").partition("## Debugging from a shell")[2].partition("\n## ")[0]
    return f"$ {command}" in section


COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]
RUN = sorted(
    {
        command
        for page, command in COMMANDS
        if not any(re.match(start, command) for start in ELSEWHERE) and not is_of_the_tour(page, command)
    }
)


def test_every_reason_is_needed() -> None:
    assert len(COMMANDS) > 60
    for start in ELSEWHERE:
        assert any(re.match(start, command) for _, command in COMMANDS) or "docker" in start, start
    for reason in ELSEWHERE.values():
        for test in re.findall(r"tests/[\w/]+\.py", reason):
            assert (ROOT / test).exists(), test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: models under the names of the pages, and the files that the pages talk of."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("bge-small-en-v1.5", "e5-small-v2", "my-model"):
        shutil.copytree(MODELS / "bert-mean", folder / name)
    texts = ["a cat", "a dog", "a house"]
    (folder / "corpus.txt").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    shutil.copy(folder / "corpus.txt", folder / "texts.txt")
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    for name in ("corpus.jsonl", "requests.jsonl"):
        lines = rows if name == "corpus.jsonl" else [{"inputs": text} for text in texts]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "shards").mkdir()
    pq.write_table(pa.table({"id": [1, 2, 3], "body": texts}), folder / "shards" / "0.parquet")
    pq.write_table(pa.table({"text": [text * 500 for text in texts]}), folder / "books.parquet")
    np.save(folder / "old.npy", np.eye(3, 384, dtype=np.float32))
    for name, program in {"embed-worker": "embed_worker", "embed-lockstep": "bridge_client.lockstep"}.items():
        wrapper = folder / "bin" / name
        wrapper.parent.mkdir(exist_ok=True)
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m {program} "$@"\n', "utf-8")
        wrapper.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "EMBED_WORKER_MODELS": str(folder),
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_something_and_ends_well(command: str, folder: Path, environment: dict[str, str]) -> None:
    if re.search(r"\bjq\b", command) and shutil.which("jq") is None:
        pytest.skip("there is no jq")
    command = command.replace(" DIR", f" {ROOT / 'tests' / 'exported' / 'mpnet'} --output exported")
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in BLOCKS_ELSEWHERE], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page: Path, folder: Path, environment: dict[str, str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    if not blocks:
        return
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr.decode()
