"""Chaos with a seed: `python -m tests.soak.chaos --seed 1`. Every request must end exactly once, and rightly.

`--kills 200` kills the worker at random moments under load, some of them only milliseconds apart and some while it
starts; `--rounds 20` runs rounds of the fake worker with random faults. What it prints at the end: requests, restarts,
replays, blamed inputs, lost (0), wrong (0), leaked descriptors, threads and processes (0), memory (flat).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bridge_client import ClientOptions, EmbedClient, PoisonedInputError, Timing
from bridge_client.testing import fake_command, fake_vector

_TOPICS = ("cats", "rivers", "law", "music", "steel", "weather", "bread", "orbits", "ink", "harbours")
_POISON = "this text is poison"
SLOW_FAKE = fake_command(dimension=384, latency=0.003)


@dataclasses.dataclass(kw_only=True)
class Tally:
    """What a run has come to."""

    requests: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    kills: int = 0
    stops: int = 0
    restarts: int = 0
    replays: int = 0
    blamed: int = 0
    leaked_descriptors: int = 0
    leaked_threads: int = 0
    leaked_processes: int = 0
    rss_before_mb: float = 0.0
    rss_after_mb: float = 0.0
    seconds: float = 0.0

    def describe(self) -> str:
        """Return one line a figure."""
        return "\n".join(f"{name:>20}  {value}" for name, value in dataclasses.asdict(self).items())


class Load:
    """Threads that ask and compare; each request is counted once, whatever becomes of it."""

    def __init__(self, client: EmbedClient, texts: Sequence[str], right: np.ndarray, tally: Tally, seed: int) -> None:
        self._client = client
        self._texts = texts
        self._right = right
        self._tally = tally
        self._seed = seed
        self._lock = threading.Lock()
        self.ended = 0

    def run(self, requests: int, threads: int, most_inputs: int, poison_every: int = 0) -> list[threading.Thread]:
        """Start the threads; they share so many requests."""
        shares = [requests // threads + (number < requests % threads) for number in range(threads)]
        running = [
            threading.Thread(target=self._ask, args=(number, share, most_inputs, poison_every))
            for number, share in enumerate(shares)
        ]
        for thread in running:
            thread.start()
        return running

    def _ask(self, number: int, requests: int, most_inputs: int, poison_every: int) -> None:
        chance = random.Random(f"{self._seed}-{number}")
        for turn in range(requests):
            chosen = [chance.randrange(len(self._texts)) for _ in range(chance.randint(1, most_inputs))]
            texts = [self._texts[index] for index in chosen]
            is_poisoned = bool(poison_every) and turn % poison_every == poison_every - 1
            if is_poisoned:
                texts.insert(chance.randrange(len(texts) + 1), f"{_POISON} {number}-{turn}")
            try:
                vectors = self._client.embed(texts)
                outcome = "right" if not is_poisoned and self._is_right(vectors, chosen) else "wrong"
            except PoisonedInputError as error:
                is_right = is_poisoned and all(_POISON in texts[index] for index in error.indexes)
                others = error.others
                if is_right and others is not None and len(others.vectors):
                    is_right = self._is_right(others.vectors, chosen)
                outcome = "right" if is_right else "wrong"
            except Exception as error:  # noqa: BLE001 - counted, and printed
                outcome = type(error).__name__
            with self._lock:
                self.ended += 1
                self._tally.requests += 1
                if outcome == "right":
                    self._tally.right += 1
                elif outcome == "wrong":
                    self._tally.wrong += 1
                else:
                    self._tally.errors[outcome] = self._tally.errors.get(outcome, 0) + 1

    def _is_right(self, vectors: np.ndarray, chosen: list[int]) -> bool:
        return vectors.shape[0] == len(chosen) and np.allclose(vectors, self._right[chosen], atol=1e-5)


def kill_under_load(tally: Tally, seed: int, requests: int, threads: int, kills: int, command: tuple[str, ...]) -> None:
    """Kill the worker at `kills` random moments while `threads` threads share `requests` requests."""
    options = ClientOptions(
        restart_budget=10 * kills + 10, backoff_max_s=0.2, request_timeout_s=600.0, worker_command=command or None
    )
    texts = [
        f"sentence {number} about {_TOPICS[number % 10]} and {_TOPICS[number // 10 % 10]}" for number in range(300)
    ]
    with EmbedClient(options) as peaceful:
        right = peaceful.embed(texts)
    chance = random.Random(seed)
    with EmbedClient(options) as client:
        client.embed(texts[:10])
        load = Load(client, texts, right, tally, seed)
        running = load.run(requests, threads, most_inputs=3)
        killed: set[int] = set()
        while tally.kills < kills and load.ended < requests:
            # Spread over the whole load; a quarter follow the one before within milliseconds, mostly into a start.
            if chance.random() < 0.75:
                due = requests * 0.95 * (tally.kills + chance.random()) / kills
                while load.ended < min(due, requests - 1):
                    time.sleep(0.002)
            time.sleep(chance.choice((0.0, 0.002, 0.02, 0.2, 0.6)) * chance.random())
            tally.kills += _signal_someone(client, signal.SIGKILL, killed)
        _join(running, tally, requests, load)
        _add_stats(tally, client)


def random_rounds(tally: Tally, seed: int, rounds: int) -> None:
    """Let fake workers misbehave at random, in a pool or alone; poison included."""
    chance = random.Random(seed)
    texts = [f"text {number}" for number in range(500)]
    right = np.array([fake_vector(text) for text in texts], np.float32)
    makers: list[Callable[[], dict[str, str | float | bool]]] = [
        lambda: {"kill_after": str(chance.randint(5, 60))},
        lambda: {"exit_after": f"{chance.randint(5, 60)}:{chance.choice((0, 74, 75, 79))}"},
        lambda: {"hang_after": chance.randint(20, 200)},
        lambda: {"stall_after": chance.randint(20, 200)},
        lambda: {"stop_reading_after": chance.randint(20, 200)},
        lambda: {"garbage_after": chance.randint(5, 60)},
        lambda: {"partial_line_after": chance.randint(5, 60)},
        lambda: {"wrong_count_after": chance.randint(5, 60)},
        lambda: {"nan_after": chance.randint(5, 60)},
        lambda: {"stderr_flood": chance.randint(1, 2**21), "stderr_no_newline": chance.random() < 0.5},
        lambda: {"duplicate_after": 0, "unknown_ids": True},
        lambda: {"slow_write": "64:0.0001"},
        lambda: {"latency": 0.001},
        lambda: {"poison": _POISON},
        lambda: {"oom_above": chance.randint(2, 10)},
        lambda: {"start_delay": chance.random() / 5},
        lambda: {"garbage_before_ready": chance.randint(0, 20)},
    ]
    for number in range(rounds):
        faults = {name: value for make in chance.sample(makers, 3) for name, value in make().items()}
        with tempfile.NamedTemporaryFile() as counted:
            command = fake_command(**faults, count_file=counted.name)
            options = ClientOptions(
                worker_command=command,
                workers=chance.choice((1, 1, 3)),
                restart_budget=100_000,
                backoff_initial_s=0.005,
                backoff_max_s=0.02,
                request_timeout_s=600.0,
                timing=Timing(ping_every_s=0.2, pong_timeout_s=1.0, stuck_after_s=2.0, drain_s=1.0),
            )
            before = tally.requests
            with EmbedClient(options) as client:
                load = Load(client, texts, right, tally, seed + number)
                poison_every = 10 if "poison" in faults else 0
                running = load.run(320, threads=32, most_inputs=20, poison_every=poison_every)
                while any(thread.is_alive() for thread in running):
                    time.sleep(chance.random() / 10)
                    if chance.random() < 0.05:
                        tally.kills += _signal_someone(client, signal.SIGKILL)
                    elif chance.random() < 0.01:
                        tally.stops += _signal_someone(client, signal.SIGSTOP)
                _join(running, tally, 320, load)
                _add_stats(tally, client)
            print(f"round {number}: {faults} workers={options.workers} requests={tally.requests - before}", flush=True)


def _signal_someone(client: EmbedClient, number: signal.Signals, killed: set[int] | None = None) -> int:
    """Send a signal to the first worker; return 1, or 0 where there is none that has not been killed before."""
    pid = next((worker.pid for worker in client.stats().workers if worker.pid is not None), None)
    if pid is None or (killed is not None and pid in killed):
        return 0
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return 0
    if killed is not None:
        killed.add(pid)
    return 1


def _join(running: list[threading.Thread], tally: Tally, requests: int, load: Load) -> None:
    until = time.monotonic() + 900.0
    for thread in running:
        thread.join(max(0.0, until - time.monotonic()))
    tally.lost += requests - load.ended


def _add_stats(tally: Tally, client: EmbedClient) -> None:
    stats = client.stats()
    tally.restarts += stats.restarts
    tally.replays += stats.replays
    tally.blamed += stats.blamed


def measured(run: Callable[[Tally], None]) -> Tally:
    """Run, and compare what the process holds with what it held before."""
    tally = Tally()
    gc.collect()
    descriptors, threads, children = _descriptors(), threading.active_count(), _children()
    tally.rss_before_mb = _rss_mb()
    started = time.monotonic()
    run(tally)
    tally.seconds = round(time.monotonic() - started, 1)
    until = time.monotonic() + 10.0
    while time.monotonic() < until and (threading.active_count() > threads or _children() > children):
        time.sleep(0.05)
    gc.collect()
    tally.leaked_descriptors = _descriptors() - descriptors
    tally.leaked_threads = threading.active_count() - threads
    tally.leaked_processes = _children() - children
    tally.rss_after_mb = _rss_mb()
    return tally


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> int:
    told = subprocess.run(["ps", "-o", "comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return len([line for line in told.stdout.split() if line != "ps"])


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def main() -> int:
    """Run both kinds of chaos and print the figures; the status is 1 if anything was lost, wrong or leaked."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=20_000, help="under the kills")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20, help="of the fake worker with random faults")
    parser.add_argument("--fake", action="store_true", help="kill the fake worker instead of the real one")
    arguments = parser.parse_args()
    command = SLOW_FAKE if arguments.fake else ()
    is_well = True
    if arguments.kills:
        tally = measured(
            lambda tally: kill_under_load(
                tally, arguments.seed, arguments.requests, arguments.threads, arguments.kills, command
            )
        )
        print(f"killed under load, seed {arguments.seed}\n{tally.describe()}", flush=True)
        is_well &= is_clean(tally) and tally.blamed == 0
    if arguments.rounds:
        tally = measured(lambda tally: random_rounds(tally, arguments.seed, arguments.rounds))
        print(f"random faults, seed {arguments.seed}\n{tally.describe()}", flush=True)
        is_well &= is_clean(tally)
    return 0 if is_well else 1


def is_clean(tally: Tally) -> bool:
    """Whether nothing was lost, wrong or leaked, and every request has its vectors or the input that is to blame."""
    leaked = tally.leaked_descriptors, tally.leaked_threads, tally.leaked_processes
    return (tally.lost, tally.wrong, tally.errors) == (0, 0, {}) and max(leaked) <= 0


if __name__ == "__main__":
    raise SystemExit(main())
