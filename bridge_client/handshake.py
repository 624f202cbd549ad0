"""What a worker says of itself before it is used: the answer to `info`, checked. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from embed_worker.protocol import PROTOCOL_VERSION, Limits

MAX_DIMENSION = 65_536  # no model is near it, and nothing is allocated for more


class Unusable(Exception):
    """This client cannot use the worker; the message says why in one clause."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a ready worker has promised: every answer must fit it, also after a restart."""

    model: str
    fingerprint: str
    dimension: int
    limits: Limits
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Served:
        """Read an answer to `info`; members that nobody knows are left out.

        Raises:
            Unusable: Another protocol, or no model, fingerprint or dimension.
        """
        spoken = info.get("protocol")
        if type(spoken) is not int or spoken != PROTOCOL_VERSION:
            raise Unusable(f"it speaks protocol {ascii(spoken)[:40]}, this client {PROTOCOL_VERSION}")
        model, fingerprint, dimension = info.get("model"), info.get("fingerprint"), info.get("dimension")
        if not (isinstance(model, str) and isinstance(fingerprint, str) and model and fingerprint):
            raise Unusable("its `info` names no model or no fingerprint")
        if type(dimension) is not int or not 1 <= dimension <= MAX_DIMENSION:
            raise Unusable("its `info` names no dimension")
        told = info.get("limits")
        limits = told if isinstance(told, dict) else {}
        names = [field.name for field in dataclasses.fields(Limits)]
        known = {name: limits[name] for name in names if type(limits.get(name)) is int and limits[name] > 0}
        named = info.get("prompts")
        prompts = named if isinstance(named, dict) else {}
        return cls(
            model=model,
            fingerprint=fingerprint,
            dimension=dimension,
            limits=Limits(**known),
            prompts={name: prompt for name, prompt in prompts.items() if isinstance(prompt, str)},
        )

    @property
    def identity(self) -> tuple[str, str, int]:
        """What must not change: vectors of two identities must not be mixed."""
        return self.model, self.fingerprint, self.dimension
