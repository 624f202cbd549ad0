"""What the metadata ask for: floors that are tried, no ceilings, and the tested versions with their hashes."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.release.versions import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text("utf-8")
EXTRAS = PROJECT["optional-dependencies"]
# Frameworks and databases are tested as they come, by `make integrations`.
UNPINNED = {"langchain", "llama-index", "chroma", "lancedb", "bench"}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


def requirements() -> list[str]:
    every = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    return [requirement for requirement in every if name_of(requirement) != "embed-bridge"]


def pinned() -> dict[str, str]:
    """Return the pins by name; of several, that of the lowest Python, which is the one that runs the tests."""
    lines = [line for line in CONSTRAINTS.splitlines() if re.match(r"\w.*==", line)]
    return {name_of(line): line.split("==")[1].split()[0] for line in reversed(lines)}


def test_every_requirement_has_a_floor_and_nothing_else() -> None:
    for requirement in requirements():
        versions = requirement.split(";")[0].strip()
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=\d+(\.\d+)*", versions), requirement


def test_the_tested_versions_cover_what_the_metadata_ask_for() -> None:
    asked = {name_of(one): one for extra, every in EXTRAS.items() if extra not in UNPINNED for one in every}
    asked |= {name_of(one): one for one in PROJECT["dependencies"]}
    asked.pop("embed-bridge")
    for name, requirement in asked.items():
        assert name in pinned(), f"make constraints: no {name}"
        floor = re.findall(r">=([\d.]+)", requirement)[0]
        assert numbers(pinned()[name]) >= numbers(floor), name


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*\d", version)[0].split("."))  # type: ignore[index]


def test_every_pin_has_hashes_and_no_address() -> None:
    entries = re.split(r"\n(?=\w)", CONSTRAINTS.split("\n", 2)[2])
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in CONSTRAINTS


def test_the_page_on_support_states_the_floors_and_the_tested_versions() -> None:
    page = (ROOT / "docs" / "support.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+ \| [\d.]+) \|", page, re.MULTILINE))
    for requirement in PROJECT["dependencies"]:
        name = name_of(requirement)
        assert rows[name] == f"{requirement.split('>=')[1]} | {pinned()[name]}", f"docs/support.md: {name}"


@pytest.mark.skipif(not (ROOT / ".gitignore").exists(), reason="an sdist has no .gitignore")
def test_what_git_passes_over_does_not_go_into_an_image() -> None:
    ignored = [line for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    # Without a slash in its middle a pattern of git's is for every folder, and one of Docker's for the root.
    wanted = [line.strip("/") if "/" in line.rstrip("/") else f"**/{line.strip('/')}" for line in ignored]
    assert set(wanted) < set((ROOT / ".dockerignore").read_text("utf-8").splitlines())
