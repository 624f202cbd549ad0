"""`embed-worker pull` against a local server that behaves like the hub, its CDN and bad weather."""

from __future__ import annotations

import argparse
import errno
import gzip
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.encoders.onnx_writer import DEFAULT_OPSET, Storage
from embed_worker.loading import load_model
from embed_worker.model_files.known_models import KnownModel
from embed_worker.model_files.manifest import Manifest, verify
from embed_worker.tools.export import export
from embed_worker.tools.pull import command as module
from embed_worker.tools.pull import wanted
from embed_worker.tools.pull.command import PullReport
from embed_worker.tools.pull.hub import Hub, HubError, VerificationError
from embed_worker.tools.pull.staging import BusyError, staging
from embed_worker.tools.pull.wanted import PullError
from tests.worker.harness import ROOT, WAIT_S
from tests.worker.hub import FakeHub, HubRepository, fake_hub

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
constants = pytest.importorskip("huggingface_hub.constants")

FIXTURES = ROOT / "tests" / "models"
NEEDED = [
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "manifest.json",
    "modules.json",
    "onnx/model.onnx",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy, no token and no folder of whoever runs the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with the repository `org/tiny`: a whole sentence-transformers folder with files that no worker needs."""
    tiny = HubRepository.of_folder("org/tiny", FIXTURES / "bert-mean")
    tiny.files |= {
        "pytorch_model.bin": b"a pickle",
        "openvino/model.onnx_data": b"another runtime's",
        "onnx/model_fp16.onnx": tiny.files["onnx/model.onnx"] + b"\x00",
        "train_script.py": b"raise SystemExit",
        ".gitattributes": b"*.onnx filter=lfs",
    }
    with fake_hub(tiny) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the folder shall be; beside it there is nothing else."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "tiny"


def pull(hub: FakeHub, target: Path, name: str = "org/tiny", **arguments: Any) -> PullReport:
    client = Hub(endpoint=hub.endpoint, retry_delays_s=(0.0, 0.0))
    return module.pull(name, output=target, hub=client, **arguments)


def files_of(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def leftovers(target: Path) -> list[str]:
    """Everything beside the folder."""
    return [file for file in files_of(target.parent) if not file.startswith(f"{target.name}/")]


def add_large_graph(hub: FakeHub, size: int = 300_000) -> bytes:
    graph = random.Random(0).randbytes(size)
    hub.repositories["org/tiny"].files["onnx/model.onnx"] = graph
    return graph


# What arrives -------------------------------------------------------------------------------------------------------


def test_a_pulled_folder_has_what_a_worker_needs_and_nothing_else(hub: FakeHub, target: Path) -> None:
    report = pull(hub, target)
    assert files_of(target) == NEEDED
    assert leftovers(target) == []
    assert {request.path.rpartition("/")[2] for request in hub.downloads()} & {
        "pytorch_model.bin",
        "vocab.txt",
    } == set()
    assert report.graph == "onnx/model.onnx"
    assert report.received == report.size == sum((target / name).stat().st_size for name in NEEDED[:3] + NEEDED[4:])


def test_a_pulled_folder_is_loaded_with_its_manifest_and_is_the_same_model(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    runtime = RuntimeOptions(provider="cpu", verify=Verify.ALWAYS)
    pulled = load_model(target, ModelOptions(), runtime, threads=1)
    published = load_model(FIXTURES / "bert-mean", ModelOptions(), runtime, threads=1)
    assert (pulled.name, pulled.fingerprint) == ("tiny", published.fingerprint)


def test_the_manifest_names_the_commit_and_the_licence(hub: FakeHub, target: Path) -> None:
    repository = hub.repositories["org/tiny"]
    report = pull(hub, target)
    manifest = Manifest.read(target)
    assert manifest is not None
    assert manifest.source == report.source == f"org/tiny@{repository.commit}"
    assert (manifest.name, manifest.license) == ("tiny", "apache-2.0")
    verify(target, manifest, Verify.ALWAYS)


def test_the_weights_come_only_when_they_are_asked_for(hub: FakeHub, target: Path) -> None:
    pull(hub, target, weights=True)
    assert files_of(target) == sorted([*NEEDED, "model.safetensors"])


def test_weights_in_shards_come_with_their_index(hub: FakeHub, target: Path) -> None:
    tiny = hub.repositories["org/tiny"]
    del tiny.files["model.safetensors"]
    shards = {f"model-0000{number}-of-00002.safetensors": b"shard %d" % number for number in (1, 2)}
    index = json.dumps({"weight_map": dict.fromkeys("ab", min(shards)) | {"c": max(shards)}}).encode()
    tiny.files |= {**shards, "model.safetensors.index.json": index, "model-00003-of-00003.safetensors": b"of others"}
    pull(hub, target, weights=True)
    assert files_of(target) == sorted([*NEEDED, *shards, "model.safetensors.index.json"])
    assert pull(hub, target, weights=True).received == 0
    tiny.files = {name: content for name, content in tiny.files.items() if not name.endswith(".onnx")}
    assert "embed-worker export" in pull(hub, target.with_name("other")).notes[0]
    tiny.files["model.safetensors.index.json"] = b'{"weight_map":{"a":"../../x.safetensors"}}'
    with pytest.raises(HubError, match="not a safetensors file of the folder"):
        pull(hub, target.with_name("third"))


def test_weights_of_dense_modules_are_needed(hub: FakeHub, target: Path) -> None:
    hub.add(HubRepository.of_folder("org/dense", FIXTURES / "dense-module"))
    pull(hub, target, "org/dense")
    assert {"2_Dense/config.json", "2_Dense/model.safetensors"} <= set(files_of(target))
    load_model(target, ModelOptions(), RuntimeOptions(provider="cpu"), threads=1)


def test_the_data_that_a_graph_keeps_in_another_file_comes_with_it(hub: FakeHub, target: Path) -> None:
    hub.add(HubRepository.of_folder("org/qwen", FIXTURES / "qwen3-last"))
    report = pull(hub, target, "org/qwen", onnx_file="onnx/model_ext.onnx")
    assert report.graph == "onnx/model_ext.onnx"
    onnx = [file for file in files_of(target) if file.startswith("onnx/")]
    assert onnx == ["onnx/model_ext.onnx", "onnx/model_ext.onnx_data"]
    load_model(target, ModelOptions(onnx_file="onnx/model_ext.onnx"), RuntimeOptions(provider="cpu"), threads=1)


def test_data_of_any_name_is_found_by_what_the_graph_says(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    files["onnx/model.onnx"] = b"...\x12\x08location\x1a\x1aConstant_7_attr__value..."
    files["onnx/Constant_7_attr__value"] = b"numbers"
    files["onnx/Constant_8_attr__value"] = b"of another graph"
    pull(hub, target)
    assert [file for file in files_of(target) if "Constant" in file] == ["onnx/Constant_7_attr__value"]


def test_a_graph_in_the_root_is_taken_where_there_is_no_other(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    files["model.onnx"] = files.pop("onnx/model.onnx")
    assert pull(hub, target).graph == "model.onnx"


def test_a_bare_folder_comes_with_a_note_of_what_it_does_not_say(hub: FakeHub, target: Path) -> None:
    hub.add(HubRepository.of_folder("org/unheard-of-bare", FIXTURES / "xenova-bare"))
    bare = target.with_name("unheard-of-bare")
    (note,) = pull(hub, bare, "org/unheard-of-bare").notes
    assert "--pooling" in note


def test_without_a_graph_the_weights_are_pulled_and_the_next_step_is_named(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    for graph in ("onnx/model.onnx", "onnx/model_fp16.onnx"):
        del files[graph]
    report = pull(hub, target)
    assert report.graph is None
    assert (target / "model.safetensors").read_bytes() == files["model.safetensors"]
    (note,) = report.notes
    assert shlex.split(note.partition(": ")[2])[:3] == ["embed-worker", "export", str(target)]
    assert report.source in note


def test_a_graph_that_was_exported_into_a_pulled_folder_stays(hub: FakeHub, target: Path) -> None:
    """`export` takes source and licence from the manifest: a pull knows its folder by them."""
    tiny = hub.repositories["org/tiny"]
    tiny.files = {name: content for name, content in tiny.files.items() if not name.endswith(".onnx")}
    pull(hub, target)
    for _ in range(2):
        export(target, output=target, storage=Storage.FLOAT32, opset=DEFAULT_OPSET, source=None, license=None)
        manifest = Manifest.read(target)
        assert manifest is not None
        assert manifest.source.startswith(f"org/tiny@{tiny.commit}, model.safetensors SHA-256 ")
        assert manifest.source.count("SHA-256") == 1
        assert manifest.license == "apache-2.0"
    assert pull(hub, target).graph == "onnx/model.onnx"
    assert (target / "onnx" / "model.onnx").is_file()


def test_a_licence_is_quoted_for_the_shell_that_it_is_copied_into(hub: FakeHub, target: Path) -> None:
    repository = hub.repositories["org/tiny"]
    for graph in ("onnx/model.onnx", "onnx/model_fp16.onnx"):
        del repository.files[graph]
    repository.license = "mit'; touch planted; '"
    (note,) = pull(hub, target).notes
    assert shlex.split(note.partition(": ")[2])[-1] == repository.license


def test_a_variant_is_added_to_the_folder_and_the_graph_that_was_there_stays(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    report = pull(hub, target, variant="fp16")
    assert report.graph == "onnx/model_fp16.onnx"
    assert report.received == (target / "onnx/model_fp16.onnx").stat().st_size
    assert files_of(target) == sorted([*NEEDED, "onnx/model_fp16.onnx"])
    manifest = Manifest.read(target)
    assert manifest is not None
    verify(target, manifest, Verify.ALWAYS)


def test_a_new_commit_replaces_the_folder_and_receives_only_what_has_changed(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    (target / "onnx" / "stray.onnx").write_bytes(b"of the old commit")
    repository = hub.repositories["org/tiny"]
    repository.commit = "f" * 40
    repository.files["config.json"] += b"\n"
    report = pull(hub, target)
    assert report.received == len(repository.files["config.json"])
    assert report.source == f"org/tiny@{'f' * 40}"
    assert files_of(target) == sorted([*NEEDED, "onnx/stray.onnx"])
    assert leftovers(target) == []


def test_what_a_user_has_in_the_folder_stays_and_is_not_taken_for_the_models(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    own = {"notes.txt": b"mine", "data/rows.csv": b"1,2", "onnx/model_int8.onnx": b"a graph of my own"}
    for path, content in own.items():
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_bytes(content)
    repository = hub.repositories["org/tiny"]
    repository.commit = "f" * 40
    repository.files["config.json"] += b"\n"
    pull(hub, target)
    assert {path: (target / path).read_bytes() for path in own} == own
    manifest = Manifest.read(target)
    assert manifest is not None
    assert not manifest.files.keys() & own.keys()
    repository.commit = "e" * 40
    repository.files["notes.txt"] = b"not read by a worker"
    pull(hub, target)
    assert (target / "notes.txt").read_bytes() == b"mine"


def test_a_users_file_where_the_model_has_one_stops_the_pull(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    (target / "onnx" / "model_fp16.onnx").write_bytes(b"my own")
    with pytest.raises(PullError, match="move it"):
        pull(hub, target, variant="fp16")
    assert (target / "onnx" / "model_fp16.onnx").read_bytes() == b"my own"


def test_a_users_copy_of_what_the_model_has_is_no_obstacle(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    content = hub.repositories["org/tiny"].files["onnx/model_fp16.onnx"]
    (target / "onnx" / "model_fp16.onnx").write_bytes(content)
    assert pull(hub, target, variant="fp16").received == 0
    assert (target / "onnx" / "model_fp16.onnx").read_bytes() == content


# What a hub may not do ------------------------------------------------------------------------------------------------


def test_more_bytes_than_the_hub_states_are_not_received(hub: FakeHub, target: Path) -> None:
    content = hub.repositories["org/tiny"].files["config.json"]
    hub.wrong["config.json"] = content + b" " * 20_000_000
    received: list[float] = []
    asked = Hub(endpoint=hub.endpoint)
    file = asked.describe(asked.repository("org/tiny", None), "config.json")
    with pytest.raises(VerificationError, match="goes on"):
        asked.fetch(file, target / "config.json", Mock(update=received.append))
    assert sum(received) < 2_000_000  # one block of the transport
    assert list(target.iterdir()) == []


def test_a_compressed_answer_is_refused_and_not_expanded(hub: FakeHub, target: Path) -> None:
    hub.encodings["config.json"] = "gzip"
    hub.wrong["config.json"] = gzip.compress(bytes(10_000_000))
    with pytest.raises(HubError, match="gzip"):
        pull(hub, target)


def test_another_commit_than_the_one_that_was_named_is_refused(hub: FakeHub, target: Path) -> None:
    repository = hub.repositories["org/tiny"]
    repository.tags = ("main", "f" * 40)
    with pytest.raises(HubError, match="f" * 40):
        pull(hub, target, revision="f" * 40)


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b'{"sha": 5}', b"<html>", b'{"siblings": [{}]}'])
def test_an_answer_of_another_shape_is_a_sentence(hub: FakeHub, target: Path, body: bytes) -> None:
    hub.model_info = body
    with pytest.raises(HubError):
        pull(hub, target)


def test_an_odd_etag_is_no_path(hub: FakeHub, target: Path) -> None:
    hub.odd_etag = "W/../../../../tmp/x y"
    pull(hub, target)
    assert files_of(target) == NEEDED


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_planted_links_are_not_written_through(hub: FakeHub, target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    hidden = target.parent / f".{target.name}.pull" / "files"
    hidden.mkdir(parents=True)
    (hidden / "onnx").symlink_to(elsewhere)
    (hidden / "config.json").symlink_to(victim)
    pull(hub, target)
    assert (victim.read_bytes(), list(elsewhere.iterdir())) == (b"untouched", [])
    assert files_of(target) == NEEDED
    shutil.rmtree(target)
    (target.parent / f".{target.name}.pull.lock").symlink_to(victim)
    with pytest.raises(PullError):
        pull(hub, target)
    assert victim.read_bytes() == b"untouched"


# Which repository, which commit -------------------------------------------------------------------------------------


def known_model(**changes: Any) -> KnownModel:
    facts: dict[str, Any] = {
        "name": "tiny",
        "repository": "org/tiny",
        "aliases": ("other/tiny",),
        "revision": None,
        "onnx_repository": None,
        "onnx_revision": None,
        "license": "mit",
        "pooling": ("mean",),
        "normalize": True,
        "dimension": 32,
        "max_tokens": 32,
        "prompts": {},
        "quality": None,
        "sources": ("a test",),
    }
    return KnownModel(**facts | changes)


def test_the_commit_of_a_known_model_is_pinned(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = hub.repositories["org/tiny"].commit
    monkeypatch.setattr(wanted, "find_known_model", lambda name: known_model(revision=pinned))
    hub.repositories["org/tiny"].tags = ()  # main has moved on
    assert pull(hub, target, "tiny").source == f"org/tiny@{pinned}"
    assert all(pinned in request.path for request in hub.requests if request.server == "hub")


def test_a_revision_on_the_command_line_comes_first(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanted, "find_known_model", lambda name: known_model(revision="0" * 40))
    hub.repositories["org/tiny"].tags = ("v1",)
    assert pull(hub, target, "tiny", revision="v1").source == f"org/tiny@{hub.repositories['org/tiny'].commit}"


def test_another_repository_of_the_same_weights_has_its_own_commits(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanted, "find_known_model", lambda name: known_model(revision="0" * 40))
    other = hub.add(HubRepository.of_folder("other/tiny", FIXTURES / "xenova-bare"))
    assert pull(hub, target, "other/tiny").source == f"other/tiny@{other.commit}"


def test_a_graph_may_be_in_another_repository(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = hub.repositories["org/tiny"]
    export = hub.add(HubRepository(name="export/tiny", commit="e" * 40, files={}))
    for graph in ("onnx/model.onnx", "onnx/model_fp16.onnx"):
        export.files[graph] = tiny.files.pop(graph)
    known = known_model(revision=tiny.commit, onnx_repository="export/tiny", onnx_revision=export.commit)
    monkeypatch.setattr(wanted, "find_known_model", lambda name: known)
    report = pull(hub, target, "tiny")
    assert report.source == f"org/tiny@{tiny.commit}, graph from export/tiny@{export.commit}"
    assert files_of(target) == NEEDED
    hub.requests.clear()
    assert pull(hub, target, "tiny").notes == ("It was there already",)
    assert hub.requests == []


def test_a_folder_that_a_commit_names_is_there_without_asking_anybody(hub: FakeHub, target: Path) -> None:
    commit = hub.repositories["org/tiny"].commit
    pull(hub, target)
    hub.requests.clear()
    report = pull(hub, target, revision=commit)
    assert (report.received, report.notes) == (0, ("It was there already",))
    assert hub.requests == []


def test_a_damaged_folder_is_mended_with_the_damaged_file_alone(hub: FakeHub, target: Path) -> None:
    commit = hub.repositories["org/tiny"].commit
    pull(hub, target)
    graph = target / "onnx" / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    report = pull(hub, target, revision=commit)
    assert report.received == len(content)
    assert graph.read_bytes() == content


# Bad weather --------------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_ended(hub: FakeHub, target: Path) -> None:
    graph = add_large_graph(hub)
    hub.cuts["onnx/model.onnx"] = [100_000, 50_000]
    pull(hub, target)
    assert (target / "onnx/model.onnx").read_bytes() == graph
    ranges = [request.range for request in hub.requests if request.server == "cdn"]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_what_an_interrupted_pull_received_is_used_by_the_next(hub: FakeHub, target: Path) -> None:
    graph = add_large_graph(hub)
    hub.cuts["onnx/model.onnx"] = [100_000, 0, 0]
    with pytest.raises(HubError, match=r"cannot be reached .*goes on from here"):
        pull(hub, target)
    assert not target.exists()
    parts = [file for file in leftovers(target) if file.endswith(".part")]
    assert len(parts) == 1
    assert (target.parent / parts[0]).read_bytes() == graph[:100_000]
    hub.requests.clear()
    report = pull(hub, target)
    assert (target / "onnx/model.onnx").read_bytes() == graph
    assert [request.range for request in hub.downloads()] == ["bytes=100000-", "bytes=100000-"]  # and its redirect
    assert report.received == len(graph)
    assert leftovers(target) == []


def test_what_an_interrupted_pull_left_is_believed_only_if_its_hash_is_right(hub: FakeHub, target: Path) -> None:
    hub.cuts["onnx/model.onnx"] = [10, 0, 0]
    with pytest.raises(HubError):
        pull(hub, target)
    (staged,) = target.parent.rglob("tokenizer.json")
    staged.write_bytes(staged.read_bytes()[::-1])
    pull(hub, target)
    assert (target / "tokenizer.json").read_bytes() == hub.repositories["org/tiny"].files["tokenizer.json"]


def test_what_an_interrupted_pull_left_and_the_next_does_not_want_is_removed(hub: FakeHub, target: Path) -> None:
    hub.cuts["onnx/model.onnx"] = [10, 0, 0]
    with pytest.raises(HubError):
        pull(hub, target)
    pull(hub, target, variant="fp16")
    assert files_of(target) == sorted([*NEEDED[:5], "onnx/model_fp16.onnx", *NEEDED[6:]])


def test_a_server_that_ignores_ranges_is_heard_from_the_beginning(hub: FakeHub, target: Path) -> None:
    graph = add_large_graph(hub)
    hub.cuts["onnx/model.onnx"] = [100_000]
    hub.ignores_ranges = True
    pull(hub, target)
    assert (target / "onnx/model.onnx").read_bytes() == graph


def test_a_server_that_is_busy_is_asked_again(hub: FakeHub, target: Path) -> None:
    hub.statuses["onnx/model.onnx"] = [503, 429]
    pull(hub, target)
    assert files_of(target) == NEEDED


def test_a_hub_that_is_busy_before_the_files_is_asked_again(hub: FakeHub, target: Path) -> None:
    """Its limits are on these requests, of which a pull makes one for each file."""
    hub.busy |= {"GET": [429, 503], "HEAD": [502, 429]}
    pull(hub, target)
    assert files_of(target) == NEEDED
    for method in ("GET", "HEAD"):
        hub.busy[method] = [503] * 3
        with pytest.raises(HubError, match="status 503"):
            pull(hub, target.with_name("other"))
        assert not hub.busy[method]


def test_what_is_there_of_a_file_without_a_stated_size_is_received_again(hub: FakeHub, target: Path) -> None:
    """It may be whole: a server refuses to give what is behind its end."""
    hub.states_sizes = False
    path = "config.json"
    etag = hub.repositories["org/tiny"].etag(path)
    part = target.parent / ".tiny.pull" / "files" / f".{path}.{etag[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.repositories["org/tiny"].files[path])
    pull(hub, target)
    assert files_of(target) == NEEDED


def test_a_server_that_stays_busy_ends_the_pull(hub: FakeHub, target: Path) -> None:
    hub.statuses["onnx/model.onnx"] = [503] * 3
    with pytest.raises(HubError, match="status 503"):
        pull(hub, target)
    assert not target.exists()


def test_a_server_that_stalls_is_given_up(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.hold = "onnx/model.onnx"
    with pytest.raises(HubError, match=r"cannot be reached \(ReadTimeout"):
        pull(hub, target)
    hub.release.set()
    assert not target.exists()


@pytest.mark.parametrize("path", ["onnx/model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("length", ["same", "shorter", "longer"])
def test_a_file_with_another_hash_is_thrown_away(hub: FakeHub, target: Path, path: str, length: str) -> None:
    content = hub.repositories["org/tiny"].files[path]
    hub.wrong[path] = {"same": content[::-1], "shorter": content[:-1], "longer": content + b" "}[length]
    with pytest.raises(VerificationError, match=path):
        pull(hub, target)
    assert not target.exists()
    assert all(path.rpartition("/")[2] not in file for file in leftovers(target))
    del hub.wrong[path]
    pull(hub, target)
    assert (target / path).read_bytes() == content


def test_a_failed_pull_leaves_the_folder_that_was_there_as_it_was(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    before = {file: (target / file).read_bytes() for file in files_of(target)}
    repository = hub.repositories["org/tiny"]
    repository.commit = "f" * 40
    repository.files["config.json"] += b"\n"
    hub.wrong["config.json"] = b"{}"
    with pytest.raises(VerificationError):
        pull(hub, target)
    assert {file: (target / file).read_bytes() for file in files_of(target)} == before


def test_a_mirror_without_hashes_is_believed_and_reported(hub: FakeHub, target: Path) -> None:
    hub.has_etags = False
    (note,) = pull(hub, target).notes
    assert note.startswith("Not verified")
    assert "onnx/model.onnx" in note


# Tokens -------------------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/tiny"].is_gated = True
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    pull(hub, target)
    tokens = {(request.server, request.token) for request in hub.requests}
    assert tokens == {("hub", "Bearer secret-token"), ("cdn", None)}


@pytest.mark.parametrize("token", [None, "of-somebody-else"])
def test_a_gated_repository_names_its_page_and_the_token(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.repositories["org/tiny"].is_gated = True
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=r"/org/tiny is gated: accept its terms there, then set HF_TOKEN"):
        pull(hub, target)
    assert leftovers(target) == []


# Refusals, each of which leaves nothing behind ----------------------------------------------------------------------


def refusal(hub: FakeHub, target: Path, name: str = "org/tiny", **arguments: Any) -> str:
    with pytest.raises((PullError, HubError)) as caught:
        pull(hub, target, name, **arguments)
    assert not target.exists()
    assert leftovers(target) == []
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


def test_an_unknown_repository_and_an_unknown_revision_are_named(hub: FakeHub, target: Path) -> None:
    assert "no http" in refusal(hub, target, "org/nobody")
    assert "HF_TOKEN" in refusal(hub, target, "org/nobody")
    assert "no revision 'v9'" in refusal(hub, target, revision="v9")


def test_an_unknown_short_name_says_what_lists_the_known_ones(hub: FakeHub, target: Path) -> None:
    message = refusal(hub, target, "tinny")
    assert "`embed-worker models`" in message
    assert "`org/name`" in message
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../etc", "/etc/passwd", "a/b/c", "org/", "org/a b"])
def test_a_name_that_is_none_is_refused(hub: FakeHub, target: Path, name: str) -> None:
    assert "not a model's name" in refusal(hub, target, name)
    assert hub.requests == []


def test_offline_nobody_is_asked(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(hub, target)
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_named(target: Path) -> None:
    with fake_hub() as gone:
        pass
    with pytest.raises(HubError, match=r"http://127.0.0.1:.* cannot be reached .*HF_ENDPOINT"):
        module.pull("org/tiny", output=target, hub=Hub(endpoint=gone.endpoint))
    assert leftovers(target) == []


def test_graphs_of_unusual_names_are_listed(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    files["model_optimized.onnx"] = files.pop("onnx/model.onnx")
    assert "--onnx-file can choose one of: model_optimized.onnx, onnx/model_fp16.onnx" in refusal(hub, target).replace(
        "onnx/model_fp16.onnx, model_optimized.onnx", "model_optimized.onnx, onnx/model_fp16.onnx"
    )
    assert "no onnx/model_int8.onnx" in refusal(hub, target, variant="int8")
    assert pull(hub, target, onnx_file="model_optimized.onnx").graph == "model_optimized.onnx"


def test_a_variant_of_a_repository_without_any_graph_is_refused(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    for graph in ("onnx/model.onnx", "onnx/model_fp16.onnx"):
        del files[graph]
    assert "embed-worker export" in refusal(hub, target, variant="fp16")
    del files["model.safetensors"]
    assert "onnx-community" in refusal(hub, target)
    assert "no model.safetensors: leave --weights out" in refusal(hub, target, weights=True)


def test_a_repository_without_a_fast_tokenizer_is_refused(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    for name in ("tokenizer.json", "vocab.txt"):
        files.pop(name, None)
    assert "no tokenizer.json and no vocab.txt" in refusal(hub, target)


def test_a_repository_cannot_write_outside_its_folder(hub: FakeHub, target: Path) -> None:
    files = hub.repositories["org/tiny"].files
    files["modules.json"] = json.dumps([{"type": "x.Pooling", "path": "../../escaped"}]).encode()
    files["../../escaped/config.json"] = b"{}"
    with pytest.raises(HubError, match="outside"):
        pull(hub, target)
    assert not (target.parent.parent / "escaped").exists()


def test_a_folder_of_somebody_else_is_not_replaced(hub: FakeHub, target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(PullError, match=r"no manifest .*--output"):
        pull(hub, target)
    assert files_of(target) == ["thesis.txt"]
    assert hub.requests == []


def test_a_folder_of_another_source_is_not_replaced(hub: FakeHub, target: Path) -> None:
    """Two organisations have a model of one name, and a user's own export has a manifest, too."""
    hub.add(HubRepository.of_folder("another/tiny", FIXTURES / "e5-prefix"))
    pull(hub, target)
    before = files_of(target)
    with pytest.raises(PullError, match=r"says that it is from 'org/tiny@.*, and not from another/tiny: choose"):
        pull(hub, target, "another/tiny")
    assert files_of(target) == before
    (target / "manifest.json").unlink()
    Manifest.of_folder(target, name="tiny", source="exported by embed-worker export", license="mine").write(target)
    with pytest.raises(PullError, match="says that it is from 'exported by"):
        pull(hub, target)
    assert leftovers(target) == []


def test_an_empty_folder_is_replaced(hub: FakeHub, target: Path) -> None:
    target.mkdir()
    pull(hub, target)
    assert files_of(target) == NEEDED


def test_two_graphs_cannot_be_asked_for_at_once(hub: FakeHub, target: Path) -> None:
    assert "--variant and --onnx-file" in refusal(hub, target, variant="fp16", onnx_file="model.onnx")


def test_a_disk_that_is_too_small_is_seen_before_anything_large_comes(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = len(hub.repositories["org/tiny"].files["onnx/model.onnx"])
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=graph - 1))
    with pytest.raises(PullError, match="MB free"):
        pull(hub, target)
    assert not [request for request in hub.requests if request.server == "cdn"]


