"""One version everywhere: what the packages, their locks and the changelog say, against `embed_worker.__version__`.

`python -m tests.release.versions` compares them; with `v0.2.0` behind it, it compares that tag, too, and wants the
changelog's entry to have a date. Needs nothing but Python: a release asks before it installs anything.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_DATED = re.compile(r"\d+\.\d+\.\d+ \(\d{4}-\d{2}-\d{2}\)")


def package_version(root: Path) -> str:
    """Return the version of the package, which is the one that counts.

    Raises:
        ValueError: The file states none.
    """
    text = (root / "embed_worker" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("embed_worker/__init__.py states no version")
    return found[1]


def stated_versions(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, version) for every other place that states the version."""
    rust, node = root / "examples" / "rust", root / "examples" / "node"
    yield "examples/rust/Cargo.toml", tomllib.loads((rust / "Cargo.toml").read_text("utf-8"))["package"]["version"]
    for package in tomllib.loads((rust / "Cargo.lock").read_text("utf-8"))["package"]:
        if package["name"] == "embed-bridge":
            yield "examples/rust/Cargo.lock", package["version"]
    yield "examples/node/package.json", json.loads((node / "package.json").read_text("utf-8"))["version"]
    lock = json.loads((node / "package-lock.json").read_text("utf-8"))
    yield "examples/node/package-lock.json", lock["version"]
    yield "examples/node/package-lock.json, its root package", lock["packages"][""]["version"]
    plugin = tomllib.loads((root / "examples" / "llm-embed-bridge" / "pyproject.toml").read_text("utf-8"))
    yield "examples/llm-embed-bridge/pyproject.toml", plugin["project"]["version"]
    yield "CHANGELOG.md, its first entry", re.split(r"[ ,]", first_entry(root))[0]


def first_entry(root: Path) -> str:
    """Return the heading of the changelog's first entry, such as `0.2.0 (2026-12-24)`."""
    found = re.search(r"^## (.+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else ""


def disagreements(root: Path, tag: str | None = None) -> list[str]:
    """Return a sentence for each place that says something else than the package.

    Args:
        root: Of the checkout.
        tag: The tag of a release, if this is one.
    """
    version = package_version(root)
    told = [
        f"{where} says {other}, the package {version}" for where, other in stated_versions(root) if other != version
    ]
    if tag is not None:
        if tag != f"v{version}":
            told.append(f"the tag is {tag}, the package's would be v{version}")
        if not _DATED.fullmatch(first_entry(root)):
            told.append(
                f"the first entry of CHANGELOG.md has no date: {first_entry(root)}; write {version} (YYYY-MM-DD)"
            )
    return told


def main(arguments: list[str]) -> int:
    """Print what disagrees; return the exit status."""
    told = disagreements(ROOT, arguments[0] if arguments else None)
    print("\n".join(told) or f"{package_version(ROOT)} everywhere")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
