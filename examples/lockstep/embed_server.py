"""A worker for hosts that start `python3 embed_server.py`, without arguments.

Existing database bridges keep the path of a script in their configuration and cannot pass options. Point them here. The
settings come from the environment, and what is not set keeps the worker's default:

| variable | option |
|---|---|
| `EMBED_WORKER_MODEL` | `--model`: a model's folder or its name |
| `EMBED_WORKER_MODELS` | folders to look for names in, separated as in `PATH` |
| `EMBED_WORKER_PROVIDER` | `--provider` |
| `EMBED_WORKER_THREADS` | `--threads` |
| `EMBED_WORKER_ARGS` | any others, quoted as in a shell |

It is `embed-worker --supervised`: it ignores Ctrl-C, which is meant for its host, and ends when its host does.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from embed_worker.__main__ import main

OPTIONS = {
    "EMBED_WORKER_MODEL": "--model",
    "EMBED_WORKER_PROVIDER": "--provider",
    "EMBED_WORKER_THREADS": "--threads",
}


def arguments(environment: Mapping[str, str]) -> list[str]:
    """Turn the environment into the worker's arguments; an empty variable is not set."""
    given = [(option, environment.get(name, "")) for name, option in OPTIONS.items()]
    named = [part for option, value in given if value for part in (option, value)]
    return ["--supervised", *named, *shlex.split(environment.get("EMBED_WORKER_ARGS", ""))]


if __name__ == "__main__":
    main(arguments(os.environ))
