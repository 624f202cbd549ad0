"""A folder's manifest: what it lists, what it refuses, and which files are not hashed twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from embed_worker.config import Verify
from embed_worker.machine import cache_dir
from embed_worker.model_files import manifest as module
from embed_worker.model_files.manifest import FileRecord, Manifest, ManifestError, file_sha256, verify

HELLO = hashlib.sha256(b"hello").hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, which does not exist yet."""
    folder = tmp_path / "cache" / "embed-bridge"
    monkeypatch.setattr(module, "cache_dir", lambda: folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder, without a manifest."""
    model = tmp_path / "model"
    (model / "onnx").mkdir(parents=True)
    (model / "onnx" / "model.onnx").write_bytes(b"graph")
    (model / "config.json").write_bytes(b"hello")
    return model


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed."""
    names: list[str] = []

    def counted(file: Path) -> str:
        names.append(file.name)
        return file_sha256(file)

    monkeypatch.setattr(module, "file_sha256", counted)
    return names


def manifest_of(folder: Path) -> Manifest:
    return Manifest.of_folder(folder, name="tiny", source="a test", license="MIT")


def write_manifest(folder: Path, **changes: Any) -> None:
    document = {"format": 1, "name": "tiny", "source": "a test", "license": "MIT", "files": {}} | changes
    (folder / "manifest.json").write_text(json.dumps(document))


def test_a_manifest_lists_every_file_but_itself_sorted_with_posix_paths(folder: Path) -> None:
    (folder / "manifest.json").write_text("an old one")
    manifest = manifest_of(folder)
    assert list(manifest.files) == ["config.json", "onnx/model.onnx"]
    assert manifest.files["config.json"] == FileRecord(sha256=HELLO, size=5)


def test_hidden_files_are_not_listed(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "onnx" / ".DS_Store").write_text("x")
    assert list(manifest_of(folder).files) == ["config.json", "onnx/model.onnx"]


def test_what_is_written_is_read_back_and_names_no_place_on_this_machine(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(folder)
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    text = (folder / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert list(json.loads(text)) == ["format", "name", "source", "license", "files"]
    assert sorted(os.listdir(folder)) == ["config.json", "manifest.json", "onnx"]


def test_a_folder_without_a_manifest_has_none(folder: Path) -> None:
    assert Manifest.read(folder) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1, "name": "a", "source": "b", "license": "c"}',
        b'{"format": 1, "name": "a", "source": "b", "license": "c", "files": []}',
        b'{"format": 1, "name": 1, "source": "b", "license": "c", "files": {}}',
        b'{"format": 2, "name": "a", "source": "b", "license": "c", "files": {}}',
    ],
)
def test_what_is_no_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"^manifest\.json "):
        Manifest.read(folder)


