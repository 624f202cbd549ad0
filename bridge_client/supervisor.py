"""The one thread that lives the lives of a client's workers.

What changes a life runs on this thread, from its mailbox; any thread may post, also one that was interrupted anywhere.
The pool's lock is never held across I/O that can block, or the host's code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import math
import os
import queue
import random
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future

from bridge_client import hooks
from bridge_client.callbacks import CallbackThread
from bridge_client.chunks import AnyCall
from bridge_client.errors import BridgeError, ClientClosedError
from bridge_client.exits import Cause, ExitReport
from bridge_client.handshake import Served, Unusable
from bridge_client.health import Check, Health
from bridge_client.investigation import Verdict
from bridge_client.lifecycle import Effect, Event, Loss, On, State, step
from bridge_client.listener import Listener
from bridge_client.options import ClientOptions
from bridge_client.pool import Pool
from bridge_client.worker_process import WorkerProcess, one_line
from bridge_client.worker_slot import Control, Generation, Internal, WorkerSlot
from embed_worker import protocol
from embed_worker.protocol import Failure

_log = logging.getLogger(__name__)

_LONGEST_SLEEP_S = 60.0


class Supervisor:
    """Keeps the workers of a pool alive.

    Attributes:
        ended: Done when every worker is gone for good, as the last act of the thread.
    """

    def __init__(self, options: ClientOptions, clock: Callable[[], float], callbacks: CallbackThread) -> None:
        self._options = options
        self._clock = clock
        self._callbacks = callbacks
        self._random = random.Random()  # noqa: S311 - jitter
        self._mailbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_alone = threading.Lock()  # taken for good by the one thread
        self._wakes_at = -math.inf  # when the thread looks up by itself
        self.ended: Future[None] = Future()
        self.pool = Pool(options, clock, self._wake)
        self._policy = self.pool.policy
        self._listener = Listener(self.pool, self, callbacks, self._wake)

    # From any thread; none of these waits or takes a lock

    def start(self) -> None:
        """Start the thread and the workers; after a start that was interrupted it may be called again.

        Raises:
            RuntimeError: The system has no thread to spare; it may be tried again.
        """
        self._post_all(On.START)  # of a second one the table knows nothing
        threading.Thread(target=self._run, name="bridge-supervisor", daemon=True).start()

    def withdraw(self, call: AnyCall) -> None:
        """Take back a call that was cancelled."""
        self._mailbox.put(functools.partial(self._withdraw, call))

    def restart(self, *, accept_model: bool) -> None:
        """Replace every worker."""
        self._mailbox.put(functools.partial(self._restart, accept_model=accept_model))

    def mend(self) -> None:
        """Put in order what a signal handler has left in the middle of a change."""
        self._mailbox.put(self._mend)

    def close(self) -> None:
        """End every worker."""
        self._post_all(On.CLOSE)

    def is_current_thread(self) -> bool:
        """Whether the caller runs on this thread, as a finaliser may."""
        return threading.current_thread() is self._thread

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _post_all(self, on: On) -> None:
        for slot in self.pool.slots:
            self._mailbox.put(functools.partial(self._advance, slot, Event(on)))

    def _wake(self, at: float) -> None:
        """See to it that the thread looks at the clock by then."""
        if at < self._wakes_at:
            self._wakes_at = at
            self._mailbox.put(None)

    # From the threads around a process

    def introduced(self, slot: WorkerSlot, generation: Generation, response: protocol.Response) -> None:
        """Compare, in its turn, what a new worker is with what it has to be."""
        self._mailbox.put(functools.partial(self._on_info, slot, generation, response))

    def embedded(self, slot: WorkerSlot, generation: Generation) -> None:
        """Let the restart budget recover, in its turn."""
        self._mailbox.put(functools.partial(self._advance, slot, Event(On.EMBEDDED), generation))

    def gone(self, process: WorkerProcess, report: ExitReport) -> None:
        """Drop a dead process, in its turn."""
        self._mailbox.put(functools.partial(self._on_gone, process, report))

    # The supervisor's thread

    def _run(self) -> None:
        if not self._is_alone.acquire(blocking=False):
            return  # an interrupted start had started the thread
        self._thread = threading.current_thread()
        while not all(slot.life.state is State.CLOSED for slot in self.pool.slots):
            action: Callable[[], None] | None = None
            with contextlib.suppress(queue.Empty):
                action = self._mailbox.get(timeout=max(0.0, self._plan() - self._clock()))
            self._try(action)
            # To look at the clock is to look at every call: a thousand that were cancelled at once need it once.
            for _ in range(self._mailbox.qsize()):
                self._try(self._mailbox.get())
            self._try(self._look_at_the_clock)
        self._callbacks.stop()
        self.ended.set_result(None)

    def _try(self, action: Callable[[], None] | None) -> None:
        try:
            if action is not None:
                action()
        except BaseException as error:  # noqa: BLE001 - whoever waits must not wait for ever
            self._callbacks.log(_log, logging.ERROR, "internal error of the supervisor", error=error)

    def _withdraw(self, call: AnyCall) -> None:
        with self.pool.changing():
            self.pool.dispatcher.withdraw(call)
            self.pool.dispatcher.dispatch(self._clock())

    def _mend(self) -> None:
        with self.pool.changing():
            self.pool.dispatcher.mend()
        for slot in self.pool.slots:
            if slot.serving is not None:  # it may not have been sent what it was to be sent: it is sent to the next one
                self._advance(slot, Event(On.RESTART))

    def _restart(self, *, accept_model: bool) -> None:
        if accept_model:
            with self.pool.changing():
                self.pool.expected.clear()
        for slot in self.pool.slots:
            self._advance(slot, Event(On.RESTART))

    def _plan(self) -> float:
        """Return when the thread has to look at the clock again."""
        with self.pool.changing():
            times = [self.pool.dispatcher.next_deadline()]
            for slot in self.pool.slots:
                times.append(math.inf if slot.life.wake_at is None else slot.life.wake_at)
                if (current := slot.generation) is None:
                    continue
                times.append(math.inf if current.abandon_at is None else current.abandon_at)
                if current.kill_at is not None:
                    times.append(current.kill_at[0])
                elif slot.serving is not None and current.health is not None:
                    times.append(current.health.next_check(is_busy=current.requests > 0))
            self._wakes_at = min(*times, self._clock() + _LONGEST_SLEEP_S)
            return self._wakes_at

    def _look_at_the_clock(self) -> None:
        """Do everything that is due."""
        now = self._clock()
        with self.pool.changing():
            self.pool.dispatcher.expire(now)
        for slot in self.pool.slots:
            if slot.life.wake_at is not None and now >= slot.life.wake_at:
                self._advance(slot, Event(On.TIMEOUT))
            if (current := slot.generation) is None:
                continue
            if current.abandon_at is not None and now >= current.abandon_at:
                what = "worker %d does not die: pid %d is abandoned"
                self._callbacks.log(_log, logging.ERROR, what, slot.number, current.process.pid)
                self._on_gone(current.process, current.process.report(None))
            elif current.kill_at is not None and now >= current.kill_at[0]:
                self._kill(current, *current.kill_at[1:])
            elif slot.serving is not None and current.health is not None:
                self._check_health(current, current.health, now)

    def _check_health(self, generation: Generation, health: Health, now: float) -> None:
        with self.pool.changing():
            check = health.check(now, is_busy=generation.requests > 0)
            if check is Check.PING:
                self.pool.dispatcher.send_control(generation, protocol.Ping(), Internal.PING)
        if check is Check.SILENT:
            self._kill(generation, Cause.HUNG, "it gave no sign of life")
        elif check is Check.STUCK:
            self._kill(generation, Cause.HUNG, "it made no progress with what it had")

    def _kill(self, generation: Generation, cause: Cause, why: str) -> None:
        with self.pool.changing():
            generation.is_stopping = True
            generation.kill_at = None
            if generation.abandon_at is None:
                generation.abandon_at = self._clock() + self._policy.terminate_s
        generation.process.kill(cause, why)

    def _advance(self, slot: WorkerSlot, event: Event, generation: Generation | None = None) -> None:
        """Let a life take one step, and do what it asks for. An event of an older generation is none."""
        with self.pool.changing():
            if generation is not None and slot.generation is not generation:
                return
            before = slot.life.state
            slot.life, effects = step(slot.life, event, self._clock(), self._policy)
            after = slot.life.state
        if after is not before:
            self._tell(slot, before, after)
        for effect in effects:
            self._do(slot, effect)
        with self.pool.changing():
            self.pool.dispatcher.send_controls(slot)
            self.pool.dispatcher.dispatch(self._clock())

    def _tell(self, slot: WorkerSlot, before: State, after: State) -> None:
        pid = "-" if slot.generation is None else str(slot.generation.process.pid)
        why = f" ({slot.last_exit.describe()})" if after in (State.BACKING_OFF, State.FAILED) and slot.last_exit else ""
        message = f"worker {slot.number} {before} -> {after} pid={pid} generation={slot.spawned}{why}"
        self._callbacks.log(_log, logging.INFO, "%s", message)
        if (listener := self._options.on_state_change) is not None:
            self._callbacks.put(functools.partial(listener, slot.number, after))

    def _do(self, slot: WorkerSlot, effect: Effect) -> None:
        current = slot.generation
        match effect:
            case Effect.SPAWN:
                self._spawn(slot)
            case Effect.FAIL_WAITING:
                self._fail_waiting(slot)
            case Effect.END_INPUT if current is not None:
                with self.pool.changing():
                    current.is_stopping = True
                current.process.end_input()
            case Effect.TERMINATE if current is not None:
                current.process.terminate()
            case Effect.KILL if current is not None:
                if slot.life.state is State.STARTING:
                    said = f"; it printed something else: {current.invalid_line!r}" if current.invalid_line else ""
                    why = f"not ready after {self._policy.start_timeout_s:g} s{said}"
                    self._kill(current, Cause.START_TIMEOUT, why)
                else:
                    self._kill(current, Cause.ASKED, "")
            case _:
                pass

    def _spawn(self, slot: WorkerSlot) -> None:
        argv = self._options.argv()
        try:
            with hooks.spawning:
                process = WorkerProcess.spawn(
                    argv,
                    environment=self._options.environment(os.environ),
                    cwd=self._options.cwd,
                    owner=self._listener,
                    number=slot.number,
                )
                with self.pool.changing():
                    slot.generation = Generation(process)
                    slot.spawned += 1
            process.begin()
        except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
            # What cannot be executed never will be; a system without memory, processes or threads may recover.
            is_ours = isinstance(error, (ValueError, TypeError, FileNotFoundError, PermissionError, NotADirectoryError))
            may_recover = not is_ours and getattr(error, "errno", None) != errno.ENOEXEC  # no program of this system
            cause = Cause.NOT_SPAWNED if may_recover else Cause.UNUSABLE
            self._lose(slot, ExitReport(cause=cause, argv=argv, detail=str(error)))
            return
        with self.pool.changing():
            self.pool.dispatcher.send_control(slot.generation, protocol.Info(), Internal.HANDSHAKE)

    def _on_info(self, slot: WorkerSlot, generation: Generation, response: protocol.Response) -> None:
        """Compare what a new worker is with what it has to be."""
        if slot.generation is not generation or slot.life.state is not State.STARTING:
            return
        if isinstance(response, Failure):
            # It says why, and should leave now with a status that says what that means.
            what = "worker %d: %s: %s"
            self._callbacks.log(
                _log, logging.WARNING, what, slot.number, one_line(response.code), one_line(response.message)
            )
            with self.pool.changing():
                at = self._clock() + self._policy.terminate_s
                cause = Cause.EXITED if response.is_retryable else Cause.UNUSABLE
                generation.stop_at(at, cause, response.message)
                self._wake(at)
            return
        try:
            served = Served.from_info(response.members)
        except Unusable as error:
            self._kill(generation, Cause.PROTOCOL_MISMATCH, str(error))
            return
        with self.pool.changing():
            is_expected = self.pool.fits(None, served)
            if is_expected:
                generation.served = served
                generation.process.learn_pid(response.members.get("pid"))
                generation.health = Health(self._clock(), self._options.timing)
        if is_expected:
            self._advance(slot, Event(On.ANSWERED_INFO), generation)
        else:
            why = f"{served.identity} instead of {self.pool.expected[None]}"
            self._kill(generation, Cause.MODEL_CHANGED, why)

    def _on_gone(self, process: WorkerProcess, report: ExitReport) -> None:
        if self.pool.current(process) is not None:
            self._lose(self.pool.slots[process.number], report)

    def _lose(self, slot: WorkerSlot, report: ExitReport) -> None:
        """Drop a generation whole, decide about what was in flight, and go on."""
        now = self._clock()
        is_closing = slot.life.state is State.CLOSING
        with self.pool.changing():
            lost, slot.generation = slot.generation, None
            in_flight = [] if lost is None else lost.chunks()
            asked = [] if lost is None else [each for each in lost.awaited.values() if isinstance(each, Control)]
            report = dataclasses.replace(report, was_ready=lost is not None and lost.served is not None)
            slot.last_exit = report
            slot.controls.extendleft(each for each in reversed(asked) if not each.is_over)
            if is_closing:
                for chunk in in_flight:
                    error = ClientClosedError("the client was closed before the answer came")
                    self.pool.dispatcher.fail(chunk.call, error)
                verdict = Verdict()
            else:
                verdict = slot.case.judge(in_flight, report, now)
                self.pool.dispatcher.carry_out(verdict, report, now)
        if verdict.blamed:
            what = "an input has killed the worker alone: %s"
            self._callbacks.log(_log, logging.WARNING, what, one_line(report.describe()))
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
        with self.pool.changing():
            is_over = slot.life.state in (State.CLOSING, State.CLOSED)
            everything = is_over or all(each.life.state is State.FAILED for each in self.pool.slots)

            def make_error() -> BridgeError:
                return ClientClosedError("the client was closed") if is_over else self.pool.failure(slot)

            self.pool.dispatcher.fail_waiting(slot, make_error, everything=everything)
