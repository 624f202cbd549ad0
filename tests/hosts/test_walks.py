"""The walks of docs/walks.md, walked: each command is typed as it stands there, and what comes is compared.

`make integrations` does it; by hand: `pytest -m walks tests/hosts/test_walks.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.patience import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "walks.md"
ANYTHING = "…"

# What is typed in the place of a command, and why.
INSTEAD = {
    r"git clone … embed-bridge": ('cp -R "$CLONE" embed-bridge', "no address of the repository is known"),
    r"train/bin/python references\.py": (f'cp "{ROOT}/tests/exported/mpnet.expected.json" my-model/references.json',
                                         "torch is gigabytes; the file is sentence-transformers' own vectors"),
    r"\.venv/bin/python(?= -m pytest)": (f'PYTHONPATH="$PACKAGES" "{sys.executable}"', "`make lint` was left out"),
}  # fmt: skip
# What is not typed, by how it begins, and why; what comes of it is not compared.
LEFT_OUT = {
    "make lint": "installs from an index; it is what `make test` begins with",
    "make test": "takes minutes, and runs by itself",
    "sudo ": "writes to the system's folders",
    "systemd-analyze ": "reads what the line before has written; `make deploy-check` reads the unit",
}

_SENTINEL = "\x1e"

pytestmark = [
    pytest.mark.walks,
    pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="there is no bash"),
    pytest.mark.timeout(6 * WAIT_S),
]


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what the page says that comes of it."""

    command: str
    expected: list[str] = field(default_factory=list)

    @property
    def is_left_out(self) -> bool:
        return self.command.startswith(tuple(LEFT_OUT))

    @property
    def typed(self) -> str:
        command = self.command
        for pattern, (replacement, _) in INSTEAD.items():
            command = re.sub(pattern, lambda _, typed=replacement: typed, command)  # type: ignore[misc]
        return command


def walks() -> dict[str, list[Step]]:
    """Return the page's walks by their headings. `> ` goes on with a command, as at a prompt."""
    found: dict[str, list[Step]] = {}
    for section in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        steps = found.setdefault(heading, [])
        for line in "".join(re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)).splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            elif line == ">" or line.startswith("> "):
                steps[-1] = Step(f"{steps[-1].command}\n{line[2:]}")
            else:
                steps[-1].expected.append(line)
    return found


