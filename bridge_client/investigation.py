"""Who killed the worker? Which requests are sent again when it died, how, and which input is to blame. Pure.

What was in flight is isolated: sent again alone, one chunk at a time. A chunk of many inputs that is alone when the
worker dies is halved; one input that was alone twice, by itself or inside what it was cut from, is blamed. A signal
from outside blames nobody. `docs/supervision.md` tells the whole story.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge_client.chunks import AnyCall, Chunk
from bridge_client.exits import Cause, ExitReport

_DEATHS_TO_BLAME = 2
_OOM_DIVISOR = 4
_CEILING_REMEMBERED_S = 600.0
_QUARANTINE_S = 3600.0
_QUARANTINE_TEXTS = 1024


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What follows from one death.

    Attributes:
        again: Chunks to send before everything else, in order, as if nothing had happened.
        isolated: Chunks to send alone, one at a time, before even those; also in order, before those isolated earlier.
        blamed: Chunks of one input each, which is to blame.
        failed: Chunks whose whole request fails with the death.
        is_charged: Whether the death counts towards the restart budget.
        is_investigation: Whether the next start only waits the initial back-off.
    """

    again: list[Chunk] = field(default_factory=list)
    isolated: list[Chunk] = field(default_factory=list)
    blamed: list[Chunk] = field(default_factory=list)
    failed: list[Chunk] = field(default_factory=list)
    is_charged: bool = True
    is_investigation: bool = False


class Investigation:
    """The isolated chunks of one worker, and what its deaths have taught."""

    def __init__(self, *, replay: bool) -> None:
        self.isolated: deque[Chunk] = deque()
        self._replay = replay
        self._probe: Chunk | None = None
        self._is_charged = False  # for deaths with one chunk alone
        self._ceiling: int | None = None
        self._ceiling_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether an isolated chunk waits or is the probe: nothing else may be sent then."""
        return self._probe is not None or bool(self.isolated)

    def ceiling(self, now: float) -> int | None:
        """Return the most inputs that a chunk may have since memory was short; None without a limit."""
        return self._ceiling if now < self._ceiling_until else None

    def probe(self, chunk: Chunk) -> None:
        """Note that an isolated chunk is alone with the worker now."""
        self._probe = chunk

    def answered(self, chunk: Chunk) -> None:
        """Clear an isolated chunk: it is to blame for nothing."""
        if chunk is self._probe:
            self._probe = None
        self.close_if_done()

    def close_if_done(self) -> None:
        """End the investigation when nobody is left."""
        if not self.is_open:
            self._is_charged = False

    def out_of_memory(self, inputs: int, now: float) -> None:
        """Learn from a chunk of so many inputs that took too much memory."""
        known = self.ceiling(now)
        self._ceiling = max(1, (inputs if known is None else min(known, inputs)) // _OOM_DIVISOR)
        self._ceiling_until = now + _CEILING_REMEMBERED_S

    def judge(self, in_flight: Sequence[Chunk], report: ExitReport, now: float) -> Verdict:
        """Decide about everything that was in flight, in the order in which it was sent."""
        verdict = Verdict()
        wanted = [chunk for chunk in in_flight if not chunk.call.is_over]
        self._probe = None
        if report.may_be_out_of_memory and in_flight:
            self.out_of_memory(max(map(len, in_flight)), now)
        if report.cause in (Cause.ASKED, Cause.RECYCLED):
            # It ended in an orderly way: what it has not answered it has not begun.
            verdict.again = [chunk for chunk in wanted if not chunk.is_isolated]
            verdict.isolated = [chunk for chunk in wanted if chunk.is_isolated]
        elif not self._replay:
            verdict.failed = wanted
        elif len(in_flight) == 1 and wanted:
            self._judge_alone(wanted[0], report, verdict)
        else:
            verdict.isolated = wanted
        for chunk in verdict.isolated:
            chunk.is_isolated = True
        self.isolated.extendleft(reversed(verdict.isolated))
        self.close_if_done()
        return verdict

    def _judge_alone(self, chunk: Chunk, report: ExitReport, verdict: Verdict) -> None:
        # Deaths that bring the search further cost the budget once; a single input that is killed from outside again
        # and again brings nothing further, and must not restart the worker for ever.
        if report.cause.may_blame_input or (report.may_be_out_of_memory and len(chunk) > 1):
            verdict.is_charged = not self._is_charged
            verdict.is_investigation = True
            self._is_charged = True
        if not report.cause.may_blame_input:
            verdict.isolated = [chunk]
            return
        chunk.lone_deaths += 1
        chunk.call.lone_deaths += 1
        if len(chunk.call.inputs) != 1 and chunk.call.lone_deaths >= most_lone_deaths(chunk.call):
            verdict.failed = [chunk]
        elif len(chunk) == 1 and chunk.lone_deaths >= _DEATHS_TO_BLAME:
            verdict.blamed = [chunk]
        elif len(chunk) > 1:
            verdict.isolated = [*chunk.cut(len(chunk) // 2)]
        else:
            verdict.isolated = [chunk]


def most_lone_deaths(call: AnyCall) -> int:
    """Return how many workers one request may kill: one more than it takes to find any two blamed inputs."""
    return 2 + 2 * math.ceil(math.log2(max(1, len(call.inputs))))


class Quarantine:
    """The inputs that were blamed within the last hour, as hashes: the texts are not kept. Bounded."""

    def __init__(self) -> None:
        self.until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, text: str, now: float) -> None:
        """Refuse this text for an hour."""
        self.until[_digest(text)] = now + _QUARANTINE_S
        self.until.move_to_end(_digest(text))
        while len(self.until) > _QUARANTINE_TEXTS:
            self.until.popitem(last=False)

    def find(self, texts: Sequence[str], now: float) -> list[int]:
        """Return the indexes of the texts that are refused."""
        return [index for index, text in enumerate(texts) if now < self.until.get(_digest(text), -math.inf)]


def _digest(text: str) -> bytes:
    import hashlib  # only where an input is blamed: its import is a tenth of the client's

    return hashlib.sha256(text.encode()).digest()
