"""Who may import what in the two packages: one table, and the reading of imports that holds the code to it.

Every import counts: at the top of a file, inside a function, and under `TYPE_CHECKING`. A *part* is a folder of
`embed_worker`, one of its files, or a folder of `bridge_client`. The picture in docs/architecture.md is this table.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("embed_worker", "bridge_client")

# What each part may import besides itself. The version in `embed_worker/__init__.py` is everybody's.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    part: frozenset(others.split())
    for part, others in {
        "protocol": "",
        "machine": "",
        "atomic": "",
        "config": "protocol",
        "errors": "protocol",
        "logs": "config errors",
        "model_files": "protocol config errors machine atomic",
        "arguments": "config errors protocol model_files",
        "inference": "config errors machine model_files",
        "encoders": "config errors machine model_files inference",
        "accelerators": "config errors machine model_files inference encoders atomic",
        "loading": "config errors machine model_files inference accelerators",
        "serving": "protocol config errors machine model_files",
        "tools": "protocol config errors machine arguments model_files inference encoders accelerators loading atomic",
        "__main__": "protocol config errors logs machine arguments model_files loading serving",
        "bridge_client": "protocol machine",
        "bridge_client.testing": "protocol machine bridge_client",
        "bridge_client.bulk": "bridge_client atomic",
        "bridge_client.integrations": "bridge_client",
        "bridge_client.lockstep": "protocol machine config errors logs arguments model_files serving bridge_client",
    }.items()
}
# What a part may name under `TYPE_CHECKING` besides: it never loads it.
MAY_NAME: Mapping[str, frozenset[str]] = {
    "serving": frozenset({"inference"}),
    "__main__": frozenset({"inference"}),
}
# Who imports by a name that is put together while running: commands by their names, and what a package has on demand.
IMPORTS_BY_NAME = frozenset({"embed_worker.__main__", "embed_worker.tools.embed", "bridge_client"})


@dataclass(frozen=True, slots=True)
class Import:
    """One file imports another of ours, or a package of somebody else's (`target` is its dotted name then)."""

    source: str
    target: str
    for_types: bool
    line: int


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the two packages by its dotted name, at any depth."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """Return every import of the two packages; a name imported from a module counts as the module."""
    ours = modules(root)
    names = frozenset(ours)
    return [found for name, path in ours.items() for found in _imports_of(name, path.read_text("utf-8"), names)]


@functools.cache  # the test that plants imports reads nearly the same files again and again
def _imports_of(name: str, source: str, ours: frozenset[str]) -> tuple[Import, ...]:
    return tuple(_read_imports(name, ast.parse(source), ours))


def _read_imports(name: str, tree: ast.AST, ours: frozenset[str]) -> Iterator[Import]:
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                targets = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str() as module, level=0):
                deeper = [f"{module}.{alias.name}" for alias in node.names]
                targets = [full if full in ours else module for full in deeper]
            case ast.ImportFrom():
                raise AssertionError(f"{name} has a relative import")
            case _:
                continue
        for target in dict.fromkeys(targets):
            yield Import(name, target, id(node) in for_types, node.lineno)


def part_of(module: str) -> str:
    """Return the part that a module of ours belongs to; the packages themselves are parts of their own."""
    package, *inner = module.split(".")
    if package == "embed_worker":
        return inner[0] if inner else package
    return f"{package}.{inner[0]}" if inner and f"{package}.{inner[0]}" in MAY_IMPORT else package


def trespasses(root: Path) -> list[str]:
    """Return one sentence for each import that the table forbids."""
    found = []
    for entry in imports(root):
        source, target = part_of(entry.source), part_of(entry.target)
        if entry.target.partition(".")[0] not in PACKAGES or target == source or entry.target == "embed_worker":
            continue
        allowed = MAY_IMPORT.get(source, frozenset()) | (
            MAY_NAME.get(source, frozenset()) if entry.for_types else set()
        )
        if target not in allowed:
            found.append(f"{entry.source} line {entry.line} imports {entry.target}: {source} may not import {target}")
    return found


def file_graph(root: Path) -> dict[str, set[str]]:
    """Return which module imports which of ours."""
    ours = modules(root)
    graph: dict[str, set[str]] = {name: set() for name in ours}
    for entry in imports(root):
        if entry.target in ours and entry.target != entry.source:
            graph[entry.source].add(entry.target)
    return graph


def folder_graph(root: Path) -> dict[str, set[str]]:
    """Return which part imports which, and inside the parts which folder imports which."""
    graph: dict[str, set[str]] = {}
    for source, targets in file_graph(root).items():
        for target in targets - {"embed_worker"}:  # the version
            here, there = _folders(source, target, root)
            if here != there:
                graph.setdefault(here, set()).add(there)
                graph.setdefault(there, set())
    return graph


def _folders(source: str, target: str, root: Path) -> tuple[str, str]:
    """Return where two modules part ways: the first folder, or file, in which their paths differ."""
    names = []
    for module in (source, target):
        path = root.joinpath(*module.split("."))
        names.append([*module.split("."), *(["__init__"] if path.is_dir() else [])])
    for depth, (here, there) in enumerate(zip(*names, strict=False), 1):
        if here != there:
            return ".".join(names[0][:depth]), ".".join(names[1][:depth])
    return source, source


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of a graph, its first name again at the end; empty where there is none."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        if found := _search(graph, start, path, done):
            return found
    return []


def _search(graph: Mapping[str, set[str]], node: str, path: list[str], done: set[str]) -> list[str]:
    if node in path:
        return [*path[path.index(node) :], node]
    if node in done:
        return []
    path.append(node)
    for target in sorted(graph.get(node, ())):
        if found := _search(graph, target, path, done):
            return found
    path.pop()
    done.add(node)
    return []


def picture() -> str:
    """Return the table as a Mermaid graph: an arrow from a folder to what it may import, without what follows."""
    folders = {part: sorted(others) for part, others in MAY_IMPORT.items()}
    reduced = {
        part: [other for other in others if not any(other in _reach(folders, third) for third in others)]
        for part, others in folders.items()
    }
    lines = [f"    {part} --> {' & '.join(others)}" for part, others in reduced.items() if others]
    lines += [f"    {part} -. types .-> {other}" for part, others in MAY_NAME.items() for other in sorted(others)]
    return "\n".join(["graph TD", *lines])


def _reach(folders: Mapping[str, list[str]], part: str) -> set[str]:
    found: set[str] = set()
    for other in folders.get(part, []):
        found |= {other} | _reach(folders, other)
    return found
