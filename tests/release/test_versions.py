"""The version stands in one place, and a release is refused where another says something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.release.versions import ROOT, disagreements, package_version

FILES = (
    "embed_worker/__init__.py",
    "examples/rust/Cargo.toml",
    "examples/rust/Cargo.lock",
    "examples/node/package.json",
    "examples/node/package-lock.json",
    "examples/llm-embed-bridge/pyproject.toml",
    "CHANGELOG.md",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_every_place_states_the_packages_version() -> None:
    assert disagreements(ROOT) == []


@pytest.mark.parametrize("name", FILES[1:])
def test_a_place_that_was_forgotten_is_named(copy: Path, name: str) -> None:
    version = package_version(copy)
    text = (copy / name).read_text("utf-8")
    (copy / name).write_text(text.replace(version, "9.9.9"), "utf-8")
    assert any(name in sentence and "9.9.9" in sentence for sentence in disagreements(copy))


def test_a_tag_must_be_the_packages_and_its_entry_dated(copy: Path) -> None:
    version = package_version(copy)
    (copy / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version} (2026-12-24)\n", "utf-8")
    assert disagreements(copy, f"v{version}") == []
    assert disagreements(copy, "v0.0.1") == [f"the tag is v0.0.1, the package's would be v{version}"]
    (copy / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version}, not yet released\n", "utf-8")
    (told,) = disagreements(copy, f"v{version}")
    assert "has no date" in told
