"""Options mean something or are refused when they are given; what a worker gets of its host's search path."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bridge_client import ClientOptions, EmbedClient, Timing, environment
from bridge_client.testing import fake_client, fake_command
from tests.client.conftest import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = (
    "start_timeout_s",
    "request_timeout_s",
    "restart_budget",
    "restart_forgive_s",
    "backoff_max_s",
    *("ping_every_s", "pong_timeout_s", "stuck_after_s", "half_open_initial_s", "half_open_max_s"),
)
ZERO = ("backoff_initial_s", "drain_s", "terminate_s", "max_queued_bytes")
COUNTS = ("workers", "max_queued_requests", "max_queued_bytes")


def made(name: str, value: Any) -> ClientOptions:
    if name in Timing.__dataclass_fields__:
        return ClientOptions(timing=Timing(**{name: value}))
    return ClientOptions(**{name: value})


@pytest.mark.parametrize("name", [*ENDLESS, *ZERO, *COUNTS])
@pytest.mark.parametrize("value", [math.nan, -1, -math.inf, 0, math.inf, 1e300, 10**400, "1", True])
def test_every_number_has_a_meaning_or_is_refused(name: str, value: Any) -> None:
    is_meant = value == 0 and name in ZERO
    is_meant |= value == math.inf and name in ENDLESS
    is_meant |= value == 1e300 and name not in COUNTS
    is_meant |= value == 10**400 and name in COUNTS
    if is_meant and not isinstance(value, bool):
        made(name, value)
        return
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be "):
        made(name, value)


def test_endless_and_huge_times_are_waited_for_like_any_other() -> None:
    endless = Timing(ping_every_s=math.inf, pong_timeout_s=math.inf, stuck_after_s=math.inf, drain_s=1e300)
    options = ClientOptions(request_timeout_s=1e10, start_timeout_s=math.inf, timing=endless, max_queued_requests=1)
    with fake_client(options, latency=0.01) as client:
        futures = [client.submit("a")]
        assert client.embed("b", timeout_s=1e300).shape == (1, 8)
        assert client.embed("c", timeout_s=math.inf).shape == (1, 8)
        assert client.info(timeout_s=math.inf)["dimension"] == 8
        assert futures[0].result(WAIT_S).vectors.shape == (1, 8)


def test_the_time_out_of_a_call_is_a_number() -> None:
    client = EmbedClient(worker_command=fake_command())
    for call in (client.embed, client.submit):
        with pytest.raises(ValueError, match="nan"):
            call("a", timeout_s=math.nan)
        with pytest.raises(TypeError, match="number of seconds"):
            call("a", timeout_s="1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"timeout_s.*inf"):
            call("a", timeout_s=10**400)
    with pytest.raises(ValueError, match="nan"):
        client.info(timeout_s=math.nan)


def test_a_frozen_application_does_not_start_itself_as_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ValueError, match=r"frozen application.*give `worker_command`"):
        EmbedClient()
    EmbedClient(worker_command=fake_command())


# Where the worker's packages are ----------------------------------------------------------------------------------


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Five packages in three folders, of which one is an archive, and nothing of this interpreter's own."""
    homes = {name: tmp_path / "split" / name for name in ("pure", "compiled")}
    for home, names in (("pure", ["embed_worker"]), ("compiled", ["onnxruntime", "numpy"])):
        for name in names:
            (homes[home] / name).mkdir(parents=True)
            (homes[home] / name / "__init__.py").touch()
    homes["archive"] = tmp_path / "sent.zip"
    with zipfile.ZipFile(homes["archive"], "w") as archive:
        for name in ("tokenizers", "orjson"):
            archive.writestr(f"{name}/__init__.py", "")
    monkeypatch.setattr(environment, "_own_folders", lambda: iter(()))
    return homes


def test_every_folder_in_which_a_package_lies_reaches_the_worker(
    split: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), *map(str, split.values())])
    found = ClientOptions().environment({})["PYTHONPATH"].split(os.pathsep)
    assert found == [str(split[name]) for name in ("pure", "compiled", "archive")]
    assert environment.search_path(is_own_interpreter=False) == [str(split["pure"])]