def pattern_of(lines: list[str]) -> re.Pattern[str]:
    """Make a pattern of what the page shows: `…` is anything in its line, and alone any number of lines."""
    parts = [
        r"(?:[^\n]*\n)*?" if line == ANYTHING else re.escape(line).replace(ANYTHING, r"[^\n]*") + r"\n"
        for line in lines
    ]
    return re.compile("".join(parts))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an index would give: the packages of the environment that runs the tests, without our own and pip."""
    folder = tmp_path_factory.mktemp("packages")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(place).iterdir():
            if not re.match(r"(_?_?embed_|bridge_client|pip\b|pip-|.*\.pth$)", path.name):
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as a clone would have it."""
    target = tmp_path_factory.mktemp("clone") / "embed-bridge"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode or not (ROOT / ".git").exists():  # an unpacked archive
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".*", "target", "node_modules", "__pycache__"))
        return target
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, packages: Path, clone: Path) -> dict[str, str]:
    """An empty home, and pip that finds in `packages` what is asked for, and no index."""
    home = tmp_path_factory.mktemp("home")
    kept = ("LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "ORT_DISABLE_TELEMETRY", "RUSTUP_HOME", "CARGO_HOME")
    # Where rustup and cargo keep what they have, when nothing else is said.
    rust = {"RUSTUP_HOME": str(Path.home() / ".rustup"), "CARGO_HOME": str(Path.home() / ".cargo")}
    return {
        **rust,
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "PACKAGES": str(packages),
        "CLONE": str(clone),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: there is none
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TARGET_DIR": str(home / "target"),
    }


@pytest.fixture(scope="module")
def installed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first walk was walked: the other walks begin behind its `pip install .`."""
    folder = tmp_path_factory.mktemp("walks")
    walk("In a shell", folder, environment)
    # A host hands no PYTHONPATH on: here the packages are found as if `pip install` had put them there.
    (site,) = (folder / "embed-bridge" / ".venv" / "lib").glob("python*/site-packages")
    (site / "index.pth").write_text(f"{environment['PACKAGES']}\n", "utf-8")
    return folder / "embed-bridge"


def walk(heading: str, folder: Path, environment: dict[str, str], port: int | None = None) -> None:
    """Type the commands of a walk into one shell, and compare what comes of each."""
    steps = [step for step in walks()[heading] if not step.is_left_out]
    script = ["exec 2>&1"]
    for step in steps:
        # The status is kept for a command that asks for it, as `echo $?` does.
        script += [step.typed, f"status=$?; printf '\\n{_SENTINEL}%s\\n' $status; (exit $status)"]
    source = "\n".join(script) if port is None else "\n".join(script).replace("9464", str(port))
    shell = subprocess.Popen(
        ["bash", "--norc", "-c", source],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said = shell.communicate(timeout=5 * WAIT_S)[0].decode()
    finally:
        if shell.poll() is None or port is not None:  # a `sleep` of the walk that nobody waits for
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    answers = re.findall(rf"(.*?)\n{_SENTINEL}(\d+)\n", said, re.DOTALL)
    assert len(answers) == len(steps), f"the walk ended after {len(answers)} of {len(steps)} commands: {said}"
    for number, (step, (came, status)) in enumerate(zip(steps, answers, strict=True)):
        is_asked = number + 1 < len(steps) and steps[number + 1].command == "echo $?"
        is_refused = any(line.startswith("embed-worker") for line in step.expected) or " failed, " in str(step.expected)
        assert status == "0" or is_asked or is_refused, f"$ {step.command}\n{came}\nexit status {status}"
        came = f"{came}\n" if came and not came.endswith("\n") else came
        assert pattern_of(step.expected).fullmatch(came), f"$ {step.command}\n{came}"


@pytest.fixture
def active(environment: dict[str, str], installed: Path) -> dict[str, str]:
    """The environment after `. .venv/bin/activate`."""
    return environment | {"PATH": f"{installed / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"}


def test_a_shell(installed: Path) -> None:
    assert (installed / "vectors.npy").exists()


def test_python(installed: Path, active: dict[str, str]) -> None:
    walk("In Python", installed, active)


def test_a_model_of_ones_own(installed: Path, active: dict[str, str]) -> None:
    shutil.copytree(ROOT / "tests" / "exported" / "mpnet", installed / "my-model")
    walk("With a model of one's own", installed, active)


def test_rust(installed: Path, active: dict[str, str]) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("there is no cargo")
    manifest = ROOT / "examples" / "rust" / "Cargo.toml"
    command = ["cargo", "fetch", "--offline", "--locked", "--manifest-path", str(manifest)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("its crates are not here: make clients")
    walk("In Rust", installed, active)


def test_operations(installed: Path, active: dict[str, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    walk("In operations", installed, active, port)


def test_a_contributor(environment: dict[str, str], clone: Path, tmp_path: Path) -> None:
    shutil.copytree(clone, tmp_path / "embed-bridge")
    walk("As a contributor", tmp_path / "embed-bridge", environment)


def test_every_walk_is_walked_and_every_reason_is_needed() -> None:
    source = Path(__file__).read_text("utf-8")
    commands = [step.command for steps in walks().values() for step in steps]
    assert len(walks()) == 6
    for heading in walks():
        assert f'walk("{heading}"' in source, heading
    for pattern in INSTEAD:
        assert any(re.search(pattern, command) for command in commands), pattern
    for start in LEFT_OUT:
        assert any(command.startswith(start) for command in commands), start


def test_what_the_page_shows_is_compared() -> None:
    assert pattern_of(["a … c", "…", "end"]).fullmatch("a b c\n1\n2\nend\n")
    assert pattern_of(["a", "…"]).fullmatch("a\n")
    assert not pattern_of(["a … c"]).fullmatch("a b d\n")
    assert not pattern_of(["a"]).fullmatch("a\nb\n")
