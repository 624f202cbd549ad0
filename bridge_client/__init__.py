"""A thin client of `embed_worker`: it spawns the worker, keeps it alive, and never hangs, leaks or lies.

Names are loaded when they are first used, so that the fake worker, which lives in this package, starts without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from embed_worker import __version__

if TYPE_CHECKING:
    from bridge_client.aio import AsyncEmbedClient
    from bridge_client.client import EmbedClient
    from bridge_client.embeddings import Embeddings, Tokenization
    from bridge_client.errors import (
        BridgeError,
        CircuitOpenError,
        ClientClosedError,
        ModelChangedError,
        PoisonedInputError,
        ProtocolMismatchError,
        QueueFullError,
        RequestError,
        RequestTimeoutError,
        WorkerDiedError,
        WorkerHungError,
        WorkerStartError,
    )
    from bridge_client.exits import Cause, ExitReport
    from bridge_client.lifecycle import State
    from bridge_client.options import ClientOptions, Timing
    from bridge_client.shared import shared_client
    from bridge_client.stats import ClientStats, WorkerStats

_HOMES = {
    "AsyncEmbedClient": "aio",
    "EmbedClient": "client",
    "BridgeError": "errors",
    "CircuitOpenError": "errors",
    "ClientClosedError": "errors",
    "ModelChangedError": "errors",
    "PoisonedInputError": "errors",
    "ProtocolMismatchError": "errors",
    "QueueFullError": "errors",
    "RequestError": "errors",
    "RequestTimeoutError": "errors",
    "WorkerDiedError": "errors",
    "WorkerHungError": "errors",
    "WorkerStartError": "errors",
    "Cause": "exits",
    "ExitReport": "exits",
    "State": "lifecycle",
    "ClientOptions": "options",
    "Timing": "options",
    "Embeddings": "embeddings",
    "Tokenization": "embeddings",
    "ClientStats": "stats",
    "WorkerStats": "stats",
    "shared_client": "shared",
}

__all__ = [
    "AsyncEmbedClient",
    "BridgeError",
    "Cause",
    "CircuitOpenError",
    "ClientClosedError",
    "ClientOptions",
    "ClientStats",
    "EmbedClient",
    "Embeddings",
    "ExitReport",
    "ModelChangedError",
    "PoisonedInputError",
    "ProtocolMismatchError",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "State",
    "Timing",
    "Tokenization",
    "WorkerDiedError",
    "WorkerHungError",
    "WorkerStartError",
    "WorkerStats",
    "__version__",
    "shared_client",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
