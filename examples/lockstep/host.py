"""A lock-step host: it writes one line, reads one line, and knows no ids, as many existing bridges do.

It works unchanged, because answers without an id come in the order of their requests, and a worker that dies or hangs
is started again meanwhile. What it gives up: while one request runs nothing else is asked, so the worker never sees a
batch larger than one request, and a slow request holds up all others. `docs/hosts.md` has the ten rules that cure both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embed_server.py")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DOCUMENTS = [
    "Rust has no garbage collector.",
    "The cathedral was built in the twelfth century.",
    "A borrow checker proves that references are valid.",
]


class EmbedServer:
    """One worker, one request at a time."""

    def __init__(self, command: list[str]) -> None:
        # Standard error is inherited: a pipe that nobody reads would stop the worker once it is full.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, wait, and return the answer; an error of the worker is a RuntimeError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = json.dumps({"method": method, "params": params})
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise RuntimeError(f"the worker ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if answer["status"] != "ok":
            raise RuntimeError(f"{answer['code']}: {answer['message']}")
        return answer

    def close(self) -> int:
        """End its input, and wait for it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(timeout=30)
        self.process.stdout.close()
        return status


def main() -> None:
    server = EmbedServer([sys.executable, SERVER])
    print("ping:", server.call("ping")["message"])
    loaded = server.call("load_model", model=MODEL, cache_dir="/var/cache/models")
    print(f"load_model: {loaded['model']}, {loaded['dimension']} dimensions")
    documents = server.call("embed_batch", model=MODEL, inputs=DOCUMENTS, normalize=True)["embeddings"]
    question = server.call("embed_batch", model=MODEL, inputs=["memory safety"], normalize=True)["embeddings"][0]
    try:
        server.call("embed_batch", model="somebody/something-else", inputs=["text"], normalize=True)
    except RuntimeError as error:
        print(f"another model: {error}")
    scores = [sum(a * b for a, b in zip(question, vector, strict=True)) for vector in documents]
    for score, text in sorted(zip(scores, DOCUMENTS, strict=True), reverse=True):
        print(f"  {score:6.3f}  {text}")
    print("shutdown:", server.call("shutdown")["pending"], "pending, exit status", server.close())


if __name__ == "__main__":
    main()
