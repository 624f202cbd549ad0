"""Every block of docs/recipes.md is run, each where its library is there; and refuses another vector space."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_client import shared_client
from tests.worker.harness import ROOT

pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("default")]
PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")}


def blocks(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


[PRELUDE] = blocks(PAGE.partition("\n## ")[0])


@pytest.fixture(scope="module", autouse=True)
def worker() -> Iterator[None]:
    yield
    shared_client("all-MiniLM-L6-v2").close()


def execute(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, "docs/recipes.md", "exec", dont_inherit=True), names)  # without the annotations of this file


def run(name: str, *, is_compared: bool = True, **given: Any) -> None:
    """Write and read by a recipe, and read once more with the model of another vector space.

    But for those that keep the fingerprint by themselves, for which test_frameworks.py has another folder.
    """
    write, read = blocks(SECTIONS[name])
    names: dict[str, Any] = dict(given)
    for block in (PRELUDE, write, read):
        execute(block, names)
    text, similarity = names["found"]
    assert text.startswith("The recipe needs two eggs")
    assert similarity > 0.6
    if is_compared:
        names["fingerprint"] = "0" * 16
        with pytest.raises(ValueError, match="embed the texts again"):
            execute(read, names)
    for name in ("qdrant", "database"):
        if name in names:
            names[name].close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_qdrant(folder: Path) -> None:
    pytest.importorskip("qdrant_client", reason="Qdrant is not there: make integrations")
    run("Qdrant")


def test_pgvector(folder: Path) -> None:
    for library in ("psycopg", "pgvector"):
        pytest.importorskip(library, reason=f"{library} is not there: make integrations")
    pgserver = pytest.importorskip("pgserver", reason="no PostgreSQL with pgvector is there: make integrations")
    with tempfile.TemporaryDirectory() as data:
        os.chmod(data, 0o755)  # for root, pgserver starts PostgreSQL as a user of its own
        with pgserver.get_server(Path(data) / "data") as server:
            run("pgvector", dsn=server.get_uri())


def test_sqlite_vec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlite_vec", reason="sqlite-vec is not there: make integrations")
    import sqlite3

    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        monkeypatch.setitem(sys.modules, "sqlite3", pytest.importorskip("pysqlite3"))
    run("sqlite-vec")


def test_duckdb(folder: Path) -> None:
    pytest.importorskip("duckdb", reason="DuckDB is not there: make integrations")
    run("DuckDB")


def test_langchain(folder: Path) -> None:
    pytest.importorskip("langchain_core", reason="LangChain is not there: make integrations")
    run("LangChain")


def test_llama_index(folder: Path) -> None:
    pytest.importorskip("llama_index.core", reason="LlamaIndex is not there: make integrations")
    run("LlamaIndex")


def test_chroma(folder: Path) -> None:
    pytest.importorskip("chromadb", reason="Chroma is not there: make integrations")
    run("Chroma", is_compared=False)


def test_lancedb(folder: Path) -> None:
    pytest.importorskip("lancedb", reason="LanceDB is not there: make integrations")
    run("LanceDB", is_compared=False)


def test_every_recipe_is_run() -> None:
    tested = {name.removeprefix("test_").replace("_", "") for name in globals() if name.startswith("test_")}
    told = {name.lower().replace("-", "") for name, section in SECTIONS.items() if blocks(section)} - {
        PAGE.partition("\n")[0].lower().replace("-", "")
    }
    assert told <= tested
