"""All suites of this project on the system that runs this file, and a table of what passed, was skipped and failed.

`windows.sh` runs it under Wine and `arm64.sh` under an emulated ARM; on a real Windows,
`python tests/platforms/suites.py` does the same. Arguments choose suites by a part of their names, or name files of
tests. The clients of other languages must be built.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JOBS = "2"
PATIENCE = float(os.environ.get("EMBED_BRIDGE_PATIENCE", "1"))  # how many times longer than usual is no failure yet


@dataclass(slots=True)
class Result:
    """What a suite told; `skipped` and `failed` are sentences."""

    passed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def main() -> int:
    """Run the chosen suites; return the exit status."""
    sys.path.insert(0, str(ROOT))
    from tests.hosts.adapters import CLIENTS, why_not

    suites: dict[str, Callable[[], Result]] = {
        "probe": lambda: lines_of([sys.executable, "-X", "utf8", "tests/platforms/probe.py"], r"(ok|FAIL) +(.*)"),
        "tests of the worker": lambda: pytest("tests/worker", "tests/test_walls.py"),
        "tests of the Python client": lambda: pytest("tests/client", "tests/conformance/test_runner.py"),
        "tests of bulk": lambda: pytest("tests/bulk"),
        "tests of hosts": lambda: pytest("tests/hosts"),
        "transcripts: worker": lambda: transcripts("worker", (sys.executable, "-m", "embed_worker")),
    }
    for language, command in CLIENTS.items():
        if not why_not(language):
            suites[f"transcripts: {language}"] = functools.partial(transcripts, "client", command)
    suites |= {f"tests of the {language} client": tests for language, tests in own_tests(CLIENTS["Node"][0])}
    wanted = sys.argv[1:]
    files = {path: functools.partial(pytest, path) for path in wanted if path.endswith(".py")}
    results = {}
    for name, run in (suites if not wanted else suites | PARTS | files).items():
        if not wanted or any(part in name for part in wanted):
            say(f"== {name}")
            results[name] = run()
            say_row(name, results[name])  # the table may not be reached: a suite takes an hour where all is emulated
            for sentence in results[name].failed:
                say(f"   failed: {sentence}")
    say_table(results)
    return 0 if results and not any(result.failed for result in results.values()) else 1


def goldens() -> Result:
    """Compare all families of folders and the default model with their stored vectors, but for what takes an hour."""
    return pytest(
        *(f"tests/worker/test_{name}.py" for name in ("families", "engine", "golden")),
        "--deselect=tests/worker/test_golden.py::test_a_request_of_three_thousand_texts_is_answered_in_order_while_others_overtake_it",
        "--deselect=tests/worker/test_golden.py::test_pings_are_answered_while_a_text_of_16_mb_and_long_ones_are_dealt_with",
    )


def kills() -> Result:
    """Kill the real worker under load, and the fake one again and again."""
    return pytest("tests/client/test_real_worker.py", "tests/client/test_faults.py", "-k", "real_worker or again")


# What is part of another suite, and runs only where it is asked for.
PARTS: dict[str, Callable[[], Result]] = {"goldens": goldens, "kills": kills}


def say(line: str) -> None:
    print(line, flush=True)


def say_row(name: str, result: Result) -> None:
    say(f"{name:32} {result.passed:6} {len(result.skipped):7} {len(result.failed):6}")


def say_table(results: dict[str, Result]) -> None:
    say(f"\n{'':32} passed skipped failed")
    for name, result in results.items():
        say_row(name, result)
    say("\nskipped:")
    reasons = collections.Counter(reason for result in results.values() for reason in result.skipped)
    for reason, count in sorted(reasons.items()):
        say(f"{count:5} {reason}")
    say(
        "\nall suites passed"
        if results and not any(r.failed for r in results.values())
        else "\nsome failed, or none ran"
    )


# Kinds of suites ---------------------------------------------------------------------------------------------------


def run(command: list[str], cwd: Path = ROOT) -> str:
    """Run a command to its end; return all that it said."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EMBED_BRIDGE_PYTHON": sys.executable}
    pipe = subprocess.PIPE
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT
    )
    return done.stdout.decode("utf-8", "replace") + f"\nexit status {done.returncode}\n"


