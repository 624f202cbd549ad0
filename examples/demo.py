"""What `make demo` shows: real requests through a real worker, and answers that a person can read.

It speaks the protocol by hand, as a host in any language would: one JSON object a line, answers matched by id.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SENTENCES = [
    "A man is playing a guitar on stage.",
    "Someone performs music with a guitar.",
    "The stock market fell sharply today.",
]

REQUESTS: list[dict[str, Any]] = [
    {"id": "hello", "method": "info"},
    {"id": "alive", "method": "ping"},
    {"id": "vectors", "inputs": SENTENCES},
    {"id": "short", "inputs": "hello world", "dimensions": 4},
    {"id": "oops", "inputs": "hello", "dimension": 4},
    {"id": "bye", "method": "metrics"},
]


def main() -> None:
    print("$ embed-worker < requests.jsonl\n")
    answers = ask(REQUESTS)
    for request in REQUESTS:
        show(request, answers[request["id"]])
    similarity(answers["vectors"]["embeddings"])


def ask(requests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run one worker over the requests; return its answers by id.

    The last is sent when the others are answered: `metrics` is answered at once, and would tell of nothing yet. A host
    that sends more than a pipe holds reads on a thread of its own all the time.
    """
    answers: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "embed_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for part in (requests[:-1], requests[-1:]):
            worker.stdin.write("".join(json.dumps(request) + "\n" for request in part).encode())
            worker.stdin.flush()
            for _ in part:
                answer = json.loads(worker.stdout.readline())
                answers[answer["id"]] = answer
        worker.stdin.close()  # the end of input: the worker ends
    return answers


def show(request: dict[str, Any], answer: dict[str, Any]) -> None:
    print(f"--> {json.dumps(request)}")
    print(f"<-- {json.dumps(shortened(answer))}\n")


def shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """Keep what fits on a screen: the first three numbers of each vector, and no histograms."""
    kept = {name: value for name, value in answer.items() if name not in ("limits", "prompts")}
    if "embeddings" in kept:
        kept["embeddings"] = [[*(round(x, 4) for x in vector[:3]), "..."] for vector in kept["embeddings"]]
    if "metrics" in kept:
        kept["metrics"] = {name: value for name, value in kept["metrics"].items() if name != "histograms"}
    return kept


def similarity(vectors: list[list[float]]) -> None:
    print("cosine similarity (the vectors have length 1, so it is their dot product):")
    for left, right in ((0, 1), (0, 2)):
        cosine = sum(a * b for a, b in zip(vectors[left], vectors[right], strict=True))
        print(f"  {cosine:6.3f}  {SENTENCES[left]}  |  {SENTENCES[right]}")


if __name__ == "__main__":
    main()
