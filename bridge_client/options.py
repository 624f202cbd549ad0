"""What a host can choose: one frozen dataclass, units in the names, and the spawn arguments that follow from it."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from bridge_client.environment import Variables, search_path, worker_environment
from bridge_client.lifecycle import Policy, State
from embed_worker.machine import PARENT_VARIABLE, name_this_process

_START_TIMEOUT_S = 60.0
_COREML_START_TIMEOUT_S = 300.0  # compiling a model for the Neural Engine takes minutes, once


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient the client is with a worker; the defaults suit every model, tests shorten them.

    Attributes:
        ping_every_s: Silence after which a ping is sent.
        pong_timeout_s: A ping without any sign of life for so long is a miss; two in a row are a hang.
        stuck_after_s: No micro-batch finished for so long while work is in flight is a hang, too. A worker whose
            micro-batches are slow gets 20 times their moving average.
        drain_s: After the end of input, before SIGTERM.
        terminate_s: After SIGTERM, before SIGKILL; also how long a killed process may take to disappear.
        half_open_initial_s: After the restart budget is spent, before the first attempt; it doubles.
        half_open_max_s: The longest such wait.
    """

    ping_every_s: float = 5.0
    pong_timeout_s: float = 10.0
    stuck_after_s: float = 60.0
    drain_s: float = 5.0
    terminate_s: float = 2.0
    half_open_initial_s: float = 60.0
    half_open_max_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("ping_every_s", "pong_timeout_s", "stuck_after_s", "half_open_initial_s", "half_open_max_s"):
            _check(self, name, float)
        for name in ("drain_s", "terminate_s"):  # they bound `close()`
            _check(self, name, float, may_be_zero=True, may_be_endless=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The keyword arguments of `EmbedClient` and `AsyncEmbedClient`.

    Attributes:
        model: A model's name or folder, for the default command.
        worker_command: The command instead of the default one, `model` then being its own business. `--supervised`
            is added where it is missing: such a worker leaves when its host has died.
        worker_args: Added to the command.
        env: Set in the worker's environment, beside the allow-list; kept as an unchangeable copy.
        cwd: The worker's working directory; the host's by default.
        start_timeout_s: Until the worker must have answered `info`; 60, or 300 where CoreML is demanded.
        request_timeout_s: For each request on the wire, from being sent first. A call's own `timeout_s` replaces it and
            covers the whole call.
        replay: Send requests again that were in flight when the worker died.
        restart_budget: Failures that may come together; at this level of the leaky bucket the client gives up.
        restart_forgive_s: Useful READY time that takes one failure out of the bucket.
        backoff_initial_s: Before a restart; it doubles with every failure in a row.
        backoff_max_s: The longest such wait.
        workers: Processes that share the work.
        max_queued_requests: Calls that may wait to be sent; `embed` then blocks and `submit` raises.
        max_queued_bytes: Bytes of their texts; a larger call is admitted when it is alone.
        on_state_change: Called with the worker's number and its new state, on a thread of its own.
        timing: How patient the client is with a worker.
    """

    model: str | os.PathLike[str] = "all-MiniLM-L6-v2"
    worker_command: tuple[str, ...] | None = None
    worker_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | os.PathLike[str] | None = None
    start_timeout_s: float | None = None
    request_timeout_s: float = 120.0
    replay: bool = True
    restart_budget: float = 5
    restart_forgive_s: float = 60.0
    backoff_initial_s: float = 0.2
    backoff_max_s: float = 30.0
    workers: int = 1
    max_queued_requests: int = 1024
    max_queued_bytes: int = 64 * 2**20
    on_state_change: Callable[[int, State], None] | None = None
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        for name in ("request_timeout_s", "restart_budget", "restart_forgive_s", "backoff_max_s"):
            _check(self, name, float)
        if self.start_timeout_s is not None:
            _check(self, "start_timeout_s", float)
        _check(self, "backoff_initial_s", float, may_be_zero=True, may_be_endless=False)
        _check(self, "workers", int)
        _check(self, "max_queued_requests", int)
        _check(self, "max_queued_bytes", int, may_be_zero=True)
        given: tuple[object, ...] = (self.worker_command, self.worker_args)
        if any(isinstance(each, (str, bytes)) for each in given):
            raise TypeError("`worker_command` and `worker_args` are sequences of arguments: there is no shell")
        # What is frozen may be hashed, and shared; a list or a dict of the host's may change.
        object.__setattr__(self, "worker_args", tuple(self.worker_args))
        object.__setattr__(self, "env", Variables(self.env))
        if self.worker_command is not None:
            object.__setattr__(self, "worker_command", tuple(self.worker_command))
        elif not sys.executable:
            raise ValueError("this interpreter does not know its own path: give `worker_command`")
        elif getattr(sys, "frozen", False):
            raise ValueError(
                f"{sys.executable} is a frozen application, no Python that could start a worker: give `worker_command`"
            )

    def argv(self) -> tuple[str, ...]:
        """Return the worker's command line."""
        if self.worker_command is not None:
            return supervised((*self.worker_command, *self.worker_args))
        # -P: a file named numpy.py in the host's working directory is not the worker's numpy.
        python = (sys.executable, "-P", "-X", "utf8", "-X", "faulthandler", "-m", "embed_worker")
        return (*python, "--supervised", "--model", os.fspath(self.model), *self.worker_args)

    def environment(self, host: Mapping[str, str]) -> dict[str, str]:
        """Return the worker's environment: of the host's only what it needs, never its passwords."""
        own = {PARENT_VARIABLE: name_this_process()}  # what it starts may be a launcher of the worker
        is_told = "PYTHONPATH" in self.env
        if not is_told and (folders := search_path(is_own_interpreter=self.worker_command is None)):
            own["PYTHONPATH"] = os.pathsep.join(folders)
        return worker_environment(host, own | dict(self.env), is_windows=sys.platform == "win32")

    def policy(self) -> Policy:
        """Return the numbers that the state machine goes by."""
        args = [part.lower().removesuffix("executionprovider") for part in self.argv()]  # as the worker reads it
        demands_coreml = "--provider=coreml" in args or ("--provider", "coreml") in itertools.pairwise(args)
        default_s = _COREML_START_TIMEOUT_S if demands_coreml else _START_TIMEOUT_S
        return Policy(
            start_timeout_s=default_s if self.start_timeout_s is None else self.start_timeout_s,
            restart_budget=self.restart_budget,
            restart_forgive_s=self.restart_forgive_s,
            backoff_initial_s=self.backoff_initial_s,
            backoff_max_s=self.backoff_max_s,
            half_open_initial_s=self.timing.half_open_initial_s,
            half_open_max_s=self.timing.half_open_max_s,
            drain_s=self.timing.drain_s,
            terminate_s=self.timing.terminate_s,
        )


class OptionKeywords(TypedDict, total=False):
    """The names and types of `ClientOptions` but `model`, for the checkers of hosts; a test keeps the two equal."""

    worker_command: tuple[str, ...] | None
    worker_args: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | os.PathLike[str] | None
    start_timeout_s: float | None
    request_timeout_s: float
    replay: bool
    restart_budget: float
    restart_forgive_s: float
    backoff_initial_s: float
    backoff_max_s: float
    workers: int
    max_queued_requests: int
    max_queued_bytes: int
    on_state_change: Callable[[int, State], None] | None
    timing: Timing


def supervised(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command that makes the worker watch its host."""
    return command if "--supervised" in command else (*command, "--supervised")


def check_timeout(timeout_s: float) -> None:
    """Check the time-out of a call; one that is over, 0 or less, is a time-out like any other.

    Raises:
        TypeError: It is no number.
        ValueError: It is not a number, or one that no float can be.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)):
        raise TypeError(f"`timeout_s` must be a number of seconds, not {timeout_s!r}")
    _check_size("timeout_s", timeout_s)
    if math.isnan(timeout_s):
        raise ValueError("`timeout_s` must be a number of seconds, not nan")


def _check(
    options: object, name: str, kind: type[int] | type[float], *, may_be_zero: bool = False, may_be_endless: bool = True
) -> None:
    """Check a number: more than 0; infinity is "never", where that can be meant."""
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        what = "an integer" if kind is int else "a number"
        raise TypeError(f"`{name}` must be {what}, not {value!r}")
    if kind is float:
        _check_size(name, value)
    if not (value > 0 or (may_be_zero and value == 0)):
        raise ValueError(f"`{name}` must be {'at least' if may_be_zero else 'more than'} 0, not {value}")
    if not may_be_endless and math.isinf(value):
        raise ValueError(f"`{name}` must be finite, not {value}")


def _check_size(name: str, value: float) -> None:
    try:
        float(value)
    except OverflowError:  # an integer, which Python makes as large as one likes
        raise ValueError(f"`{name}` must be a number below 1.8e308, or math.inf") from None
