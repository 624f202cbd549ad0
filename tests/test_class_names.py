"""A class name means one thing in a package: who searches for it finds one class."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping

from tests import walls
from tests.worker.harness import ROOT


def sources() -> dict[str, str]:
    """Return the text of every module of both packages, by its dotted name."""
    return {name: path.read_text("utf-8") for name, path in walls.modules(ROOT).items()}


def doubles(texts: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """Return the modules of each class name that a package has twice, by (package, name); nested classes count."""
    homes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                homes[module.partition(".")[0], node.name].append(module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_a_class_name_stands_once_in_a_package() -> None:
    assert doubles(sources()) == {}


def test_a_planted_double_is_found() -> None:
    texts = sources()
    planted = "embed_worker.tools.export"
    texts[planted] += "\ndef lazy():\n    class Answers:\n        pass\n"
    texts["bridge_client.exits"] += "\nclass Answers:\n    pass\n"  # one of the other package is no double
    assert doubles(texts) == {("embed_worker", "Answers"): ["embed_worker.serving.answers", planted]}
