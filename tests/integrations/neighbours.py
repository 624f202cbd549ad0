"""Texts whose neighbours are known, a model that can be swapped, and a second process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.worker.harness import ROOT

DEFAULT_MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
DOCUMENTS = [
    "A vector database finds the nearest rows by the angle between embeddings.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "Rain is expected over the northern hills this weekend.",
    "The central bank raised its interest rate by a quarter of a point.",
]
QUESTIONS = {
    "How does a vector database search for similar embeddings?": 0,
    "Which ingredients are in the recipe with eggs and flour?": 1,
    "Will it rain in the hills on the weekend?": 2,
}


def model_named(name: str, folder: Path, source: Path = DEFAULT_MODEL) -> Path:
    """Put a copy of a model's folder under a name."""
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def other_model(target: Path) -> None:
    """Put another model in the place of one, under the same name: with another limit, vectors are others."""
    config = target / "sentence_bert_config.json"
    config.write_text('{"max_seq_length": 16, "do_lower_case": false}', "utf-8")
    (target / "manifest.json").unlink(missing_ok=True)


def in_a_second_process(source: str, *arguments: str) -> str:
    """Run Python there; return what it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2]
