"""The programs on top of the Rust client, as a user runs them: the vector store, and the provider."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_client.testing import fake_command
from tests.client.conftest import WAIT_S
from tests.hosts.adapters import EXE, ROOT

BINARY = ROOT / f"examples/rust/target/release/examples/vector-store{EXE}"
REAL_WORKER = (sys.executable, "-m", "embed_worker", "--supervised")
FACTS = (
    "The battery lasts about ten hours on a single charge.",
    "Our refund policy: return the item within 30 days and the price is repaid in full.",
    "Parcels leave our warehouse on the day of the order.",
)

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason="the Rust client is not built: make clients")


def vector_store(*arguments: str, queries: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(BINARY), *arguments]
    return subprocess.run(command, cwd=ROOT, input=queries, capture_output=True, text=True, timeout=WAIT_S)


def test_the_vector_store_finds_texts_by_their_meaning(tmp_path: Path) -> None:
    file = tmp_path / "facts.txt"
    file.write_text("".join(f"{fact}\n" for fact in FACTS), "utf-8")
    worker = ("--", *REAL_WORKER)

    asked = vector_store(str(file), "--query", "how do I get my money back?", "--top", "2", *worker)
    assert asked.returncode == 0, asked.stderr
    hits = [re.split(r" +", line.strip(), maxsplit=2) for line in asked.stdout.splitlines() if line]
    assert hits[0][1:] == ["2", FACTS[1]], "the number of the line, and the line"
    similarities = [float(similarity) for similarity, _, _ in hits]
    assert len(hits) == 2
    assert 1.0 > similarities[0] > similarities[1]

    told = vector_store(str(file), "--top", "1", *worker, queries=f"when is it shipped?\n{FACTS[0]}\n")
    assert told.returncode == 0, told.stderr
    lines = [line for line in told.stdout.splitlines() if line]
    assert lines[0].endswith(FACTS[2])
    assert lines[1].split() == ["1.0000", "1", *FACTS[0].split()]


def test_the_vector_store_says_what_is_wrong_with_its_exit_status(tmp_path: Path) -> None:
    file = tmp_path / "fact.txt"
    file.write_text(f"{FACTS[0]}\n", "utf-8")
    for status, arguments, complaint in (
        (2, (), "no FILE"),
        (2, (str(file), "--topp", "3"), "unknown option --topp"),
        (1, (str(tmp_path / "missing.txt"),), "missing.txt"),
        (1, (str(file), "--", *fake_command(fail_start=78)), "told to fail"),
    ):
        ended = vector_store(*arguments)
        assert ended.returncode == status, ended.stderr
        assert complaint in ended.stderr
        assert ended.stdout == ""


def test_the_provider_of_a_database_serves_a_model_by_its_name() -> None:
    command = [str(BINARY.with_name(f"provider{EXE}")), *REAL_WORKER]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert told.returncode == 0, told.stderr
    model, vectors = told.stdout.splitlines()
    assert model.startswith("all-MiniLM-L6-v2: 384 dimensions")
    assert vectors.startswith("2 vectors of all-MiniLM-L6-v2")
