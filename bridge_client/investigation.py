"""Who killed the worker? Which requests are sent again when it died, how, and which input is guilty. Pure but for sums.

What was in flight is suspected and sent again alone, one piece at a time. A piece of many inputs that is alone when the
worker dies is halved; one input that was alone twice, by itself or inside what it was cut from, is convicted. A signal
from outside convicts nobody. `docs/supervision.md` tells the whole story.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge_client.exits import Cause, ExitReport
from bridge_client.requests import Job, Piece

_DEATHS_THAT_CONVICT = 2
_OOM_DIVISOR = 4
_CEILING_REMEMBERED_S = 600.0
_QUARANTINE_S = 3600.0
_QUARANTINE_TEXTS = 1024


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What follows from one death.

    Attributes:
        again: Pieces to send before everything else, in order, without suspicion.
        suspects: Pieces to send alone, one at a time, before even those; also in order, before earlier suspects.
        convicted: Pieces of one guilty input.
        failed: Pieces whose whole request fails with the death.
        is_charged: Whether the death counts towards the restart budget.
        is_investigation: Whether the next start only waits the initial back-off.
    """

    again: list[Piece] = field(default_factory=list)
    suspects: list[Piece] = field(default_factory=list)
    convicted: list[Piece] = field(default_factory=list)
    failed: list[Piece] = field(default_factory=list)
    is_charged: bool = True
    is_investigation: bool = False


class Investigation:
    """The suspects of one worker, and what its deaths have taught."""

    def __init__(self, *, replay: bool) -> None:
        self.suspects: deque[Piece] = deque()
        self._replay = replay
        self._on_trial: Piece | None = None
        self._is_charged = False  # for deaths with a suspect alone
        self._ceiling: int | None = None
        self._ceiling_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a suspect waits or is on trial: nothing else may be sent then."""
        return self._on_trial is not None or bool(self.suspects)

    def ceiling(self, now: float) -> int | None:
        """Return the most inputs that a piece may have since memory was short; None without a limit."""
        return self._ceiling if now < self._ceiling_until else None

    def on_trial(self, piece: Piece) -> None:
        """Note that a suspect is alone with the worker now."""
        self._on_trial = piece

    def answered(self, piece: Piece) -> None:
        """Clear a suspect, guilty of nothing."""
        if piece is self._on_trial:
            self._on_trial = None
        self.close_if_done()

    def close_if_done(self) -> None:
        """End the investigation when nobody is left."""
        if not self.is_open:
            self._is_charged = False

    def out_of_memory(self, inputs: int, now: float) -> None:
        """Learn from a piece of so many inputs that took too much memory."""
        known = self.ceiling(now)
        self._ceiling = max(1, (inputs if known is None else min(known, inputs)) // _OOM_DIVISOR)
        self._ceiling_until = now + _CEILING_REMEMBERED_S

    def judge(self, in_flight: Sequence[Piece], report: ExitReport, now: float) -> Verdict:
        """Decide about everything that was in flight, in the order in which it was sent."""
        verdict = Verdict()
        wanted = [piece for piece in in_flight if not piece.job.is_over]
        self._on_trial = None
        if report.may_be_out_of_memory and in_flight:
            self.out_of_memory(max(map(len, in_flight)), now)
        if report.cause in (Cause.ASKED, Cause.RECYCLED):
            # It ended in an orderly way: what it has not answered it has not begun.
            verdict.again = [piece for piece in wanted if not piece.is_suspect]
            verdict.suspects = [piece for piece in wanted if piece.is_suspect]
        elif not self._replay:
            verdict.failed = wanted
        elif len(in_flight) == 1 and wanted:
            self._judge_alone(wanted[0], report, verdict)
        else:
            verdict.suspects = wanted
        for piece in verdict.suspects:
            piece.is_suspect = True
        self.suspects.extendleft(reversed(verdict.suspects))
        self.close_if_done()
        return verdict

    def _judge_alone(self, piece: Piece, report: ExitReport, verdict: Verdict) -> None:
        # Deaths that bring the search further cost the budget once; a single input that is killed from outside again
        # and again brings nothing further, and must not restart the worker for ever.
        if report.cause.may_blame_input or (report.may_be_out_of_memory and len(piece) > 1):
            verdict.is_charged = not self._is_charged
            verdict.is_investigation = True
            self._is_charged = True
        if not report.cause.may_blame_input:
            verdict.suspects = [piece]
            return
        piece.lone_deaths += 1
        piece.job.lone_deaths += 1
        if len(piece.job.inputs) != 1 and piece.job.lone_deaths >= most_lone_deaths(piece.job):
            verdict.failed = [piece]
        elif len(piece) == 1 and piece.lone_deaths >= _DEATHS_THAT_CONVICT:
            verdict.convicted = [piece]
        elif len(piece) > 1:
            verdict.suspects = [*piece.cut(len(piece) // 2)]
        else:
            verdict.suspects = [piece]


def most_lone_deaths(job: Job) -> int:
    """Return how many workers one request may kill: one more than it takes to find any two guilty inputs."""
    return 2 + 2 * math.ceil(math.log2(max(1, len(job.inputs))))


class Quarantine:
    """The inputs that were convicted within the last hour, as hashes: the texts are not kept. Bounded."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, text: str, now: float) -> None:
        """Refuse this text for an hour."""
        self._until[_digest(text)] = now + _QUARANTINE_S
        self._until.move_to_end(_digest(text))
        while len(self._until) > _QUARANTINE_TEXTS:
            self._until.popitem(last=False)

    def find(self, texts: Sequence[str], now: float) -> list[int]:
        """Return the indexes of the texts that are refused."""
        if not self._until:
            return []
        return [index for index, text in enumerate(texts) if now < self._until.get(_digest(text), -math.inf)]


def _digest(text: str) -> bytes:
    import hashlib  # only where there is a conviction: its import is a tenth of the client's

    return hashlib.sha256(text.encode()).digest()
