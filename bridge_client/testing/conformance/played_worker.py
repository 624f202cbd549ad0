"""The worker that the conformance suite plays to a client: the fake worker, with other faults in every process.

It is started as `python played_worker.py FOLDER`. The n-th process that shares the folder takes the n-th list of
flags of `FOLDER/flags.json` (the last one again when they are used up), and everything that the host writes to it is
copied to `FOLDER/n.sent`, so that the suite can look at the host's half of the conversation.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed_worker.protocol import RequestId


def main(argv: Sequence[str] | None = None) -> int:
    """Be the fake worker that the folder asks for."""
    (name,) = (each for each in (sys.argv[1:] if argv is None else argv) if each != "--supervised")
    folder = Path(name)
    number = _claim_number(folder)
    sent = folder / f"{number}.sent"
    born = {"pid": os.getpid(), "started_s": time.monotonic()}
    # Written aside and renamed: whoever reads it meanwhile must not see half of it.
    draft = folder / f"{number}.draft"
    draft.write_text(json.dumps(born), "ascii")
    draft.rename(folder / f"{number}.json")
    faults = json.loads((folder / "flags.json").read_text("utf-8"))
    _copy_input(sent)

    # Here, because the file is run by its path, by hosts that may have any working directory and any environment.
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    from bridge_client.testing import fake_worker
    from embed_worker import protocol

    encode = protocol.encode_success

    def encode_success(request_id: RequestId, line_number: int, members: Mapping[str, Any]) -> bytes:
        # Hosts ignore members that they do not know: every answer has one.
        return encode(request_id, line_number, {**members, "of_a_later_version": {"id": 0}})

    protocol.encode_success = encode_success
    return fake_worker.main(faults[min(number, len(faults) - 1)])


def _claim_number(folder: Path) -> int:
    for number in itertools.count():
        with contextlib.suppress(FileExistsError):
            (folder / f"{number}.sent").touch(exist_ok=False)
            return number
    raise AssertionError


def _copy_input(sent: Path) -> None:
    """Let standard input pass through a pipe of our own, and keep a copy of it."""
    outer = os.dup(0)
    inner, writing = os.pipe()
    os.dup2(inner, 0)
    os.close(inner)
    threading.Thread(target=_pump, args=(outer, writing, sent), daemon=True).start()


def _pump(reading: int, writing: int, sent: Path) -> None:
    try:
        copy = os.open(sent, os.O_WRONLY | os.O_APPEND)
        while chunk := os.read(reading, 1 << 16):
            os.write(copy, chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(writing, rest) :]
        sent.with_suffix(".end").touch()
    finally:
        os.close(writing)  # or the worker would outlive a suite that has removed the folder


if __name__ == "__main__":
    sys.exit(main())