def pytest(*paths: str) -> Result:
    """Run tests of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = [
            "-n",
            JOBS,
            "--dist=loadfile",  # what the tests of a file share is made once
            "--timeout",
            str(300 * PATIENCE),
            f"--junitxml={report}",
            "--tb=short",
        ]
        said = run([sys.executable, "-m", "pytest", "-q", "--no-header", *options, *paths])
        if not report.exists():
            return Result(failed=[f"pytest did not end: {said[-3000:]}"])
        result = read_junit(report)
        if result.failed:
            say(said[-20_000:])
        return result


def read_junit(report: Path) -> Result:
    result = Result()
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skipped = case.find("skipped")
        problem = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if problem is not None:
            result.failed.append(f"{name}: {(problem.get('message') or '')[:300]}")
        elif skipped is not None:
            result.skipped.append(f"{name.partition('[')[0]}: {skipped.get('message')}")
        else:
            result.passed += 1
    return result


def transcripts(side: str, command: tuple[str, ...]) -> Result:
    """Play the conformance suite to a worker or a client."""
    suite = [
        sys.executable,
        "-m",
        "bridge_client.testing.conformance",
        side,
        "--json",
        "--jobs",
        JOBS,
        "--timeout-s",
        str(120 * PATIENCE),
    ]
    said = run([*suite, "--", *command])
    told = next((line for line in said.splitlines() if line.startswith('{"counts"')), None)
    if told is None:
        return Result(failed=[said[-3000:]])
    result = Result()
    for report in json.loads(told)["transcripts"]:
        match report["result"]:
            case "ok":
                result.passed += 1
            case "skipped":
                result.skipped.append(f"{report['transcript']}: {report['why']}")
            case _:
                result.failed.append(f"{report['transcript']}.jsonl:{report['line']}: {report['why'][:600]}")
    return result


def lines_of(command: list[str], pattern: str, cwd: Path = ROOT) -> Result:
    """Run what says a line for each test: a word for its end, and its name (in either order)."""
    said = run(command, cwd)
    result = Result()
    for first, second in re.findall(pattern, said, re.MULTILINE):
        end, name = (first, second) if first.lower() in _ENDS else (second, first)
        match _ENDS.get(end.lower()):
            case "passed":
                result.passed += 1
            case "skipped":
                result.skipped.append(name.strip())
            case _:
                result.failed.append(name.strip())
    if not said.endswith("exit status 0\n") or not result.passed:
        say(said[-20_000:])
        result.failed.append(f"{command[0]}: {said[-3000:].splitlines()[-1]}, {result.passed} passed")
    return result


_ENDS = {
    "ok": "passed",
    "pass": "passed",
    "skip": "skipped",
    "ignored": "skipped",
    "fail": "failed",
    "failed": "failed",
}


def own_tests(node: str) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Yield the tests that the clients of other languages have themselves, where they are built."""
    from tests.platforms import wine_gaps

    examples = ROOT / "examples"
    gaps = wine_gaps.SKIPPED_OF if wine_gaps.is_wine() else {}

    def without(language: str, option: str, run: Callable[..., Result], *command: str) -> Callable[[], Result]:
        """Leave out what Wine lacks, and tell that it was left out."""

        def run_and_tell() -> Result:
            left_out = gaps.get(language, {})
            result = run([*command, *(f"{option}={pattern}" for pattern in left_out)], examples / language.lower())
            result.skipped += [f"{language}, {pattern}: {why}" for pattern, why in left_out.items()]
            return result

        return run_and_tell

    if (go := examples / "go/bin/client.test.exe").exists():
        command = [str(go), "-test.v", "-test.count=1", "-test.timeout=60m", "-test.parallel=4"]
        yield "Go", without("Go", "-test.skip", go_tests, *command)
    if Path(node).exists():
        command = [node, "--test", "--test-reporter=tap", "--test-concurrency=1"]
        yield "Node", without("Node", "--test-skip-pattern", tap_of, *command)
    for binary in sorted((examples / "rust/target/release/tests").glob("*.exe")):
        name = binary.name.rpartition("-")[0]
        yield f"Rust ({name})", without("Rust", "--skip", rust_tests, str(binary), "--test-threads=2")


def go_tests(command: list[str], cwd: Path) -> Result:
    return lines_of(command, r"^--- (PASS|FAIL|SKIP): (\S+)", cwd)


def rust_tests(command: list[str], cwd: Path) -> Result:
    return lines_of(command, r"^test (.*) \.\.\. (ok|FAILED|ignored)", cwd)


def tap_of(command: list[str], cwd: Path) -> Result:
    """Run what speaks TAP."""
    said = run(command, cwd)
    result = Result()
    # A suite has a verdict, too, and says so behind it.
    for verdict, name in re.findall(
        r"^ *((?:not )?ok) \d+ - (.*)$(?!\n *---\n.*\n *type: 'suite')", said, re.MULTILINE
    ):
        if "# SKIP" in name:
            result.skipped.append(name)
        elif verdict == "ok":
            result.passed += 1
        else:
            result.failed.append(name)
    if not said.endswith("exit status 0\n") or not result.passed:
        say(said[-20_000:])
        result.failed.append(f"{command[0]}: {said[-3000:].splitlines()[-1]}, {result.passed} passed")
    return result


if __name__ == "__main__":
    sys.exit(main())
