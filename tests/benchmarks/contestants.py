"""Who is compared: each turns the same texts into the same vectors, on the same model file, with the same cores."""

from __future__ import annotations

import base64
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import onnxruntime
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embed_worker.machine import available_cores

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
MAX_TOKENS = 256
# What a pipe holds. A buffer of 1 MiB is mapped anew for each read: a fifth of a millisecond of a text's time.
_PIPE_BYTES = 2**16

Vectors = NDArray[np.float32]


class Contestant(Protocol):
    """One way to embed texts."""

    name: str

    def embed(self, texts: list[str]) -> Vectors:
        """Return (texts, 384) float32 of length 1, in the order of the texts."""

    def close(self) -> None:
        """Give everything back."""


class Worker:
    """Our worker through its pipe, spoken to by hand: requests of some texts, pipelined, vectors as base64."""

    name = "embed-worker"

    def __init__(
        self,
        *arguments: str,
        request_texts: int = 64,
        model: Path = MODEL,
        stderr: IO[bytes] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "embed_worker"),
    ) -> None:
        self._request_texts = request_texts
        self.process = subprocess.Popen(
            [*command, "--model", str(model), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
        )
        self._received = bytearray()
        self.send({"id": "ready", "method": "info"})
        self.receive()

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps(message) + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(self._next_line(limit_s=600))
        if answer["status"] != "ok":
            raise RuntimeError(answer["message"])
        return answer

    def _next_line(self, limit_s: float) -> bytes:
        """Read in the calling thread: to wake another one would be counted as the worker's time."""
        assert self.process.stdout is not None
        output, searched = self.process.stdout.fileno(), 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if not select.select([output], [], [], limit_s)[0]:
                raise RuntimeError(f"the worker has not answered for {limit_s:.0f} s")
            if not (chunk := os.read(output, _PIPE_BYTES)):
                raise RuntimeError("the worker ended")
            self._received += chunk
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line

    def embed(self, texts: list[str]) -> Vectors:
        starts = range(0, len(texts), self._request_texts)
        if len(starts) == 1:
            self._send_all(texts, starts)
            pieces = self._receive_all(starts)
        else:  # both pipes could be full
            writer = threading.Thread(target=self._send_all, args=(texts, starts))
            writer.start()
            pieces = self._receive_all(starts)
            writer.join()
        return np.concatenate([pieces[start] for start in starts]).reshape(len(texts), -1)

    def embed_one(self, text: str) -> Vectors:
        """Return (D,) float32 of one text, with no more of this side than that takes."""
        self.send({"id": 0, "inputs": text, "encoding_format": "base64"})
        return np.frombuffer(base64.b64decode(self.receive()["embeddings_base64"]), np.float32)

    def _receive_all(self, starts: range) -> dict[int, Vectors]:
        answers = (self.receive() for _ in starts)
        return {each["id"]: np.frombuffer(base64.b64decode(each["embeddings_base64"]), np.float32) for each in answers}

    def _send_all(self, texts: list[str], starts: range) -> None:
        for start in starts:
            inputs = texts[start : start + self._request_texts]
            self.send({"id": start, "inputs": inputs, "encoding_format": "base64"})

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


class Direct:
    """The runtime called directly, in the best arrangement found: rows sorted by length, cut by tokens, two lanes."""

    def __init__(self, *, batch_tokens: int = 512, threads: int | None = None) -> None:
        self.name = f"onnxruntime, direct, {batch_tokens} tokens"
        self._batch_tokens = batch_tokens
        self._lanes = threads or available_cores()
        self.tokenizer = plain_tokenizer()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self._session = open_session(1)

    def embed(self, texts: list[str]) -> Vectors:
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(texts)), key=lambda index: -len(encoded[index]))
        batches: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) + 1) * len(encoded[batch[0]]) > self._batch_tokens:
                batches.put(batch)
                batch = []
            batch.append(index)
        batches.put(batch)
        vectors = np.empty((len(texts), 384), np.float32)

        def lane() -> None:
            while True:
                try:
                    rows = batches.get_nowait()
                except queue.Empty:
                    return
                vectors[rows] = run_batch(self._session, [encoded[row] for row in rows])

        threads = [threading.Thread(target=lane) for _ in range(self._lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return vectors

    def close(self) -> None:
        del self._session


class DirectAlone:
    """One text at a time on all cores: the best latency that the runtime itself gives."""

    name = "onnxruntime, direct, one text"

    def __init__(self) -> None:
        self._tokenizer = plain_tokenizer()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._session = open_session(available_cores(), spin=True)

    def embed(self, texts: list[str]) -> Vectors:
        return np.concatenate(
            [run_batch(self._session, [self._tokenizer.encode_batch_fast([text])[0].ids]) for text in texts]
        )

    def close(self) -> None:
        del self._session


class NaiveBridge:
    """What a bridge usually is: a child, lock-step requests of 32 texts in the given order, json from the library."""

    name = "naive JSON bridge"

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.naive_bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.embed(["ready"])

    def embed(self, texts: list[str]) -> Vectors:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        vectors: list[list[float]] = []
        for start in range(0, len(texts), 32):
            self._process.stdin.write(json.dumps({"inputs": texts[start : start + 32]}) + "\n")
            self._process.stdin.flush()
            vectors += json.loads(self._process.stdout.readline())["embeddings"]
        return np.array(vectors, np.float32)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def contestants() -> list[Callable[[], Contestant]]:
    """List the worker, the runtime, and what a bridge usually is; other libraries are in `peers`."""
    return [Worker, Direct, lambda: Direct(batch_tokens=256), NaiveBridge]


def plain_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def open_session(threads: int, *, spin: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning that goes on after a run would disturb whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(MODEL / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"])


def run_batch(session: onnxruntime.InferenceSession, rows: list[list[int]]) -> Vectors:
    """Pad, run, average, normalise: (rows, 384)."""
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session.run(["last_hidden_state"], feeds)
    weights = mask.astype(np.float32)
    pooled = np.matmul(weights[:, None, :], hidden)[:, 0, :] / weights.sum(axis=1, keepdims=True)
    vectors: Vectors = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return vectors