def test_a_disk_that_is_full_is_named(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Hub, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Hub, "fetch", full)
    assert "is full: make room" in refusal(hub, target)


def test_without_the_library_one_sentence_says_what_to_install(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'embed-bridge[hub]'" in refusal(hub, target)


# One at a time, whole or not at all ---------------------------------------------------------------------------------


def test_a_second_pull_of_the_same_folder_gives_way(hub: FakeHub, target: Path) -> None:
    hub.hold = "onnx/model.onnx"
    first: list[object] = []
    thread = threading.Thread(target=lambda: first.append(pull(hub, target)))
    thread.start()
    try:
        assert hub.held.wait(WAIT_S)
        with pytest.raises(PullError, match="another process is pulling"):
            pull(hub, target)
    finally:
        hub.release.set()
        thread.join(WAIT_S)
    assert isinstance(first[0], PullReport)
    assert files_of(target) == NEEDED
    assert leftovers(target) == []


def test_a_lock_file_that_was_left_by_a_dead_process_does_not_matter(hub: FakeHub, target: Path) -> None:
    (target.parent / ".tiny.pull.lock").touch()
    pull(hub, target)
    assert leftovers(target) == []


def test_a_folder_is_claimed_by_one_process_at_a_time(target: Path) -> None:
    with staging(target), pytest.raises(BusyError), staging(target):
        pass
    with staging(target):
        pass
    assert leftovers(target) == []


def test_a_replacement_that_was_interrupted_between_its_renames_is_undone(hub: FakeHub, target: Path) -> None:
    pull(hub, target)
    hidden = target.parent / ".tiny.pull"
    hidden.mkdir()
    os.rename(target, hidden / "old")
    with staging(target):
        assert files_of(target) == NEEDED


def test_a_folder_that_cannot_be_replaced_is_as_it_was(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(hub, target)
    hub.repositories["org/tiny"].commit = "f" * 40
    replace = os.replace

    def refuse_the_new_one(source: Path, destination: Path) -> None:
        if source.name == "files":
            raise PermissionError(errno.EACCES, "a worker has its files open")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(PullError, match="is a worker using it"):
        pull(hub, target)
    assert files_of(target) == NEEDED
    manifest = Manifest.read(target)
    assert manifest is not None
    verify(target, manifest, Verify.ALWAYS)


def test_a_folder_without_hard_links_is_copied(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(hub, target)

    def no_links(source: Path, destination: Path, *, follow_symlinks: bool) -> None:
        raise PermissionError(errno.EPERM, "this file system has no hard links")

    monkeypatch.setattr(os, "link", no_links)
    report = pull(hub, target, variant="fp16")
    assert report.received == (target / "onnx/model_fp16.onnx").stat().st_size
    assert files_of(target) == sorted([*NEEDED, "onnx/model_fp16.onnx"])


# The command --------------------------------------------------------------------------------------------------------


def run_in_process(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="embed-worker pull")
    module.add_arguments(parser)
    return module.run(parser.parse_args(list(arguments)))


def test_the_exit_status_says_whether_the_hash_was_wrong_or_the_rest(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Hub", lambda: Hub(endpoint=hub.endpoint))
    assert run_in_process("org/nobody", "--output", str(target)) == 78
    hub.wrong["config.json"] = b"{}"
    assert run_in_process("org/tiny", "--output", str(target)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["embed-worker pull"] * 2


def test_an_interruption_says_that_the_next_pull_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "pull", interrupted)
    assert run_in_process("org/tiny") == 130
    assert "goes on from here" in capsys.readouterr().err


def run_as_a_user_does(
    hub: FakeHub, *arguments: str, before: str = "pass", **env: str
) -> subprocess.CompletedProcess[str]:
    code = (
        "import argparse, sys; from embed_worker.tools import pull; parser = argparse.ArgumentParser(); "
        f"pull.add_arguments(parser); {before}; sys.exit(pull.run(parser.parse_args()))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, **env},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def test_the_environment_names_the_hub_and_the_token_and_the_report_is_json(hub: FakeHub, target: Path) -> None:
    hub.repositories["org/tiny"].is_gated = True
    done = run_as_a_user_does(hub, "org/tiny", "--output", str(target), "--json", HF_TOKEN="secret-token")
    assert (done.returncode, done.stderr) == (0, "")  # no progress where nobody looks
    report = json.loads(done.stdout)
    assert report["folder"] == str(target)
    assert report["source"] == f"org/tiny@{hub.repositories['org/tiny'].commit}"
    assert (report["graph"], report["files"], report["notes"]) == ("onnx/model.onnx", len(NEEDED) - 1, [])
    assert files_of(target) == NEEDED


def test_offline_by_the_environment_is_status_78_and_one_sentence(hub: FakeHub, target: Path) -> None:
    done = run_as_a_user_does(hub, "org/tiny", "--output", str(target), HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "embed-worker pull: HF_HUB_OFFLINE is set: unset it to download\n"
    assert hub.requests == []


def test_progress_is_shown_on_a_terminal_and_hushed_by_quiet(hub: FakeHub, target: Path) -> None:
    terminal = "sys.stderr.isatty = lambda: True"
    done = run_as_a_user_does(hub, "org/tiny", "--output", str(target), before=terminal)
    assert done.returncode == 0
    assert "tiny: 100%" in done.stderr
    shutil.rmtree(target)
    done = run_as_a_user_does(hub, "org/tiny", "--output", str(target), "--quiet", before=terminal)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == f"from org/tiny@{hub.repositories['org/tiny'].commit}; licence: apache-2.0"
