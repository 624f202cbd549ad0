"""`shared_client`: one client for each process and options, for code that runs in many places, or in many processes."""

from __future__ import annotations

import os
import threading
from typing import Unpack

from bridge_client.client import EmbedClient, options_of
from bridge_client.options import ClientOptions, OptionKeywords

_lock = threading.RLock()
_clients: dict[ClientOptions, EmbedClient] = {}


def shared_client(
    model: str | os.PathLike[str] | ClientOptions | None = None, **keywords: Unpack[OptionKeywords]
) -> EmbedClient:
    """Return the client of this process that has these options; made at the first call, started at its first use.

    It is closed when the process ends; whoever closes it before ends it for all, and the next call makes another. A
    forked child has clients of its own.

    Args:
        model: As `EmbedClient` takes it.
        keywords: Likewise.
    """
    options = options_of(model, keywords)
    with _lock:
        client = _clients.get(options)
        if client is None or client.is_closed:
            client = _clients[options] = EmbedClient(options)
        return client


def _forget_in_child() -> None:
    # The lock may have been held by a thread that does not exist here.
    global _lock
    _lock = threading.RLock()
    _clients.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
