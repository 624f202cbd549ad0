"""The line protocol of the contestants, and the loop that speaks it for those in Python; standard library and numpy.

A contestant is started with one argument, a JSON object (`Settings`), loads the model, and answers each line:

    {"inputs": […], "one_by_one": false, "vectors": false} → {"seconds": […], "vectors": "…", "versions": {…}}

`seconds` has one time for all inputs, or with `one_by_one` one for each; a time is that of texts to vectors, and not of
this protocol. `vectors` are float32, little-endian, as base64, where they were asked for. It ends with its input.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a contestant is told: the folder of the model, how it pools, the cores, and which variant it is to be."""

    model: str
    pooling: str
    dimension: int
    threads: int
    variant: str = ""

    @property
    def graph(self) -> Path:
        return Path(self.model, "onnx", "model.onnx")


# Turns texts into (texts, dimension) float32 of length 1, in their order.
Embed = Callable[[list[str]], Any]


def serve(load: Callable[[Settings], Embed], *packages: str, facts: Callable[[], dict[str, str]] = dict) -> None:
    """Load, then answer lines until the input ends.

    Args:
        load: Returns what embeds.
        packages: Whose versions are told.
        facts: What else is told, after the first vectors.
    """
    # Libraries print; the descriptor of the answers is not theirs.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    embed = load(Settings(**json.loads(sys.argv[1])))
    for line in sys.stdin:
        asked = json.loads(line)
        inputs = asked["inputs"]
        seconds, pieces = [], []
        for texts in [[text] for text in inputs] if asked.get("one_by_one") else [inputs]:
            started = time.perf_counter()
            pieces.append(embed(texts))
            seconds.append(time.perf_counter() - started)
        answer: dict[str, Any] = {"seconds": seconds, "versions": {name: version(name) for name in packages} | facts()}
        if asked.get("vectors"):
            vectors = np.ascontiguousarray(np.concatenate(pieces), "<f4")
            answer["vectors"] = base64.b64encode(vectors.tobytes()).decode("ascii")
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
