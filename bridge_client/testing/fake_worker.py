"""The fake worker: `python -m bridge_client.testing.fake_worker`. The protocol of `embed_worker`, no model, all faults.

Vectors come from a hash of the text. It starts in a few hundredths of a second, speaks with the codec of
`embed_worker.protocol`, and misbehaves exactly as its flags say; nothing of this exists in the shipped worker. "After
N" counts the `embed` and `tokenize` requests of one process: `--kill-after 3` answers three and dies on the fourth.
`--processes N` limits the faults to the first N processes that share the file of `--count-file`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bridge_client.testing.fake_faults import make_parser
from bridge_client.testing.fake_model import MAX_TOKENS, counts_of, pack_rows, vector_of
from bridge_client.testing.processes import die, freeze
from embed_worker import machine, protocol
from embed_worker.protocol import Cancel, Embed, ErrorCode, Limits, ProtocolError, RequestId, Tokenize


class FakeWorker:
    """One process: a reader, which answers what is answered at once, and with a latency a thread that "computes"."""

    def __init__(self, faults: argparse.Namespace) -> None:
        self._faults = faults
        self._write_lock = threading.Lock()
        self._held: list[bytes] = []
        self._embeds = 0
        self._micro_batches = 0
        self._cancelled: set[RequestId] = set()
        self._is_hung = False
        self._work: queue.SimpleQueue[tuple[RequestId, Embed | Tokenize] | None] = queue.SimpleQueue()
        self._waiting: set[RequestId] = set()
        self._limits = Limits(
            max_inputs=faults.max_inputs,
            max_line_bytes=faults.max_line_bytes,
            max_in_flight=faults.max_in_flight,
        )

    def run(self) -> int:
        """Serve until the end of input; return the exit status."""
        faults = self._faults
        if faults.fail_start is not None:
            sys.stderr.write("fake worker: told to fail\n")
            return int(faults.fail_start)
        for number in range(faults.garbage_before_ready):
            self._write(f"loading {number} %\n".encode())
        computing = threading.Thread(target=self._compute, daemon=True)
        computing.start()
        self._read()
        if faults.ignore_eof:
            _sleep_for_ever()
        self._work.put(None)
        computing.join()
        self._flush_held()
        return 0

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(0, 1 << 18):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    self._handle(line)

    def _handle(self, line: bytes) -> None:
        try:
            envelope = protocol.parse_line(line)
        except ProtocolError as error:
            self._write(protocol.encode_error(None, 1, error.code, str(error), error.index))
            return
        try:
            request = protocol.decode_request(envelope, self._limits)
        except ProtocolError as error:
            self._write(protocol.encode_error(envelope.id, 1, error.code, str(error), error.index))
            return
        match request:
            case Embed() | Tokenize():
                self._accept(envelope.id, request)
            case protocol.Info():
                if self._faults.start_delay:
                    time.sleep(self._faults.start_delay)
                self._answer(envelope.id, self._info())
            case protocol.Ping():
                waiting = len(self._waiting)
                told = {"message": "pong", "state": "ready", "micro_batches": self._micro_batches}
                self._answer(envelope.id, told | {"queued": waiting, "in_flight": waiting})
            case protocol.Metrics():
                self._answer(envelope.id, {"metrics": {"micro_batches": self._micro_batches, "rss_bytes": 0}})
            case Cancel():
                is_waiting = request.target in self._waiting
                if is_waiting:
                    self._cancelled.add(request.target)
                self._answer(envelope.id, {"cancelled": is_waiting})
            case _:
                self._answer(envelope.id, {})

    def _info(self) -> dict[str, Any]:
        names = ("max_line_bytes", "max_inputs", "max_text_bytes", "max_in_flight", "max_in_flight_bytes")
        return {
            "protocol": self._faults.protocol,
            "version": "fake",
            "pid": os.getpid(),
            "model": self._faults.model,
            "fingerprint": self._faults.fingerprint,
            "dimension": self._faults.dimension,
            "max_dimension": self._faults.dimension,
            "max_tokens": MAX_TOKENS,
            "limits": {name: getattr(self._limits, name) for name in names},
        }

    def _accept(self, request_id: RequestId, request: Embed | Tokenize) -> None:
        self._waiting.add(request_id)
        if self._faults.latency:
            self._work.put((request_id, request))
        else:
            self._serve(request_id, request)

    def _compute(self) -> None:
        while (work := self._work.get()) is not None:
            until = time.monotonic() + self._faults.latency
            while work[0] not in self._cancelled and time.monotonic() < until:
                time.sleep(min(0.01, self._faults.latency))
            self._serve(*work)

    # Faults

    def _serve(self, request_id: RequestId, request: Embed | Tokenize) -> None:
        number, self._embeds = self._embeds, self._embeds + 1
        if self._misbehave_before(number, request_id, request):
            return
        self._waiting.discard(request_id)
        if request_id in self._cancelled:
            self._cancelled.discard(request_id)
            self._write(protocol.encode_error(request_id, 1, ErrorCode.CANCELLED, "cancelled"))
            return
        most = self._faults.dimension
        if isinstance(request, Embed) and request.dimensions is not None and request.dimensions > most:
            message = f"`dimensions` is {request.dimensions}, the model has {most}"
            self._write(protocol.encode_error(request_id, 1, ErrorCode.INVALID_REQUEST, message))
            return
        self._micro_batches += 1
        results = self._vectors(number, request) if isinstance(request, Embed) else self._tokens(number, request)
        line = protocol.encode_success(request_id, 1, results)
        if self._faults.unknown_ids:
            self._answer(2**52 + number, {})
        if _is_due(self._faults.partial_line_after, number):
            self._write(line[: len(line) // 2])
            die("KILL")
        self._hold_or_write(line)
        if _is_due(self._faults.duplicate_after, number):
            self._write(line)

    def _misbehave_before(self, number: int, request_id: RequestId, request: Embed | Tokenize) -> bool:
        """Do what happens instead of an answer; True if nothing is to be answered."""
        faults = self._faults
        if number == 0 and faults.stderr_flood:
            self._flood(faults.stderr_flood)
        for poison in faults.poison:
            if any(poison in text for text in request.inputs):
                if faults.poison_hangs:
                    self._is_hung = True
                    return True
                if faults.poison_status is not None:
                    os._exit(faults.poison_status)
                die(faults.poison_signal)
        if faults.oom_above is not None and len(request.inputs) > faults.oom_above:
            die("KILL")
        if faults.exit_75_above is not None and len(request.inputs) > faults.exit_75_above:
            self._write(protocol.encode_error(request_id, 1, ErrorCode.OUT_OF_MEMORY, "no memory"))
            os._exit(75)
        after, _, status = (faults.exit_after or "").partition(":")
        if after and _is_due(int(after), number):
            os._exit(int(status or 0))
        after, _, name = (faults.kill_after or "").partition(":")
        if after and _is_due(int(after), number):
            die(name or "KILL")
        if _is_due(faults.hang_after, number):
            self._is_hung = True
            return True
        if _is_due(faults.stop_after, number):
            freeze(os.getpid())
        if _is_due(faults.close_output_after, number):
            self._is_hung = True
            os.close(1)
            return True
        if _is_due(faults.stop_reading_after, number):
            _sleep_for_ever()
        if _is_due(faults.garbage_after, number):
            self._write(b"Segmentation fault (not really)\n")
            return True
        after, _, code = (faults.error_after or "").partition(":")
        if after and _is_due(int(after), number):
            self._waiting.discard(request_id)
            self._write(protocol.encode_error(request_id, 1, ErrorCode(code), "as told", 0))
            return True
        return _is_due(faults.stall_after, number)

    def _flood(self, size: int) -> None:
        block = b"x" * 1024 if self._faults.stderr_no_newline else b"y" * 1023 + b"\n"
        for _ in range(size // len(block)):
            os.write(2, block)

    def _vectors(self, number: int, request: Embed) -> dict[str, Any]:
        faults = self._faults
        dimension = request.dimensions or faults.dimension
        width = dimension + _is_due(faults.wrong_dimension_after, number)
        rows = [vector_of(text, width) for text in request.inputs]
        if _is_due(faults.wrong_count_after, number):
            rows.append(rows[0])
        if _is_due(faults.nan_after, number):
            rows[0][0] = math.nan
        packed = pack_rows(rows, request.encoding_format)
        if _is_due(faults.truncated_base64_after, number):
            packed = packed[:-4]
        return {
            **self._space(number),
            "dimension": width,
            "count": len(rows),
            "embeddings_base64": base64.b64encode(packed).decode(),
            **counts_of(request),
            "timing_ms": {"queue": 0.0, "tokenize": 0.0, "inference": 0.0, "total": 0.0},
        }

    def _tokens(self, number: int, request: Tokenize) -> dict[str, Any]:
        told = {**self._space(number), "count": len(request.inputs), **counts_of(request)}
        if _is_due(self._faults.wrong_count_after, number):
            told["tokens"].append(2)
        return told

    def _space(self, number: int) -> dict[str, str]:
        is_other = _is_due(self._faults.other_fingerprint_after, number)
        return {"model": self._faults.model, "fingerprint": "0" * 16 if is_other else self._faults.fingerprint}

    # Writing

    def _answer(self, request_id: RequestId, members: dict[str, Any]) -> None:
        self._write(protocol.encode_success(request_id, 1, members))

    def _hold_or_write(self, line: bytes) -> None:
        if self._faults.reorder is None:
            self._write(line)
            return
        self._held.append(line)
        if len(self._held) == self._faults.reorder:
            self._flush_held()

    def _flush_held(self) -> None:
        while self._held:
            self._write(self._held.pop())

    def _write(self, line: bytes) -> None:
        if self._is_hung:
            return
        size, _, pause = (self._faults.slow_write or "").partition(":")
        with self._write_lock:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(1, rest[: int(size)] if size else rest) :]
                if pause:
                    time.sleep(float(pause))


def _is_due(after: int | None, number: int) -> bool:
    return after is not None and number >= after


def _sleep_for_ever() -> NoReturn:
    while True:
        time.sleep(3600)


def _count(path: Path) -> int:
    """Return how many processes have come before, and add this one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b".")
    place = os.lseek(descriptor, 0, os.SEEK_CUR)  # behind our own byte, whoever else appends
    os.close(descriptor)
    return place - 1