@pytest.mark.parametrize("entry", ["", ".", "absolute"])
def test_neither_the_working_directory_nor_the_scripts_folder_reaches_it(
    entry: str, split: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [str(split["compiled"]), str(split["archive"])]
    monkeypatch.chdir(split["pure"])
    monkeypatch.setattr(sys, "path", [str(split["pure"]) if entry == "absolute" else entry, *others])
    with pytest.raises(ValueError, match=r"^embed_worker lies in .*pure only, the working directory or the script"):
        environment.search_path(is_own_interpreter=True)
    monkeypatch.chdir(ROOT)
    (split["pure"] / "script.py").touch()
    monkeypatch.setattr(sys, "argv", [str(split["pure"] / "script.py")])
    monkeypatch.setattr(sys, "path", [str(split["pure"]), *others])
    with pytest.raises(ValueError, match="embed_worker"):
        environment.search_path(is_own_interpreter=True)
    named = {"PYTHONPATH": str(split["pure"])}
    assert ClientOptions(env=named).environment({})["PYTHONPATH"] == str(split["pure"])


def test_the_working_directory_reaches_it_where_the_user_has_named_it(
    split: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(split["pure"])
    monkeypatch.setattr(sys, "path", list(map(str, split.values())))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(split["pure"])]))
    assert str(split["pure"]) in environment.search_path(is_own_interpreter=True)


def test_a_folder_that_the_interpreter_searches_by_itself_is_not_named(
    split: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(map(str, split.values())))
    monkeypatch.setattr(environment, "_own_folders", lambda: map(str, split.values()))
    monkeypatch.chdir(split["pure"])
    assert environment.search_path(is_own_interpreter=True) == []


def install(target: Path, form: str) -> None:
    """Install the packages of this project, as `pip --target` does, or in an archive as Spark gets it."""
    if form == "folder":
        target.mkdir()
        for name in ("embed_worker", "bridge_client"):
            (target / name).symlink_to(ROOT / name, target_is_directory=True)
        return
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("embed_worker", "bridge_client"):
            for path in (ROOT / name).rglob("*"):
                if path.suffix in (".py", ".json"):
                    archive.write(path, path.relative_to(ROOT))
        archive.write(ROOT / "models" / "known_models.toml", "embed_worker/models/known_models.toml")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_worker_serves_from_places_that_only_its_host_knows(form: str, tmp_path: Path) -> None:
    """With the packages of this project apart from the rest."""
    site = tmp_path / "target"
    install(site, form)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "json.py").write_text("raise SystemExit('the host’s own json')", "utf-8")
    source = """
    import sys
    sys.path.insert(1, sys.argv[1])
    from bridge_client import EmbedClient
    with EmbedClient(sys.argv[2], worker_args=("--log-level", "warning")) as client:
        print(client.embed("a").shape)
    """
    import numpy

    packages = str(Path(numpy.__file__).parents[1])
    base = os.path.join(sys.base_prefix, "bin", "python3") if os.name == "posix" else sys.executable
    done = subprocess.run(
        [base, "-P", "-c", textwrap.dedent(source), str(site), str(ROOT / "tests" / "models" / "bert-mean")],
        cwd=tmp_path / "cwd",
        env={"PYTHONPATH": packages, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.stdout.strip() == "(1, 32)", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    import numpy

    packages = Path(numpy.__file__).parents[1]
    for home, names in ((packages, ("numpy", "numpy.libs", "orjson", "onnxruntime")), (ROOT, ("embed_worker",))):
        for name in names:
            if (home / name).exists():
                (tmp_path / name).symlink_to(home / name, target_is_directory=True)
    source = "from bridge_client import EmbedClient; EmbedClient('bert-mean', cwd='models').embed('a')"
    (tmp_path / "bridge_client").symlink_to(ROOT / "bridge_client", target_is_directory=True)
    done = subprocess.run(
        [os.path.join(sys.base_prefix, "bin", "python3"), "-P", "-c", source],
        cwd=ROOT / "tests",
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "EMBED_WORKER_MODELS": str(ROOT / "tests" / "models")},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert "WorkerStartError" in done.stderr
    assert "No module named 'tokenizers'" in done.stderr
