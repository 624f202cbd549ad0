"""The core of both clients: the queue, the workers' slots, and the one thread that lives their lives.

Any thread may submit, cancel or ask; what changes a life runs on the supervisor's thread, from its mailbox. One lock
guards the tables; it is never held across I/O that can block or the host's code, and futures are completed after it
is released.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import queue
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from bridge_client import hooks
from bridge_client.callbacks import CallbackThread
from bridge_client.calls import Answer, Chunk, EmbedCall, read_answer
from bridge_client.dispatcher import Dispatcher
from bridge_client.errors import BridgeError, CircuitOpenError, ClientClosedError, error_of
from bridge_client.exits import Cause, ExitReport
from bridge_client.handshake import Served, Unusable
from bridge_client.health import Check, Health
from bridge_client.investigation import Verdict
from bridge_client.lifecycle import Effect, Event, Loss, On, State, step
from bridge_client.options import ClientOptions
from bridge_client.stats import ClientStats, percentiles
from bridge_client.worker_process import WorkerProcess
from bridge_client.worker_slot import Control, Internal, WorkerSlot
from embed_worker import protocol
from embed_worker.protocol import Failure, ProtocolError, Success

_log = logging.getLogger(__name__)
_worker_log = logging.getLogger("bridge_client.worker")

_INVALID_LINES_BEFORE_READY = 20  # lines of a chatty library or wrapper script
_PIPE_LOST_S = 1.0  # a process whose pipe is gone should be gone, too
_LONGEST_SLEEP_S = 60.0


class Supervisor:
    """Keeps the workers alive and every promise kept. `EmbedClient` and `AsyncEmbedClient` are faces of it."""

    def __init__(self, options: ClientOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._policy = options.policy()
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - jitter
        self._lock = threading.Lock()
        self._mailbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._callbacks = CallbackThread()
        self._is_closing = False
        self._pid = os.getpid()
        self._wakes_at = -math.inf  # when the thread looks up by itself
        self._closed = threading.Event()
        # Guarded by the lock.
        self._slots = [WorkerSlot(number, replay=options.replay) for number in range(options.workers)]
        self._dispatcher = Dispatcher(options, self._slots, call_back=self._callbacks.put, wake=self._wake)
        self._expected: Served | None = None  # what every worker must serve
        self._spawned = 0

    # From any thread

    def start(self) -> None:
        """Start the workers, if that has not been done; returns at once."""
        self._refuse_in_child()
        with self._lock:
            if self._thread is not None or self._is_closing:
                return
            self._thread = threading.Thread(target=self._run, name="bridge-supervisor", daemon=True)
            self._callbacks.start()
            self._thread.start()
        hooks.register(self)
        self._post_all(On.START)

    def submit(self, call: EmbedCall) -> None:
        """Queue a call; its future ends exactly once.

        Raises:
            BridgeError: It cannot be queued: full, closed, failed, or an input is in quarantine.
        """
        self._refuse_in_child()
        if self._thread is None:
            self.start()
        chunks = list(call.chunks())
        with self._changing():
            self._refuse()
            self._dispatcher.submit(call, chunks, self._clock())
        call.future.add_done_callback(lambda future: self._on_done(call, future))

    def ask(self, control: Control) -> None:
        """Ask a worker something as soon as it is ready."""
        self._refuse_in_child()
        if self._thread is None:
            self.start()
        slot = self._slots[control.worker]
        with self._changing():
            self._refuse(slot)
            self._dispatcher.ask(slot, control)

    def room(self) -> Future[None]:
        """Return a future that is done when a call that did not fit may be tried again."""
        future: Future[None] = Future()
        with self._changing():
            self._dispatcher.add_room_waiter(future)
            if self._is_closing:
                self._dispatcher.make_room()
        return future

    def restart(self, *, accept_model: bool) -> None:
        """Replace every worker, at once; what is in flight and not finished in time is sent again."""
        self._refuse_in_child()
        with self._lock:
            if self._is_closing:
                raise ClientClosedError("the client is closed")
        if self._thread is None:
            self.start()
        else:
            self._mailbox.put(functools.partial(self._restart, accept_model=accept_model))

    def close_soon(self) -> None:
        """Begin to close; safe anywhere, also in a garbage collection that interrupts this very class."""
        if self._pid == os.getpid():
            self._is_closing = True
            self._mailbox.put(self._close)

    def close(self) -> None:
        """Close and wait, for as long as the close ladder takes at most."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._is_closing = True
            is_running = self._thread is not None
        if not is_running:
            self._closed.set()
            return
        self.close_soon()
        timing = self._options.timing
        patience_s = timing.drain_s + 3 * timing.terminate_s + 5.0
        # An interrupted wait goes on: leaving now would leave a worker.
        interrupted: BaseException | None = None
        until = time.monotonic() + patience_s
        while not self._closed.is_set() and time.monotonic() < until:
            try:
                self._closed.wait(max(0.0, until - time.monotonic()))
            except KeyboardInterrupt as error:
                interrupted = error
        if self._thread is not None:
            self._thread.join(1.0)
        self._callbacks.join(1.0)
        if interrupted is not None:
            raise interrupted

    def forget_in_child(self) -> None:
        """Let go of every pipe in a forked child, and of a lock that a thread held that is not there any more."""
        self._lock = threading.Lock()
        for slot in self._slots:
            if slot.process is not None:
                slot.process.forget_in_child()

    def stats(self) -> ClientStats:
        """Take a snapshot."""
        now = self._clock()
        with self._lock:
            workers = tuple(slot.stats(now, self._policy) for slot in self._slots)
            counts = self._dispatcher.counts
            best = min(workers, key=lambda worker: _USEFULNESS.index(worker.state))
            return ClientStats(
                state=best.state,
                pid=best.pid,
                generation=best.generation,
                restarts=max(0, self._spawned - sum(worker.generation > 0 for worker in workers)),
                in_flight=sum(worker.in_flight for worker in workers),
                queued=self._dispatcher.queued_calls,
                requests=counts["requests"],
                replays=counts["replays"],
                blamed=counts["blamed"],
                timeouts=counts["timeouts"],
                unknown_answers=counts["unknown"],
                latency_ms=percentiles(self._dispatcher.latencies_ms),
                last_exit=best.last_exit,
                workers=workers,
            )

    def _refuse_in_child(self) -> None:
        if self._pid != os.getpid():
            raise ClientClosedError("this process was forked from the client's: make a new client here")

    def _refuse(self, *slots: WorkerSlot) -> None:
        """Raise what a call is refused with while no worker can ever serve it."""
        if self._is_closing:
            raise ClientClosedError("the client is closed")
        if all(slot.life.state is State.FAILED for slot in slots or self._slots):
            raise self._failure(*slots)

    def _failure(self, *slots: WorkerSlot) -> BridgeError:
        """Make the error for what cannot be served now."""
        slot = min(slots or self._slots, key=lambda each: each.life.wake_at or math.inf)
        assert slot.last_exit is not None
        last = error_of(slot.last_exit)
        if slot.life.wake_at is None:
            return last
        return CircuitOpenError(max(0.0, slot.life.wake_at - self._clock()), last)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock; afterwards complete the futures whose outcome was decided."""
        try:
            with self._lock:
                try:
                    yield
                finally:
                    deliveries = self._dispatcher.take_deliveries()
        finally:
            for deliver in deliveries:
                deliver()

    def _on_done(self, call: EmbedCall, future: Future[Any]) -> None:
        if future.cancelled():
            with self._changing():
                self._dispatcher.withdraw(call)
                self._dispatcher.dispatch(self._clock())

    def _wake(self, at: float) -> None:
        """See to it that the thread looks at the clock by then."""
        if at < self._wakes_at:
            self._wakes_at = at
            self._mailbox.put(None)

    # What a worker says: on its reader's thread

    def on_line(self, process: WorkerProcess, line: bytes) -> None:
        """Match an answer with what asked for it."""
        slot = self._slots[process.number]
        if slot.process is not process or slot.ignores_output:
            return
        try:
            response = protocol.decode_response(line)
        except ProtocolError as error:
            self._on_strange_line(slot, process, str(error))
            return
        awaited = slot.awaited.get(response.id) if type(response.id) is int else None
        answer: Answer | None = None
        if isinstance(awaited, Chunk) and isinstance(response, Failure) and (response.index or 0) >= awaited.weight:
            self.on_invalid_output(process, "an error at an input that there is not")
            return
        if isinstance(awaited, Chunk) and isinstance(response, Success) and not awaited.call.is_over:
            if (served := slot.served) is None:
                return
            try:
                answer = read_answer(response.members, awaited, served)
            except ProtocolError as error:
                self.on_invalid_output(process, f"an answer that does not fit: {error}")
                return
        with self._changing():
            if slot.process is not process:
                return
            now = self._clock()
            if slot.health is not None:
                slot.health.received(now)
            if awaited is None or slot.awaited.pop(response.id, None) is None:  # type: ignore[arg-type]
                self._dispatcher.counts["unknown"] += 1
            elif isinstance(awaited, Chunk):
                self._dispatcher.answered(slot, awaited, response, answer, now)
                if answer is not None and not slot.has_embedded:
                    slot.has_embedded = True
                    self._mailbox.put(functools.partial(self._advance, slot, Event(On.EMBEDDED), process))
            elif isinstance(awaited, Control):
                if isinstance(awaited.request, protocol.Ping):
                    self._on_pong(slot, response, now)
                self._dispatcher.answered_control(awaited, response)
            elif awaited is Internal.HANDSHAKE:
                self._mailbox.put(functools.partial(self._on_info, slot, process, response))
            elif awaited is Internal.PING:
                self._on_pong(slot, response, now)

    def _on_pong(self, slot: WorkerSlot, response: protocol.Response, now: float) -> None:
        micro_batches = response.members.get("micro_batches") if isinstance(response, Success) else None
        if slot.health is not None and isinstance(micro_batches, int):
            slot.health.ponged(now, micro_batches, is_busy=slot.is_busy)
            self._wake(now)

    def _on_strange_line(self, slot: WorkerSlot, process: WorkerProcess, why: str) -> None:
        slot.invalid_lines += 1
        if slot.served is None and slot.invalid_lines <= _INVALID_LINES_BEFORE_READY:
            if slot.invalid_lines == 1:
                _log.warning("worker %d printed something else than an answer: %s", process.number, why)
            with self._changing():
                if slot.process is process and slot.served is None:
                    # A banner without a newline has swallowed the answer, perhaps.
                    self._dispatcher.send_control(slot, protocol.Info(), Internal.HANDSHAKE)
        else:
            self.on_invalid_output(process, f"standard output holds something else than answers: {why}")

    def on_invalid_output(self, process: WorkerProcess, why: str) -> None:
        """Trust nothing more from this process, and kill it."""
        slot = self._slots[process.number]
        with self._lock:
            if slot.process is process:
                slot.ignores_output = True
                self._stop_in(slot, Cause.BROKE_PROTOCOL, why, 0.0)

    def on_pipe_lost(self, process: WorkerProcess) -> None:
        """Give the process a moment to follow its pipe."""
        slot = self._slots[process.number]
        with self._lock:
            if slot.process is process:
                self._stop_in(slot, Cause.EXITED, "it closed its pipes but lived on", _PIPE_LOST_S)

    def on_stderr(self, process: WorkerProcess, text: str) -> None:
        """Log what the worker says."""
        if _worker_log.isEnabledFor(logging.INFO):
            self._callbacks.put_if_room(lambda: _worker_log.info("[%d] %s", process.pid, text))

    def on_gone(self, process: WorkerProcess, report: ExitReport) -> None:
        """Pass the end on to the supervisor's thread."""
        self._mailbox.put(functools.partial(self._on_gone, process, report))

    def _stop_in(self, slot: WorkerSlot, cause: Cause, why: str, in_s: float) -> None:
        at = self._clock() + in_s
        slot.stop_at(at, cause, why)
        self._wake(at)

    # The supervisor's thread

    def _run(self) -> None:
        while not self._closed.is_set():
            action: Callable[[], None] | None = None
            with contextlib.suppress(queue.Empty):
                action = self._mailbox.get(timeout=max(0.0, self._plan() - self._clock()))
            try:
                if action is not None:
                    action()
                self._look_at_the_clock()
            except Exception:  # noqa: BLE001 - whoever waits must not wait for ever
                _log.exception("the supervisor met a bug")
            if all(slot.life.state is State.CLOSED for slot in self._slots):
                self._closed.set()
        hooks.unregister(self)
        with self._changing():
            self._dispatcher.make_room()
        self._callbacks.stop()

    def _post_all(self, on: On) -> None:
        for slot in self._slots:
            self._mailbox.put(functools.partial(self._advance, slot, Event(on)))

    def _restart(self, *, accept_model: bool) -> None:
        if accept_model:
            with self._lock:
                self._expected = None
        for slot in self._slots:
            self._advance(slot, Event(On.RESTART))

    def _close(self) -> None:
        for slot in self._slots:
            self._advance(slot, Event(On.CLOSE))

    def _plan(self) -> float:
        """Return when the thread has to look at the clock again."""
        with self._lock:
            times = [self._dispatcher.next_deadline()]
            for slot in self._slots:
                times.append(math.inf if slot.life.wake_at is None else slot.life.wake_at)
                times.append(math.inf if slot.abandon_at is None else slot.abandon_at)
                if slot.kill_at is not None:
                    times.append(slot.kill_at[0])
                elif slot.accepts and slot.health is not None:
                    times.append(slot.health.next_check(is_busy=slot.is_busy))
            self._wakes_at = min(*times, self._clock() + _LONGEST_SLEEP_S)
            return self._wakes_at

    def _look_at_the_clock(self) -> None:
        """Do everything that is due."""
        now = self._clock()
        with self._changing():
            self._dispatcher.expire(now)
        for slot in self._slots:
            if slot.life.wake_at is not None and now >= slot.life.wake_at:
                self._advance(slot, Event(On.TIMEOUT))
            process = slot.process
            if process is None:
                continue
            if slot.abandon_at is not None and now >= slot.abandon_at:
                _log.error("worker %d does not die: pid %d is abandoned", slot.number, process.pid)
                self._on_gone(process, process.report(None))
            elif slot.kill_at is not None and now >= slot.kill_at[0]:
                self._kill(slot, process, *slot.kill_at[1:])
            elif slot.accepts and slot.health is not None:
                self._check_health(slot, process, slot.health, now)

    def _check_health(self, slot: WorkerSlot, process: WorkerProcess, health: Health, now: float) -> None:
        with self._lock:
            check = health.check(now, is_busy=slot.is_busy)
            if check is Check.PING:
                self._dispatcher.send_control(slot, protocol.Ping(), Internal.PING)
        if check is Check.SILENT:
            self._kill(slot, process, Cause.HUNG, "it gave no sign of life")
        elif check is Check.STUCK:
            self._kill(slot, process, Cause.HUNG, "it made no progress with what it had")

    def _kill(self, slot: WorkerSlot, process: WorkerProcess, cause: Cause, why: str) -> None:
        with self._lock:
            slot.is_stopping = True
            slot.kill_at = None
            if slot.abandon_at is None:
                slot.abandon_at = self._clock() + self._policy.terminate_s
        process.kill(cause, why)

    def _advance(self, slot: WorkerSlot, event: Event, process: WorkerProcess | None = None) -> None:
        """Let a life take one step, and do what it asks for. An event of an older process is none."""
        with self._lock:
            if process is not None and slot.process is not process:
                return
            before = slot.life.state
            slot.life, effects = step(slot.life, event, self._clock(), self._policy)
            after = slot.life.state
        if after is not before:
            self._tell(slot, before, after)
        for effect in effects:
            self._do(slot, effect)
        with self._changing():
            self._dispatcher.send_controls(slot)
            self._dispatcher.dispatch(self._clock())

    def _tell(self, slot: WorkerSlot, before: State, after: State) -> None:
        pid = "-" if slot.process is None else str(slot.process.pid)
        why = f" ({slot.last_exit.describe()})" if after in (State.BACKING_OFF, State.FAILED) and slot.last_exit else ""
        message = f"worker {slot.number} {before} -> {after} pid={pid} generation={slot.generation}{why}"
        self._callbacks.put(lambda: _log.info("%s", message))
        if (listener := self._options.on_state_change) is not None:
            self._callbacks.put(lambda: listener(slot.number, after))

    def _do(self, slot: WorkerSlot, effect: Effect) -> None:
        process = slot.process
        match effect:
            case Effect.SPAWN:
                self._spawn(slot)
            case Effect.FAIL_WAITING:
                self._fail_waiting(slot)
            case Effect.END_INPUT if process is not None:
                with self._lock:
                    slot.is_stopping = True
                process.end_input()
            case Effect.TERMINATE if process is not None:
                process.terminate()
            case Effect.KILL if process is not None:
                is_start = slot.life.state is State.STARTING
                why = f"not ready after {self._policy.start_timeout_s:g} s" if is_start else ""
                self._kill(slot, process, Cause.START_TIMEOUT if is_start else Cause.ASKED, why)
            case _:
                pass

    def _spawn(self, slot: WorkerSlot) -> None:
        argv = self._options.argv()
        try:
            process = WorkerProcess.spawn(
                argv,
                environment=self._options.environment(os.environ),
                cwd=self._options.cwd,
                owner=self,
                number=slot.number,
            )
        except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
            # What cannot be executed never will be; a system without memory or processes may recover.
            may_recover = isinstance(error, (OSError, subprocess.SubprocessError)) and not isinstance(
                error, (FileNotFoundError, PermissionError, NotADirectoryError)
            )
            cause = Cause.NOT_SPAWNED if may_recover else Cause.UNUSABLE
            self._lose(slot, ExitReport(cause=cause, argv=argv, detail=str(error)))
            return
        with self._lock:
            slot.process = process
            slot.generation += 1
            self._spawned += 1
            self._dispatcher.send_control(slot, protocol.Info(), Internal.HANDSHAKE)

    def _on_info(self, slot: WorkerSlot, process: WorkerProcess, response: protocol.Response) -> None:
        """Compare what a new worker is with what it has to be."""
        if slot.process is not process or slot.life.state is not State.STARTING:
            return
        if isinstance(response, Failure):
            # It says why, and should leave now with a status that says what that means.
            _log.warning("worker %d: %s: %s", slot.number, response.code, response.message)
            with self._lock:
                self._stop_in(slot, Cause.UNUSABLE, response.message, self._policy.terminate_s)
            return
        try:
            served = Served.from_info(response.members)
        except Unusable as error:
            self._kill(slot, process, Cause.PROTOCOL_MISMATCH, str(error))
            return
        with self._lock:
            if self._expected is None:
                self._expected = served
            expected = self._expected
            has_changed = served.identity != expected.identity
            if not has_changed:
                slot.served = served
                process.learn_pid(response.members.get("pid"))
                slot.health = Health(self._clock(), self._options.timing)
        if has_changed:
            why = f"{served.identity} instead of {expected.identity}"
            self._kill(slot, process, Cause.MODEL_CHANGED, why)
            return
        self._advance(slot, Event(On.ANSWERED_INFO), process)

    def _on_gone(self, process: WorkerProcess, report: ExitReport) -> None:
        slot = self._slots[process.number]
        if slot.process is process:
            self._lose(slot, report)

    def _lose(self, slot: WorkerSlot, report: ExitReport) -> None:
        """Drop a process whole, decide about what was in flight, and go on."""
        now = self._clock()
        is_closing = slot.life.state is State.CLOSING
        with self._changing():
            awaited = slot.awaited
            in_flight = slot.chunks()
            report = dataclasses.replace(report, was_ready=slot.served is not None)
            slot.forget_process()
            slot.last_exit = report
            slot.controls.extendleft(
                each for each in reversed(list(awaited.values())) if isinstance(each, Control) and not each.is_over
            )
            if is_closing:
                for chunk in in_flight:
                    self._dispatcher.fail(chunk.call, ClientClosedError("the client was closed before the answer came"))
                verdict = Verdict()
            else:
                verdict = slot.case.judge(in_flight, report, now)
                if verdict.blamed:
                    _log.warning("an input has killed the worker alone: %s", report.describe())
                self._dispatcher.carry_out(verdict, report, now)
        loss = Loss(
            is_permanent=report.cause.is_permanent,
            is_recycle=report.cause is Cause.RECYCLED,
            is_charged=verdict.is_charged,
            is_investigation=verdict.is_investigation,
            jitter=self._random.uniform(-1, 1),
        )
        self._advance(slot, Event(On.GONE, loss))

    def _fail_waiting(self, slot: WorkerSlot) -> None:
        """Fail what only this slot could have served, and everything where no slot is left."""
        with self._changing():
            is_over = slot.life.state in (State.CLOSING, State.CLOSED)
            everything = is_over or all(each.life.state is State.FAILED for each in self._slots)

            def make_error() -> BridgeError:
                return ClientClosedError("the client was closed") if is_over else self._failure(slot)

            self._dispatcher.fail_waiting(slot, make_error, everything=everything)


_USEFULNESS = (
    State.READY,
    State.STARTING,
    State.BACKING_OFF,
    State.STOPPED,
    State.FAILED,
    State.CLOSING,
    State.CLOSED,
)
