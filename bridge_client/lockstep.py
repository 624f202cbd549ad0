"""The command `embed-lockstep`: a worker for hosts that start "an interpreter and a script" and talk without ids.

Such hosts can neither pass options nor start a worker again. So this is a program in between: it answers each line of
standard input before it reads the next, over `EmbedClient`, and a worker that is killed costs its host some time and
nothing else. Arguments are ignored, such as the path of a script; `--help` alone prints this. The settings come from
the environment, and what is not set keeps the worker's default:

| variable | option of `embed-worker` |
|---|---|
| `EMBED_WORKER_MODEL` | `--model`: a model's folder or its name |
| `EMBED_WORKER_MODELS` | folders to look for names in, separated as in `PATH` |
| `EMBED_WORKER_PROVIDER` | `--provider` |
| `EMBED_WORKER_THREADS` | `--threads` |
| `EMBED_WORKER_ARGS` | any others, quoted as in a shell |

Nothing is loaded until a request needs it. A request that names another model than the default has that one loaded
instead, by the same settings, in a worker of its own. As under `--supervised`, Ctrl-C is ignored, which is meant for
the host, and the program ends when its host does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, assert_never

from bridge_client.client import EmbedClient
from bridge_client.errors import (
    BridgeError,
    CircuitOpenError,
    PoisonedInputError,
    RequestError,
    RequestTimeoutError,
    WorkerError,
)
from bridge_client.lifecycle import State
from embed_worker import logs, machine, protocol
from embed_worker.arguments.serve import make_config, make_parser
from embed_worker.config import DEFAULT_MODEL, LogFormat, WorkerConfig
from embed_worker.errors import ModelNotFoundError
from embed_worker.model_files.search import find_by_name, find_model, model_name, models_folders
from embed_worker.protocol import ErrorCode, ExitCode
from embed_worker.serving import stdio

_log = logging.getLogger(__name__)

_START_S = 600.0  # that a model may take until it is there, restarts of its worker included
_PONG_S = 2.0  # for all workers together, which answer at once unless they hang
_LOOK_S = 1.0  # how often it is looked whether the host is still there

OPTIONS = {
    "EMBED_WORKER_PROVIDER": "--provider",
    "EMBED_WORKER_THREADS": "--threads",
}


def main() -> NoReturn:
    """Serve standard input until its end, and end the process; the command line is ignored, but for a sole `--help`."""
    if sys.argv[1:] in (["--help"], ["-h"]):  # of a person: hosts add the path of a script
        sys.stderr.write(__doc__ or "")
        sys.exit(ExitCode.OK)
    try:
        arguments = worker_arguments(os.environ)
    except ValueError as error:
        _usage(f"EMBED_WORKER_ARGS cannot be taken apart: {error}")
    model = os.environ.get("EMBED_WORKER_MODEL") or DEFAULT_MODEL
    options = make_parser().parse_args(["--supervised", "--model", model, *arguments])
    config = make_config(options)
    if len(config.models) > 1:
        _usage("EMBED_WORKER_ARGS has a --model: other models are loaded when a request names them")
    try:
        is_host_there = machine.watch_parent()
        wire = stdio.claim()
    except ValueError as error:
        _usage(str(error))
    except (stdio.WireError, OSError) as error:
        sys.stderr.write(f"embed-lockstep: {error}\n")
        sys.exit(ExitCode.PIPE_FAILED)
    logs.set_up_logging(options.log_level, LogFormat(options.log_format))
    _end_on_signals()
    threading.Thread(target=_end_with_host, args=(is_host_there,), name="host", daemon=True).start()
    with contextlib.closing(LockStep(config, arguments)) as server:
        sys.exit(serve(server, wire))


def _usage(message: str) -> NoReturn:
    sys.stderr.write(f"embed-lockstep: {message}\n")
    sys.exit(ExitCode.USAGE)


def worker_arguments(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Turn the environment into the worker's arguments after `--model`; an empty variable is not set.

    Raises:
        ValueError: A quotation mark has no other.
    """
    given = [(option, environment.get(name, "")) for name, option in OPTIONS.items()]
    named = [part for option, value in given if value for part in (option, value)]
    return (*named, *shlex.split(environment.get("EMBED_WORKER_ARGS", "")))


