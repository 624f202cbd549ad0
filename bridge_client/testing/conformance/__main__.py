"""The command of the conformance suite: which transcripts are played to what, and what is said of it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bridge_client.testing.conformance.run import MODELS, Report, Target, choose, play_all
from bridge_client.testing.conformance.transcript import TRANSCRIPTS, Side, TranscriptError, read_transcripts

_EPILOG = """\
examples:
  python -m bridge_client.testing.conformance worker -- embed-worker
  python -m bridge_client.testing.conformance client -- python -m bridge_client.testing.conformance.adapter
  python -m bridge_client.testing.conformance client --only 'client-*deaths*' -- ./my-adapter

exit status: 0 all transcripts are ok, 1 one has failed, 2 usage or a transcript that cannot be played.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    before, _, command = _split(arguments)
    parser = make_parser()
    options = parser.parse_args(before)
    if not command:
        parser.error("the command to test comes after `--`")
    target = Target(
        command=tuple(command),
        models=options.models,
        real_worker=(sys.executable, "-m", "embed_worker") if not options.worker else tuple(options.worker),
        timeout_s=options.timeout_s,
    )
    try:
        transcripts = choose(read_transcripts(options.transcripts), Side(options.side), options.only)
    except TranscriptError as error:
        parser.error(str(error))
    if not transcripts:
        parser.error(f"no transcript for a {options.side} is named so")
    reports = []
    for report in play_all(transcripts, target, options.jobs):
        reports.append(report)
        if not options.json:
            _say(_line_of(report))
    counts = Counter(report.result for report in reports)
    if options.json:
        _say(json.dumps({"counts": counts, "transcripts": [dataclasses.asdict(report) for report in reports]}))
    else:
        _say(", ".join(f"{counts[result]} {result}" for result in ("ok", "failed", "skipped") if counts[result]))
    return 1 if counts["failed"] else 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line, without the command to test."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_client.testing.conformance",
        usage="%(prog)s {worker,client} [options] -- COMMAND…",
        description="Play the conformance transcripts to a worker, or to a client through its adapter.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("side", choices=[str(side) for side in Side], help="what COMMAND is")
    add("--transcripts", type=Path, default=TRANSCRIPTS, metavar="DIR", help="others than the suite's own")
    add("--models", type=Path, default=MODELS, metavar="DIR", help="others than the suite's own test models")
    add("--worker", nargs="+", metavar="ARG", help="the real worker that clients are given (python -m embed_worker)")
    add("--only", action="append", metavar="NAME", help="play these only; repeatable, may hold * and ?")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="transcripts at a time (all cores)")
    add("--timeout-s", type=float, default=30.0, metavar="S", help="the longest that a step waits (30)")
    add("--json", action="store_true", help="one JSON object instead of lines for people")
    return parser


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Cut the arguments at `--`."""
    if "--" not in arguments:
        return arguments, "", []
    place = arguments.index("--")
    return arguments[:place], "--", arguments[place + 1 :]


def _line_of(report: Report) -> str:
    line = f"{report.result:8}{report.transcript:32}"
    match report.result:
        case "ok":
            return f"{line}{report.steps:4} steps  {report.seconds:6.2f} s"
        case "failed":
            return f"{line}step {report.steps + 1}, line {report.line} ({report.heading}): {report.why}"
        case _:
            return f"{line}{report.why}"


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # as in `… | head -1`: the exit status still tells
        os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