def test_a_manifest_that_is_a_folder_is_refused(folder: Path) -> None:
    (folder / "manifest.json").mkdir()
    with pytest.raises(ManifestError, match=r"^manifest\.json cannot be read: "):
        Manifest.read(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files here")
def test_a_manifest_that_is_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(ManifestError, match=r"^manifest\.json is not a regular file"):
        Manifest.read(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files here")
def test_a_listed_file_that_is_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    write_manifest(folder, files={"pipe": {"sha256": hashlib.sha256().hexdigest(), "size": 0}})
    with pytest.raises(ManifestError, match=r"^pipe is not a regular file"):
        verify(folder, Manifest.read(folder) or manifest_of(folder), Verify.ALWAYS)


def test_a_manifest_that_is_a_pointer_of_git_lfs_is_told_for_what_it_is(folder: Path) -> None:
    (folder / "manifest.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ManifestError, match=r"^manifest\.json is a Git LFS pointer"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"sha256": HELLO},
        {"sha256": HELLO.upper(), "size": 5},
        {"sha256": HELLO[:-1], "size": 5},
        {"sha256": HELLO + "\n", "size": 5},
        {"sha256": HELLO, "size": -1},
        {"sha256": HELLO, "size": 5.0},
        {"sha256": HELLO, "size": True},
    ],
)
def test_a_record_without_hash_and_size_is_refused(folder: Path, record: Any) -> None:
    write_manifest(folder, files={"config.json": record})
    with pytest.raises(ManifestError, match=r"'config\.json'"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../other/config.json",
        "onnx/../../config.json",
        "/etc/passwd",
        "onnx//model.onnx",
        "./config.json",
        "config.json/",
        "C:/config.json",
        "C:config.json",
        "onnx\\model.onnx",
        "\\\\host\\share\\x",
        "config\0.json",
        "config\n.json",
        "\ud800",
    ],
)
def test_a_path_that_could_leave_the_folder_is_refused(folder: Path, path: str) -> None:
    write_manifest(folder, files={path: {"sha256": HELLO, "size": 5}})
    with pytest.raises(ManifestError, match=r"not a path inside the folder|is not text"):
        Manifest.read(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be made on Windows")
def test_a_file_whose_name_cannot_be_listed_is_refused(folder: Path) -> None:
    (folder / "back\\slash").write_text("x")
    with pytest.raises(ManifestError, match="not a path inside the folder"):
        manifest_of(folder)


@pytest.mark.parametrize("mode", [Verify.AUTO, Verify.ALWAYS])
def test_a_whole_folder_passes_and_unlisted_files_are_no_error(folder: Path, mode: Verify) -> None:
    manifest = manifest_of(folder)
    (folder / "notes.txt").write_text("mine")
    verify(folder, manifest, mode)
    verify(folder, manifest, mode)


@pytest.mark.parametrize("mode", [Verify.AUTO, Verify.ALWAYS])
def test_damage_names_the_file(folder: Path, mode: Verify) -> None:
    manifest = manifest_of(folder)
    graph = folder / "onnx" / "model.onnx"
    graph.write_bytes(b"grapH")
    with pytest.raises(ManifestError, match=r"^onnx/model\.onnx is not the file of its manifest: its SHA-256 is "):
        verify(folder, manifest, mode)
    graph.write_bytes(b"grap")
    with pytest.raises(ManifestError, match=r"^onnx/model\.onnx .* has 4 bytes and not 5"):
        verify(folder, manifest, mode)
    graph.unlink()
    with pytest.raises(ManifestError, match=r"^onnx/model\.onnx is missing"):
        verify(folder, manifest, mode)
    shutil.rmtree(folder / "onnx")
    (folder / "onnx").write_text("a file now")
    with pytest.raises(ManifestError, match=r"^onnx/model\.onnx is missing"):
        verify(folder, manifest, mode)


def test_a_listed_file_that_is_a_folder_is_refused(folder: Path) -> None:
    manifest = manifest_of(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ManifestError, match=r"^config\.json "):
        verify(folder, manifest, Verify.ALWAYS)


def test_mode_never_looks_at_nothing(folder: Path, hashed: list[str]) -> None:
    manifest = manifest_of(folder)
    shutil.rmtree(folder)
    hashed.clear()
    verify(folder, manifest, Verify.NEVER)
    assert hashed == []


def test_a_verified_file_is_not_hashed_again(folder: Path, hashed: list[str]) -> None:
    manifest = manifest_of(folder)
    hashed.clear()
    verify(folder, manifest, Verify.AUTO)
    verify(folder, manifest, Verify.AUTO)
    assert hashed == ["config.json", "model.onnx"]


def test_mode_always_hashes_again(folder: Path, hashed: list[str]) -> None:
    manifest = manifest_of(folder)
    hashed.clear()
    verify(folder, manifest, Verify.ALWAYS)
    verify(folder, manifest, Verify.ALWAYS)
    assert len(hashed) == 4


def test_a_file_is_hashed_again_when_its_time_changes(folder: Path, hashed: list[str]) -> None:
    manifest = manifest_of(folder)
    verify(folder, manifest, Verify.AUTO)
    hashed.clear()
    os.utime(folder / "config.json", ns=(1, 1))
    verify(folder, manifest, Verify.AUTO)
    assert hashed == ["config.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time of the last change of an entry")
def test_a_file_that_was_changed_in_place_and_given_its_time_back_is_hashed_again(
    folder: Path, hashed: list[str]
) -> None:
    manifest = manifest_of(folder)
    verify(folder, manifest, Verify.AUTO)
    hashed.clear()
    before = (folder / "config.json").stat()
    with (folder / "config.json").open("r+b") as file:
        file.write(b"HELLO")
    os.utime(folder / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ManifestError, match="SHA-256"):
        verify(folder, manifest, Verify.AUTO)
    assert hashed == ["config.json"]


def test_changed_weights_of_an_exported_graph_ask_for_another_export(folder: Path) -> None:
    manifest = Manifest.of_folder(folder, name="m", source="x, exported by embed-worker export", license="none")
    (folder / "onnx/model.onnx").write_bytes(b"other weights")
    with pytest.raises(ManifestError, match=r"export the graph again, or get the model again$"):
        verify(folder, manifest, Verify.ALWAYS)


def test_what_is_verified_is_told_with_its_hash(folder: Path) -> None:
    manifest = manifest_of(folder)
    assert verify(folder, manifest, Verify.AUTO) == {path: file.sha256 for path, file in manifest.files.items()}
    assert verify(folder, manifest, Verify.NEVER) == {}


def test_a_file_is_hashed_again_when_another_takes_its_place(folder: Path, hashed: list[str]) -> None:
    manifest = manifest_of(folder)
    verify(folder, manifest, Verify.AUTO)
    hashed.clear()
    before = (folder / "config.json").stat()
    (folder / "other").write_bytes(b"HELLO")
    os.utime(folder / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(folder / "other", folder / "config.json")
    with pytest.raises(ManifestError, match="SHA-256"):
        verify(folder, manifest, Verify.AUTO)
    assert hashed == ["config.json"]


def test_a_file_is_hashed_again_when_the_manifest_expects_another_hash(folder: Path) -> None:
    manifest = manifest_of(folder)
    verify(folder, manifest, Verify.AUTO)
    files = {**manifest.files, "config.json": FileRecord(sha256="0" * 64, size=5)}
    other = Manifest(name="tiny", source="", license="", files=files)
    with pytest.raises(ManifestError, match=r"^config\.json .* not 0000"):
        verify(folder, other, Verify.AUTO)


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    manifest = manifest_of(folder)

    def touching(file: Path) -> str:
        hashed.append(file.name)
        digest = file_sha256(file)
        os.utime(file, ns=(len(hashed), len(hashed)))
        return digest

    monkeypatch.setattr(module, "file_sha256", touching)
    hashed.clear()
    verify(folder, manifest, Verify.AUTO)
    verify(folder, manifest, Verify.AUTO)
    assert len(hashed) == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b'{"/x": null}', b"[" * 100_000, b"\xff\xff"])
