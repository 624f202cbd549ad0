"""What Prometheus is told is what the worker and the client count, in a form that its own parsers take."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from typing import Any

import prometheus_client
import pytest
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from bridge_client import EmbedClient, RequestError
from bridge_client.integrations.prometheus import ClientCollector
from bridge_client.testing import fake_client
from tests.client.conftest import WAIT_S, wait_until
from tests.worker.harness import ROOT, TINY_MODEL


def scraped(client: EmbedClient) -> dict[str, Any]:
    """Scrape a client; return the families by their names, as both of the two parsers read them."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(ClientCollector(client))
    text = prometheus_client.generate_latest(registry).decode()
    plain = {family.name: family for family in text_string_to_metric_families(text)}
    # The parser of the stricter format refuses buckets that do not ascend, a count that is not the last of them …
    strict = {
        family.name: family
        for family in parser.text_string_to_metric_families(exposition.generate_latest(registry).decode())
    }
    assert {name.removesuffix("_total") for name in plain} >= set(strict) - {"embed_worker"}
    return strict


def value(family: Any, suffix: str = "", **labels: str) -> float:
    (found,) = (
        sample.value
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    )
    return float(found)


def test_every_figure_of_a_worker_arrives() -> None:
    with EmbedClient(model=str(TINY_MODEL), worker_args=("--provider", "cpu")) as client:
        client.embed(["a", "b c"])
        client.embed(["word " * 200])
        with pytest.raises(RequestError):
            client.embed(["word " * 200], truncate=False)
        families = scraped(client)
        metrics, info, stats = client.metrics(), client.info(), client.stats()
    by_code = {sample.labels["code"]: sample.value for sample in families["embed_worker_requests"].samples}
    assert by_code == metrics["requests"] == {"ok": 2, "input_too_long": 1}
    for name in ("texts", "tokens", "truncated_texts", "micro_batches", "padded_tokens"):
        assert value(families[f"embed_worker_{name}"], "_total", worker="0") == metrics[name] > 0
    for ours, theirs in (("queue_seconds", "queue_s"), ("request_seconds", "total_s"), ("batch_texts", "batch_texts")):
        histogram, family = metrics["histograms"][theirs], families[f"embed_worker_{ours}"]
        assert value(family, "_count") == histogram["count"] == 2
        assert value(family, "_sum") == histogram["sum"]
        buckets = {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}
        assert buckets == {float(bound): count for bound, count in histogram["buckets"].items()}
    assert value(families["embed_worker_resident_memory_bytes"]) > 2**20
    about = {**families["embed_worker"].samples[0].labels}
    assert about == {
        "worker": "0",
        "model": "bert-mean",
        "fingerprint": info["fingerprint"],
        "precision": "float32",
        "version": info["version"],
        "provider": "CPUExecutionProvider",
    }
    assert value(families["embed_client_requests"], "_total") == stats.requests == 3


def test_a_scrape_starts_no_worker_and_survives_one_that_is_gone() -> None:
    client = EmbedClient(model=str(TINY_MODEL))
    families = scraped(client)
    assert client.stats().pid is None
    assert value(families["embed_worker_ready"], worker="0") == 0
    assert families["embed_worker_texts"].samples == []
    client.close()
    assert value(scraped(client)["embed_client_requests"], "_total") == 0


def test_restarts_and_blamed_inputs_are_told_of_the_client() -> None:
    with fake_client(poison="bad") as client:
        call = client.submit(["bad"])
        assert call.exception(WAIT_S) is not None
        wait_until(lambda: client.stats().state == "ready")
        families = scraped(client)
        stats = client.stats()
    assert value(families["embed_client_restarts"], "_total") == stats.restarts > 0
    assert value(families["embed_client_blamed"], "_total") == stats.blamed == 1
    assert value(families["embed_worker_ready"], worker="0") == 1


def test_the_example_serves_what_its_worker_counts() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "prometheus.py"), "--port", "0", "--model", str(TINY_MODEL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        for text in ("a text", "another one"):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert process.stdout.readline().endswith("32 numbers\n")
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            families = {each.name: each for each in text_string_to_metric_families(answer.read().decode())}
        assert value(families["embed_worker_inference_seconds"], "_count", worker="0") == 2
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(WAIT_S)
        process.stdout.close()


def test_the_example_tells_of_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "prometheus.py"), "--port", str(port)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=WAIT_S,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"port {port} of 127.0.0.1 cannot be taken: ")
    assert len(done.stderr.splitlines()) == 1
