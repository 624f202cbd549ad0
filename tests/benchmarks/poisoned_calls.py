"""What one text that kills workers costs, with each client: `python -m tests.benchmarks.poisoned_calls`.

One call of many inputs holds such a text, and calls of one input come at the same time. Told are how the poisoned call
ends, how many of the others fail, how many workers die, and how long everything takes; then the same with several
poisoned calls at once, which the restart budget must survive.
"""

from __future__ import annotations

import sys
import time

from bridge_client.testing import fake_command
from tests.hosts.adapters import CLIENTS, Adapter, why_not

INPUTS = 1000
OTHERS = 200


def measure(language: str, poisoned: int) -> str:
    """Return one line of the table."""
    with Adapter(CLIENTS[language], fake_command(poison="bad", latency=0.002)) as adapter:
        adapter.ask("info")
        started = time.perf_counter()
        texts = [f"text {number}" for number in range(INPUTS)]
        guilty = [adapter.begin("embed", inputs=[*texts, f"bad {number}"]) for number in range(poisoned)]
        others = [adapter.begin("embed", inputs=[f"text {number}"]) for number in range(OTHERS)]
        ends = sorted({str(adapter.wait(number).get("error")) for number in guilty})
        lost = sum(not adapter.wait(number)["ok"] for number in others)
        took_s = time.perf_counter() - started
        deaths = adapter.ask("stats")["restarts"]
        adapter.finish()
    return f"{language:8}{poisoned:10}  {', '.join(ends):24}{lost:8}{deaths:8}{took_s:8.1f}"


def main() -> int:
    """Measure every client that is there."""
    print(f"{'client':8}{'poisoned':>10}  {'ends as':24}{'lost':>8}{'deaths':>8}{'s':>8}")
    for language in CLIENTS:
        if why := why_not(language):
            print(f"{language:8}  {why}")
            continue
        for poisoned in (1, 2, 4):
            print(measure(language, poisoned), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