def serve(server: LockStep, wire: stdio.Wire) -> int:
    """Answer line after line; return the exit status."""

    def nobody_reads() -> NoReturn:
        raise SystemExit(ExitCode.PIPE_FAILED)

    writer = stdio.LineWriter(wire.writing, on_broken=nobody_reads)
    try:
        for line in stdio.LineReader(wire.reading, server.config.limits.max_line_bytes):
            if not line.is_blank:
                writer.write(server.answer(line))
            if server.is_over:
                break
    except stdio.WireError as error:
        sys.stderr.write(f"embed-lockstep: {error}\n")
        return ExitCode.PIPE_FAILED
    return ExitCode.OK


class LockStep:
    """One request at a time, answered by the client of the model that it names.

    Attributes:
        config: What the settings say.
        is_over: A host has asked for the end.
    """

    def __init__(self, config: WorkerConfig, worker_args: tuple[str, ...]) -> None:
        self.config = config
        self.is_over = False
        self._worker_args = worker_args
        self._folders = models_folders(config.models_dirs)
        self._clients: dict[str, EmbedClient] = {}  # by the model's folder
        self._found: dict[str | None, tuple[str, str]] = {}  # where models are, by the names that requests use

    def close(self) -> None:
        """Stop all workers."""
        for client in self._clients.values():
            client.close()

    def answer(self, line: stdio.Line) -> bytes:
        """Return the answer to a line, newline included."""
        request_id = None
        try:
            if line.data is None:
                message = f"the line has more than {self.config.limits.max_line_bytes} bytes"
                raise protocol.ProtocolError(ErrorCode.LINE_TOO_LONG, message)
            envelope = protocol.parse_line(line.data)
            request_id = envelope.id
            request = protocol.decode_request(envelope, self.config.limits)
            if isinstance(request, protocol.Embed):
                return self._embed(request, request_id, line.number)
            if isinstance(request, protocol.Tokenize):
                return self._tokenize(request, request_id, line.number)
            return protocol.encode_success(request_id, line.number, self._control(request))
        except Exception as error:  # noqa: BLE001 - the line gets its answer: its host can start nobody again
            code, message, index = refusal(error)
            return protocol.encode_error(request_id, line.number, code, message, index)

    def _embed(self, request: protocol.Embed, request_id: protocol.RequestId, line_number: int) -> bytes:
        found = self._client(request.model).embed_detailed(
            request.inputs,
            timeout_s=None if request.deadline_ms is None else request.deadline_ms / 1000,
            normalize=request.normalize,
            dimensions=request.dimensions,
            prompt_name=request.prompt_name,
            prompt=request.prompt,
            truncate=request.truncate,
            precision=request.encoding_format.precision,
        )
        count, dimension = len(found.vectors), found.dimension
        return protocol.encode_vectors(
            request_id,
            line_number,
            {"model": found.model, "fingerprint": found.fingerprint, "dimension": dimension, "count": count},
            found.vectors.astype(found.vectors.dtype.newbyteorder("<"), order="C", copy=False),
            request.encoding_format,
            {"tokens": found.tokens, "truncated": found.truncated, "timing_ms": dict(found.timing_ms)},
        )

    def _tokenize(self, request: protocol.Tokenize, request_id: protocol.RequestId, line_number: int) -> bytes:
        found = self._client(request.model).tokenize(
            request.inputs,
            timeout_s=None if request.deadline_ms is None else request.deadline_ms / 1000,
            prompt_name=request.prompt_name,
            prompt=request.prompt,
            truncate=request.truncate,
            offsets=request.offsets,
        )
        members = {"model": found.model, "fingerprint": found.fingerprint, "count": len(found.tokens)}
        members |= {"tokens": found.tokens, "truncated": found.truncated}
        return protocol.encode_tokens(request_id, line_number, members, found.offsets)

    def _control(self, request: protocol.Request) -> dict[str, Any]:
        """Return the members of the answer to what has no texts."""
        match request:
            case protocol.Ping():
                return self._pong()
            case protocol.Info():
                return self._client(request.model).info(timeout_s=_START_S)
            case protocol.Metrics():
                return {"metrics": self._client(None).metrics(timeout_s=_START_S)}
            case protocol.LoadModel():
                return self._load(request.model)
            case protocol.UnloadModel():
                return {"model": self._unload(request.model)}
            case protocol.Cancel():
                return {"cancelled": False}  # its target has been answered already
            case protocol.Shutdown():
                self.is_over = True
                return {"pending": 0}
            case protocol.Embed() | protocol.Tokenize():
                raise AssertionError("they have texts")
            case _:
                assert_never(request)

    def _pong(self) -> dict[str, Any]:
        """Return soon what is known without a worker: a host asks whether anybody is there before it loads.

        A worker that is silent, dies of the question or has been given up is none that is ready.
        """
        until = time.monotonic() + _PONG_S
        pongs = []
        for client in self._clients.values():
            if client.stats().state is State.READY:
                with contextlib.suppress(BridgeError):
                    pongs.append(client.ping(timeout_s=max(0.0, until - time.monotonic())))
        return {
            "message": "pong",
            "state": "ready" if len(pongs) == len(self._clients) else "loading",
            "micro_batches": sum(pong["micro_batches"] for pong in pongs),
            "queued": 0,  # whatever was asked for before has been answered
            "in_flight": 0,
        }

    def _load(self, name: str) -> dict[str, Any]:
        """Load a model, or find it loaded; one that failed, or has become another, is begun anew."""
        if self._client(name).stats().state is State.FAILED:
            self._unload(name)
        info = self._client(name).info(timeout_s=_START_S)
        told = {member: info[member] for member in ("model", "dimension", "fingerprint")}
        return told | {"providers": [info["provider"]["chosen"]], "message": f"the model {info['model']} is loaded"}

    def _unload(self, name: str) -> str:
        folder, _ = self._find(name)
        if (client := self._clients.pop(folder, None)) is None:
            raise ModelNotFoundError(f"the model {name!r} is not loaded")
        client.close()
        self._found.clear()
        return name.rpartition("/")[2]

    def _client(self, name: str | None) -> EmbedClient:
        """Return the client whose worker has a model, and no other; it is started at its first use.

        Raises:
            ModelNotFoundError: There is no model of this name.
        """
        if name not in self._found:
            self._found[name] = self._find(name)
        folder, model = self._found[name]
        if folder not in self._clients:
            self._clients[folder] = EmbedClient(model, worker_args=self._worker_args)
        return self._clients[folder]

    def _find(self, name: str | None) -> tuple[str, str]:
        """Return a model's folder, and what `--model` has to be for it."""
        default = self.config.models[0].name_or_path
        if name is None:
            return str(find_model(default, self._folders)), default
        with contextlib.suppress(ModelNotFoundError):
            folder = find_model(default, self._folders)
            if model_name(folder) == name.rpartition("/")[2]:
                return str(folder), default
        found = str(find_by_name(name, self._folders))
        return found, found