def _watch_parent() -> None:
    is_there = machine.watch_parent()
    while is_there():
        time.sleep(0.5)
    _leave(74)


_children: list[subprocess.Popen[bytes]] = []


def _leave(status: int) -> NoReturn:
    """Exit, and take the grandchild along: when the host is dead already, nobody else could."""
    for child in _children:
        child.kill()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Be the fake worker."""
    parser = make_parser(__doc__)
    faults = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if faults.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it dies often
    if faults.count_file:
        number = _count(Path(faults.count_file))
        if faults.change_model:
            faults.fingerprint = f"{number:016x}"
        if faults.processes is not None and number >= faults.processes:
            kept = {"model", "dimension", "fingerprint", "protocol"}
            for name, value in vars(parser.parse_args([])).items():
                if name not in kept:
                    setattr(faults, name, value)
    if faults.say:
        sys.stderr.write(f"{faults.say}\n")
        sys.stderr.flush()
    if faults.grandchild:
        sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
        _children.append(subprocess.Popen(sleeper, stdin=subprocess.DEVNULL))  # noqa: S603 - itself
        Path(faults.grandchild).write_text(str(_children[0].pid), "ascii")
    if not faults.ignore_parent:
        threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        status = FakeWorker(faults).run()
    except OSError:  # nobody reads any more
        status = 74
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    _leave(status)


if __name__ == "__main__":
    main()
