"""What a worker says and does, heard on the threads around its process: answers, other lines, lost pipes, its end.

It matches answers with what asked for them. What changes a worker's life it only passes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from bridge_client.callbacks import CallbackThread
from bridge_client.calls import EmbedAnswer
from bridge_client.chunks import Answer, Chunk
from bridge_client.exits import Cause, ExitReport
from bridge_client.pool import Pool
from bridge_client.worker_process import WorkerProcess, printable
from bridge_client.worker_slot import Control, Generation, Internal, WorkerSlot
from embed_worker import protocol
from embed_worker.protocol import Failure, ProtocolError, Response, Success

_log = logging.getLogger(__name__)
_worker_log = logging.getLogger("bridge_client.worker")

_INVALID_LINES_BEFORE_READY = 20  # lines of a chatty library or wrapper script
_QUOTED = 80  # characters of such a line
_PIPE_LOST_S = 1.0  # a process whose pipe is gone should be gone, too


class Lives(Protocol):
    """Who decides about the lives of workers; nothing here waits for that."""

    def introduced(self, slot: WorkerSlot, generation: Generation, response: Response) -> None:
        """Hear the answer to the handshake."""

    def embedded(self, slot: WorkerSlot, generation: Generation) -> None:
        """Hear that a generation has embedded something, for the first time."""

    def gone(self, process: WorkerProcess, report: ExitReport) -> None:
        """Hear that a process is dead and reaped."""


class Listener:
    """The owner of every worker process of a client, as far as its output goes."""

    def __init__(self, pool: Pool, lives: Lives, callbacks: CallbackThread, wake: Callable[[float], None]) -> None:
        self._pool = pool
        self._lives = lives
        self._callbacks = callbacks
        self._wake = wake

    def on_line(self, process: WorkerProcess, line: bytes) -> None:
        """Match an answer with what asked for it."""
        generation = self._pool.slots[process.number].generation
        if generation is None or generation.process is not process or generation.ignores_output:
            return
        try:
            response = protocol.decode_response(line)
        except ProtocolError as error:
            self._on_invalid_line(generation, line, str(error))
            return
        awaited = generation.awaited.get(response.id) if type(response.id) is int else None
        answer = None
        if isinstance(awaited, Chunk):
            try:
                answer = _read(response, awaited, generation)
            except ProtocolError as error:
                self.on_invalid_output(process, f"an answer that does not fit: {error}")
                return
        with self._pool.changing():
            self._take(generation, response, answer)

    def _take(self, generation: Generation, response: Response, answer: Answer | None) -> None:
        slot = self._pool.slots[generation.process.number]
        if slot.generation is not generation:
            return
        now = self._pool.clock()
        if generation.health is not None:
            generation.health.received(now)
        awaited = generation.awaited.pop(response.id, None) if type(response.id) is int else None
        match awaited:
            case None:
                self._pool.dispatcher.counts["unknown"] += 1
            case Chunk():
                model = awaited.call.model
                if answer is not None and model is not None and not self._pool.fits(model, answer.served):
                    answer = None  # a call that gets none for its success fails: another vector space
                self._pool.dispatcher.answered(slot, generation, awaited, response, answer, now)
                if isinstance(answer, EmbedAnswer) and not generation.has_embedded:
                    generation.has_embedded = True
                    self._lives.embedded(slot, generation)
            case Control():
                if isinstance(awaited.request, protocol.Ping):
                    self._on_pong(generation, response, now)
                self._pool.dispatcher.answered_control(awaited, response)
            case Internal.HANDSHAKE:
                self._lives.introduced(slot, generation, response)
            case Internal.PING:
                self._on_pong(generation, response, now)
            case Internal.CANCEL:
                pass

    def _on_pong(self, generation: Generation, response: Response, now: float) -> None:
        micro_batches = response.members.get("micro_batches") if isinstance(response, Success) else None
        if generation.health is not None and isinstance(micro_batches, int):
            generation.health.ponged(now, micro_batches, is_busy=generation.requests > 0)
            self._wake(now)

    def _on_invalid_line(self, generation: Generation, line: bytes, why: str) -> None:
        generation.invalid_lines += 1
        if generation.served is not None or generation.invalid_lines > _INVALID_LINES_BEFORE_READY:
            self.on_invalid_output(generation.process, f"standard output holds something else than answers: {why}")
            return
        if generation.invalid_lines == 1:
            generation.invalid_line = printable(line[:_QUOTED].strip().decode("utf-8", "replace"))
            what = "worker %d printed something else than an answer: %s"
            self._callbacks.log(_log, logging.WARNING, what, generation.process.number, why)
        with self._pool.changing():
            if self._pool.current(generation.process) is generation:
                # A banner without a newline has swallowed the answer, perhaps.
                self._pool.dispatcher.send_control(generation, protocol.Info(), Internal.HANDSHAKE)

    def on_invalid_output(self, process: WorkerProcess, why: str, error: BaseException | None = None) -> None:
        """Trust nothing more from this process, and have it killed."""
        if error is not None:
            self._callbacks.log(_log, logging.ERROR, "internal error while an answer was read", error=error)
        with self._pool.changing():
            if (generation := self._pool.current(process)) is not None:
                generation.ignores_output = True
                self._stop(generation, Cause.BROKE_PROTOCOL, why, 0.0)

    def on_pipe_lost(self, process: WorkerProcess) -> None:
        """Give the process a moment to follow its pipe."""
        with self._pool.changing():
            if (generation := self._pool.current(process)) is not None:
                self._stop(generation, Cause.EXITED, "it closed its pipes but lived on", _PIPE_LOST_S)

    def on_stderr(self, process: WorkerProcess, text: str) -> None:
        """Log what the worker says."""
        if _worker_log.isEnabledFor(logging.INFO):
            self._callbacks.put_if_room(lambda: _worker_log.info("[%d] %s", process.pid, text))

    def on_gone(self, process: WorkerProcess, report: ExitReport) -> None:
        """Pass the end on."""
        self._lives.gone(process, report)

    def _stop(self, generation: Generation, cause: Cause, why: str, in_s: float) -> None:
        at = self._pool.clock() + in_s
        generation.stop_at(at, cause, why)
        self._wake(at)


def _read(response: Response, chunk: Chunk, generation: Generation) -> Answer | None:
    """Return what is in an answer; None of an error, or where nobody wants them.

    Raises:
        ProtocolError: It does not fit what was asked for.
    """
    if isinstance(response, Failure):
        if (response.index or 0) >= chunk.weight:
            raise ProtocolError(protocol.ErrorCode.PARSE_ERROR, "an error at an input that there is not")
        return None
    if chunk.call.is_over or generation.served is None:
        return None
    answer: Answer = chunk.call.read(response.members, chunk, generation.served)
    return answer
