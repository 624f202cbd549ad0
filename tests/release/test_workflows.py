"""The files that a forge reads are well-formed, and what they run is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.release.versions import ROOT

GITHUB = ROOT / ".github"
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
# GitHub's runners have no Node 20 since 2026-09-16; these are the first major versions of the actions that do without.
ON_NODE_24 = {
    "actions/checkout": 5, "actions/setup-python": 6, "actions/setup-node": 5, "actions/setup-go": 6,
    "actions/upload-artifact": 6, "actions/download-artifact": 7, "actions/attest-build-provenance": 3,
}  # fmt: skip
RETIRED = {"macos-13", "macos-14", "ubuntu-20.04", "windows-2019"}

pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="an sdist has no .github")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def workflow(name: str) -> dict[Any, Any]:
    document = read(GITHUB / "workflows" / name)
    assert isinstance(document, dict)
    return document


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}, {name}", step)
        for path in sorted((GITHUB / "workflows").iterdir())
        for name, job in read(path)["jobs"].items()
        for step in job["steps"]
    ]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_a_workflow_has_what_a_forge_asks_for(name: str) -> None:
    document = workflow(name)
    # YAML 1.1 reads the key `on` as a boolean.
    assert document.keys() - {"concurrency"} == {"name", True, "permissions", "jobs"}
    assert document["permissions"] == {"contents": "read"}
    for job, content in document["jobs"].items():
        assert {"runs-on", "steps"} <= content.keys(), job
        needs = content.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= document["jobs"].keys(), job
        for step in content["steps"]:
            assert ("uses" in step) != ("run" in step), (job, step)


def test_actions_are_pinned_by_a_tag_that_dependabot_moves() -> None:
    for where, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@(v\d+|release/v\d+)", step["uses"]), (where, step["uses"])
    ecosystems = {update["package-ecosystem"] for update in read(GITHUB / "dependabot.yml")["updates"]}
    assert "github-actions" in ecosystems


def test_actions_and_runners_are_those_that_the_forge_still_has() -> None:
    for where, step in steps():
        action, _, tag = step.get("uses", "").partition("@")
        if action.startswith("actions/"):
            assert int(tag.removeprefix("v")) >= ON_NODE_24[action], (where, step["uses"])
    for path in (GITHUB / "workflows").iterdir():
        assert not RETIRED & set(re.findall(r"\b(?:macos|ubuntu|windows)-[\w.]+", path.read_text("utf-8"))), path.name


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is a tool of Linux")
def test_the_list_of_sums_never_has_a_sum_of_itself(tmp_path: Path) -> None:
    [command] = [step["run"] for _, step in steps() if "| tee SHA256SUMS" in step.get("run", "")]
    built = ["embed_bridge-1.whl", "embed_bridge-1.tar.gz", "embed-bridge-1.crate", "embed-bridge-1.tgz"]
    for name in (*built, "SHA256SUMS"):  # as where `tee` is the quicker one
        (tmp_path / name).touch()
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    listed = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert sorted(line.split()[1] for line in listed) == sorted(built)


def test_what_the_steps_run_is_there() -> None:
    for where, step in steps():
        command, folder = step.get("run", ""), ROOT / step.get("working-directory", ".")
        assert folder.is_dir() or step["working-directory"] == "dist", where
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert target in targets(), (where, target)
        for path in re.findall(r"\b(?:tests|examples)/[\w./-]+|(?<= )\.ci/\w+", command):
            assert (ROOT / path.rstrip("/")).exists(), (where, path)
        for module in re.findall(r"-m ((?:tests|bridge_client|embed_worker)[\w.]*)", command):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (where, module)


def test_an_editable_install_gets_what_builds_it() -> None:
    """Hatchling needs the package `editables` for one, which no environment here has."""
    for where, step in steps():
        for line in step.get("run", "").splitlines():
            assert not ("--no-build-isolation" in line and re.search(r" -e\b", line)), (where, line)


def test_a_release_is_tested_on_every_system_before_anything_is_published() -> None:
    jobs = workflow("release.yml")["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert {runner.split("-")[0] for runner in matrix["runner"]} == {"ubuntu", "macos", "windows"}
    assert all("checkout" not in step.get("uses", "") for step in jobs["test"]["steps"])
    for job in ("pypi", "crate", "npm"):
        assert jobs[job]["needs"] == "test"
        assert jobs[job]["permissions"]["id-token"] == "write"
    assert set(jobs["release"]["needs"]) == {"pypi", "crate", "npm"}
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    pythons = [name.rsplit(" ", 1)[1] for name in classifiers if re.search(r":: 3\.\d+$", name)]
    assert matrix["python"] == pythons


def test_no_step_names_a_secret() -> None:
    for path in (GITHUB / "workflows").iterdir():
        assert "secrets." not in path.read_text("utf-8"), path.name


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_an_issue_template_asks_something(path: Path) -> None:
    form = read(path)
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all({"id", "attributes"} <= field.keys() for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_hooks_are_the_tools_of_make_lint() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert [entry.split()[0] for entry in entries] == [
        ".venv/bin/ruff",
        ".venv/bin/ruff",
        ".venv/bin/mypy",
        ".venv/bin/python",
    ]
    for path in re.findall(r"tests/\S+", " ".join(entries)):
        assert (ROOT / path).exists()


def test_every_target_is_phony_and_has_its_line_in_the_help() -> None:
    explained = set(re.findall(r"^([a-z0-9-]+):.*## \S", MAKEFILE, re.MULTILINE))
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    assert targets() == explained == set(phony[1].replace("\\", "").split())
    assert {"demo", "test", "clients", "integrations"} <= explained
