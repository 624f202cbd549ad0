"""A fake worker for the tests of hosts: the protocol is real, the vectors come from a hash, every fault is a flag.

```python
from bridge_client.testing import fake_client

with fake_client(poison="bad text") as client:
    client.embed(["good text"])
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge_client.client import EmbedClient
    from bridge_client.options import ClientOptions


def fake_command(**faults: str | float | bool) -> tuple[str, ...]:
    """Return the command of a fake worker: `kill_after=3` becomes `--kill-after 3`, True a bare flag.

    `python -m bridge_client.testing.fake_worker --help` lists the faults.
    """
    argv = [sys.executable, "-m", "bridge_client.testing.fake_worker"]
    for name, value in faults.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            argv.append(flag)
        elif value is not False:
            argv.append(f"{flag}={value}")
    return tuple(argv)


@contextlib.contextmanager
def fake_client(options: ClientOptions | None = None, **faults: Any) -> Iterator[EmbedClient]:
    """Run a client of a fake worker with these faults; everything else as in `options`."""
    from bridge_client.client import EmbedClient
    from bridge_client.options import ClientOptions

    chosen = options or ClientOptions(backoff_initial_s=0.01)
    with EmbedClient(dataclasses.replace(chosen, worker_command=fake_command(**faults))) as client:
        yield client


def fake_vector(text: str, dimension: int = 8) -> list[float]:
    """Return the vector that the fake worker gives to a text: float32 values of unit length."""
    from bridge_client.testing.fake_model import vector_of

    return vector_of(text, dimension)
