"""Prometheus: `ClientCollector`, which tells a registry of `prometheus_client` what a client and its workers count.

```python
prometheus_client.REGISTRY.register(ClientCollector(client))
```
Nothing is counted here: every scrape asks `client.stats()` and each worker that is ready for its `metrics`. A worker
that was started again begins at 0, which `rate()` takes into account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.utils import floatToGoString

from bridge_client.client import EmbedClient
from bridge_client.errors import BridgeError
from bridge_client.lifecycle import State
from bridge_client.stats import ClientStats

_TIMEOUT_S = 2.0  # a worker answers within milliseconds; a scrape must not wait for one that hangs
_WORKER = "worker"

_OF_CLIENT = {
    "requests": "Calls that were submitted",
    "restarts": "Worker processes started after the first of each worker",
    "replays": "Requests sent again after the death of a worker",
    "blamed": "Inputs that were found to kill workers",
    "timeouts": "Calls whose time was over",
    "unknown_answers": "Late, doubled or unexpected answers of workers",
}
_NOW_OF_CLIENT = {"queued": "Calls of which something has not been sent", "in_flight": "Requests with the workers"}

_COUNTERS = {
    "texts": "Texts that were embedded",
    "tokens": "Their tokens, before truncation",
    "truncated_texts": "Texts that were cut at the model's limit",
    "tokenized_texts": "Texts that were tokenised and not embedded",
    "micro_batches": "Micro-batches that have run, and pieces that were only tokenised",
    "padded_tokens": "Tokens that were computed, padding included",
}
# What a worker tells, what it is called here, and what it is.
_GAUGES = {
    "uptime_s": ("uptime_seconds", "Age of the process"),
    "queued": ("queued", "Requests of which nothing has run"),
    "in_flight": ("in_flight", "Requests that are being worked on"),
    "in_flight_bytes": ("in_flight_bytes", "Size of their lines"),
    "rss_bytes": ("resident_memory_bytes", "Resident memory"),
}
_HISTOGRAMS = {
    "queue_s": ("queue_seconds", "What a request waited"),
    "tokenize_s": ("tokenize_seconds", "What its tokenising took"),
    "inference_s": ("inference_seconds", "From the first to the last micro-batch of a request"),
    "total_s": ("request_seconds", "From its line to its answer"),
    "batch_texts": ("batch_texts", "Texts of a micro-batch"),
    "batch_tokens": ("batch_tokens", "Tokens of a micro-batch, padding included"),
}
_ABOUT = ("model", "fingerprint", "precision", "version")


class ClientCollector:
    """A collector of `prometheus_client`; register it once for each client, and from any thread it may be asked."""

    def __init__(self, client: EmbedClient, *, timeout_s: float = _TIMEOUT_S) -> None:
        """Note whom to ask; nothing is started, by a scrape neither.

        Args:
            client: Stays the host's, which closes it.
            timeout_s: How long a worker may take to answer; one that takes longer is left out of a scrape.
        """
        self._client = client
        self._timeout_s = timeout_s

    def describe(self) -> Iterable[Any]:
        """Return nothing: so a registry does not ask the workers when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the families of the client, and those of its workers that are ready."""
        stats = self._client.stats()
        yield from _families_of_client(stats)
        told: dict[str, Mapping[str, Any]] = {}
        about: dict[str, Mapping[str, Any]] = {}
        for number, worker in enumerate(stats.workers):
            if worker.state is State.READY:
                try:
                    told[str(number)] = self._client.metrics(worker=number, timeout_s=self._timeout_s)
                    about[str(number)] = self._client.info(worker=number, timeout_s=self._timeout_s)
                except BridgeError:
                    continue  # it has just ended, or hangs, which `ready` and `restarts` tell
        yield from _families_of_workers(told)
        yield _family_of_info(about)


def _families_of_client(stats: ClientStats) -> Iterator[Any]:
    for name, what in _OF_CLIENT.items():
        yield CounterMetricFamily(f"embed_client_{name}", what, value=getattr(stats, name))
    for name, what in _NOW_OF_CLIENT.items():
        yield GaugeMetricFamily(f"embed_client_{name}", what, value=getattr(stats, name))
    ready = GaugeMetricFamily("embed_worker_ready", "Whether a worker takes requests", labels=[_WORKER])
    for number, worker in enumerate(stats.workers):
        ready.add_metric([str(number)], float(worker.state is State.READY))
    yield ready


def _families_of_workers(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Any]:
    requests = CounterMetricFamily(
        "embed_worker_requests", "Requests by the code of their answer", labels=[_WORKER, "code"]
    )
    for number, metrics in told.items():
        for code, count in metrics.get("requests", {}).items():
            requests.add_metric([number, code], count)
    yield requests
    for name, what in _COUNTERS.items():
        yield _filled(CounterMetricFamily(f"embed_worker_{name}", what, labels=[_WORKER]), name, told)
    for name, (ours, what) in _GAUGES.items():
        yield _filled(GaugeMetricFamily(f"embed_worker_{ours}", what, labels=[_WORKER]), name, told)
    for name, (ours, what) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(f"embed_worker_{ours}", what, labels=[_WORKER])
        for number, metrics in told.items():
            if (histogram := metrics.get("histograms", {}).get(name)) is not None:
                buckets = [(floatToGoString(float(bound)), count) for bound, count in histogram["buckets"].items()]
                family.add_metric([number], buckets=buckets, sum_value=histogram["sum"])
        yield family


def _filled(family: Any, name: str, told: Mapping[str, Mapping[str, Any]]) -> Any:
    for number, metrics in told.items():
        if name in metrics:
            family.add_metric([number], metrics[name])
    return family


def _family_of_info(about: Mapping[str, Mapping[str, Any]]) -> Any:
    family = InfoMetricFamily("embed_worker", "What a worker serves, and what runs it", labels=[_WORKER])
    for number, info in about.items():
        labels = {name: str(info.get(name, "")) for name in _ABOUT}
        provider = info.get("provider")
        family.add_metric(
            [number], labels | {"provider": str(provider["chosen"]) if isinstance(provider, dict) else ""}
        )
    return family
