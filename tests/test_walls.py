"""The walls between the folders stand, and the test that says so falls when one is broken."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests import walls
from tests.worker.harness import ROOT


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of both packages, to be broken."""
    root = tmp_path_factory.mktemp("sources")
    for name, path in walls.modules(ROOT).items():
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        assert name in walls.modules(root)
    return root


def test_nobody_imports_what_the_table_forbids() -> None:
    assert walls.trespasses(ROOT) == []


def test_every_part_stands_in_the_table() -> None:
    parts = {walls.part_of(name) for name in walls.modules(ROOT)} - {"embed_worker"}
    assert parts == set(walls.MAY_IMPORT)


@pytest.mark.parametrize("graph", [walls.file_graph, walls.folder_graph], ids=["files", "folders"])
def test_nothing_imports_in_a_circle(graph: object) -> None:
    assert callable(graph)
    assert walls.circle(graph(ROOT)) == []


def test_the_table_itself_has_no_circle() -> None:
    assert walls.circle({part: set(others) for part, others in walls.MAY_IMPORT.items()}) == []


def test_a_level_has_no_more_names_than_can_be_taken_in() -> None:
    names = [path.name for path in (ROOT / "embed_worker").iterdir() if path.name != "__pycache__"]
    assert len(names) <= 17


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("embed_worker.protocol", "import embed_worker.errors"),
        ("embed_worker.serving.lanes", "from embed_worker.inference import engine"),
        ("embed_worker.serving.stdio", "from embed_worker import loading"),
        ("embed_worker.model_files.manifest", "from embed_worker.inference.pooling import pool"),
        ("embed_worker.inference.engine", "from embed_worker.accelerators import choose"),
        ("embed_worker.accelerators.coreml.child", "from embed_worker.tools import export"),
        ("embed_worker.accelerators.mlx.backend", "from embed_worker.__main__ import main"),
        ("embed_worker.tools.pull.hub", "from embed_worker.serving.server import Server"),
        ("embed_worker.tools.export", "import bridge_client"),
        ("bridge_client.exits", "from embed_worker.errors import ModelError"),
        ("bridge_client.client", "from bridge_client.testing import fake_worker"),
    ],
)
@pytest.mark.parametrize("form", ["{line}", "def lazy():\n    {line}", "if TYPE_CHECKING:\n    {line}"])
def test_a_forbidden_import_is_found_wherever_it_is_planted(copy: Path, module: str, line: str, form: str) -> None:
    if module == "embed_worker.serving.lanes" and "TYPE_CHECKING" in form:
        pytest.skip("serving may name inference for types")
    path = walls.modules(copy)[module]
    before = path.read_text("utf-8")
    try:
        path.write_text(f"{before}\n{form.format(line=line)}\n", "utf-8")
        assert [found for found in walls.trespasses(copy) if found.startswith(module)]
    finally:
        path.write_text(before, "utf-8")


@pytest.mark.parametrize("folder", ["embed_worker/serving/deep/deeper", "bridge_client/deep"])
def test_a_file_is_held_to_the_table_at_any_depth(copy: Path, folder: str) -> None:
    path = copy / folder / "planted.py"
    path.parent.mkdir(parents=True)
    try:
        path.write_text("def lazy():\n    import embed_worker.tools.check\n", "utf-8")
        assert len(walls.trespasses(copy)) == 1
    finally:
        shutil.rmtree(path.parent)


def test_a_planted_circle_is_found(copy: Path) -> None:
    path = walls.modules(copy)["embed_worker.model_files.plan"]
    before = path.read_text("utf-8")
    try:
        path.write_text(f"{before}\ndef lazy():\n    from embed_worker.model_files import folder\n", "utf-8")
        found = walls.circle(walls.file_graph(copy))
        assert {"embed_worker.model_files.plan", "embed_worker.model_files.folder"} <= set(found)
    finally:
        path.write_text(before, "utf-8")


def test_modules_are_imported_by_a_made_up_name_only_where_commands_are_called() -> None:
    users = set()
    for name, path in walls.modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                users.add(name)
    assert users == walls.IMPORTS_BY_NAME


def test_the_picture_in_the_docs_is_the_table() -> None:
    assert walls.picture() in (ROOT / "docs" / "architecture.md").read_text("utf-8")
