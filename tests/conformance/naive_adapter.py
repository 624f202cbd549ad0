"""A client as one finds it in the wild: it writes a line, reads a line, and believes what it reads.

It follows the contract of the adapters, so that the suite can be seen to find its faults.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

RESULTS = ("count", "dimension", "tokens", "truncated", "model", "fingerprint")
FAILURE = ("code", "retryable", "message")


def main() -> None:
    worker = subprocess.Popen(
        json.loads(os.environ["CONFORMANCE_WORKER"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    number = 0

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal number
        number += 1
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
        worker.stdin.flush()
        answer = json.loads(worker.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    info = ask({"method": "info"})
    for line in sys.stdin:
        call = json.loads(line)
        outcome: dict[str, Any] = {"call": call["call"], "ok": True}
        match call["op"]:
            case "embed":
                inputs = call["inputs"]
                answer = ask({"method": "embed", "inputs": inputs, "encoding_format": "base64"})
                if answer["status"] == "ok":
                    outcome |= {name: answer[name] for name in RESULTS} | {
                        "vectors_base64": answer["embeddings_base64"]
                    }
                else:
                    outcome |= {"ok": False, "error": "request"} | {name: answer[name] for name in FAILURE}
            case "info":
                outcome |= info
            case "stats":
                outcome |= {"restarts": 0, "pid": worker.pid}
            case "close":
                worker.kill()
                worker.wait()
            case _:
                pass
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()
    assert worker.stdin is not None
    worker.stdin.close()
    worker.wait()


if __name__ == "__main__":
    main()
