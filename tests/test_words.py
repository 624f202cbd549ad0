"""The words of the two packages: one class for a name, docstrings that say "Return", messages without a full stop."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping

import pytest

from tests import walls
from tests.worker.harness import ROOT

SAYS = {"print", "error", "warning", "info", "debug", "exception", "critical", "log"}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Return every module of both packages, by its dotted name."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in walls.modules(ROOT).items()}


def doubles(trees: Mapping[str, ast.Module]) -> dict[tuple[str, str], list[str]]:
    """Return the modules of each class name that a package has twice, by (package, name); nested classes count."""
    homes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[module.partition(".")[0], node.name].append(module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def stopped(tree: ast.Module) -> Iterator[str]:
    """Yield the messages that are raised, logged or printed and end with a full stop."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) and not (isinstance(node, ast.Call) and _says(node.func)):
            continue
        strings = [inner for inner in ast.walk(node) if isinstance(inner, ast.JoinedStr | ast.Constant)]
        parts = {id(part) for string in strings if isinstance(string, ast.JoinedStr) for part in string.values}
        for string in strings:
            last = string.values[-1] if isinstance(string, ast.JoinedStr) and string.values else string
            is_whole = id(string) not in parts and ast.unparse(string) not in ("'.'", "'...'")
            if is_whole and isinstance(last, ast.Constant) and str(last.value).endswith("."):
                yield ast.unparse(string)


def _says(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in SAYS or name.endswith(("Error", "_refuse"))


def otherwise_begun(tree: ast.Module) -> Iterator[str]:
    """Yield the first lines of docstrings of functions that return something and call it giving, telling or saying."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            line = (ast.get_docstring(node) or "").partition("\n")[0]
            if ast.unparse(node.returns) not in ("None", "NoReturn") and line.startswith(("Give ", "Tell ", "Say ")):
                yield line


def test_a_class_name_stands_once_in_a_package(trees: dict[str, ast.Module]) -> None:
    assert doubles(trees) == {}


def test_a_planted_double_is_found(trees: dict[str, ast.Module]) -> None:
    planted = {
        "embed_worker.tools.export": ast.parse("def lazy():\n    class Answers:\n        pass\n"),
        "bridge_client.exits": ast.parse("class Answers:\n    pass\n"),  # one of the other package is no double
    }
    found = doubles(trees | planted)
    assert sorted(found[("embed_worker", "Answers")]) == ["embed_worker.serving.answers", "embed_worker.tools.export"]
    assert ("bridge_client", "Answers") not in found


def test_no_message_ends_with_a_full_stop(trees: dict[str, ast.Module]) -> None:
    assert [(name, message) for name, tree in trees.items() for message in stopped(tree)] == []


@pytest.mark.parametrize(
    "planted",
    ['raise ModelError("it is gone.")', 'raise ModelError(f"{name} is {what}.")', '_log.warning("%s is gone.", name)'],
)
def test_a_planted_full_stop_is_found(planted: str) -> None:
    assert list(stopped(ast.parse(planted)))


def test_docstrings_say_what_is_returned(trees: dict[str, ast.Module]) -> None:
    assert [(name, line) for name, tree in trees.items() for line in otherwise_begun(tree)] == []
    assert list(otherwise_begun(ast.parse('def f() -> int:\n    """Give a number."""'))) == ["Give a number."]