def test_a_damaged_cache_is_no_error_and_is_repaired(
    folder: Path, cache: Path, content: bytes, hashed: list[str]
) -> None:
    cache.mkdir(parents=True)
    (cache / "verified.json").write_bytes(content)
    manifest = manifest_of(folder)
    hashed.clear()
    verify(folder, manifest, Verify.AUTO)
    verify(folder, manifest, Verify.AUTO)
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path, cache: Path, hashed: list[str]) -> None:
    cache.parent.write_text("a file where the folder should be")
    manifest = manifest_of(folder)
    hashed.clear()
    verify(folder, manifest, Verify.AUTO)
    verify(folder, manifest, Verify.AUTO)
    assert len(hashed) == 4


def test_the_cache_forgets_the_oldest_beyond_its_bound(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_FILES", 3)
    cache.mkdir(parents=True)
    (cache / "verified.json").write_text(json.dumps({f"/old/{number}": [1, 1, 1, HELLO] for number in range(5)}))
    verify(folder, manifest_of(folder), Verify.AUTO)
    remembered = list(json.loads((cache / "verified.json").read_bytes()))
    assert remembered == ["/old/4", str(folder / "config.json"), str(folder / "onnx" / "model.onnx")]
    assert os.listdir(cache) == ["verified.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_out_of_the_folder_tells_nobody_the_size_and_the_hash_of_its_target(
    folder: Path, tmp_path: Path, hashed: list[str]
) -> None:
    manifest = manifest_of(folder)
    (tmp_path / "secret").write_bytes(b"a secret")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret")
    hashed.clear()
    with pytest.raises(ManifestError, match="a link out of the folder: --allow-links") as refused:
        verify(folder, manifest, Verify.ALWAYS)
    assert hashed == []
    assert "8" not in str(refused.value).replace(str(tmp_path), "")
    with pytest.raises(ManifestError, match="is not the file of its manifest"):
        verify(folder, manifest, Verify.ALWAYS, allow_links=True)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/embed-bridge"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/embed-bridge"),
        ("linux", {}, "/home/me/.cache/embed-bridge"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "/home/me/Library/Caches/embed-bridge"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/embed-bridge"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the paths are POSIX")
def test_the_cache_lies_where_the_platform_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"HOME": "/home/me"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_dir() == Path(expected)