def refusal(error: Exception) -> tuple[ErrorCode, str, int | None]:
    """Return the code, the message and the index that tell a host of an error."""
    match error:
        case protocol.ProtocolError():
            return error.code, str(error), error.index
        case ModelNotFoundError():
            return ErrorCode.MODEL_NOT_FOUND, str(error), None
        case RequestError() if error.code in set(ErrorCode):
            return ErrorCode(error.code), str(error).removeprefix(f"{error.code}: "), error.index
        case RequestTimeoutError():
            return ErrorCode.DEADLINE_EXCEEDED, str(error), None
        case PoisonedInputError():
            return ErrorCode.INFERENCE_FAILED, str(error), error.index
        case WorkerError() if error.report.cause.is_permanent:
            return ErrorCode.MODEL_LOAD_FAILED, str(error), None
        case CircuitOpenError() if isinstance(error.last_cause, WorkerError):
            return (*refusal(error.last_cause)[:1], str(error), None)
        case BridgeError():
            return ErrorCode.INTERNAL_ERROR, str(error), None
        case MemoryError():
            return ErrorCode.OUT_OF_MEMORY, "no memory for this request", None
        case _:
            _log.error("internal error code=internal_error", exc_info=error)
            return ErrorCode.INTERNAL_ERROR, "internal error; the traceback is on standard error", None


def _end_on_signals() -> None:
    """Close the workers and leave at a signal that means this process, and ignore what means the host."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(ExitCode.OK))


def _end_with_host(is_host_there: Callable[[], bool]) -> None:
    """Leave when the host has died: its input may be held open by a sibling. The workers see that this one is gone."""
    waiting = threading.Event()
    while is_host_there():
        waiting.wait(_LOOK_S)
    os._exit(ExitCode.OK)


if __name__ == "__main__":
    main()
