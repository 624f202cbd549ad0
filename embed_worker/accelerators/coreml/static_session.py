"""A graph with every dimension fixed, on one provider of onnxruntime."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.inference import ort
from embed_worker.inference.pooling import Float32

_TELLS_PLACEMENT = "1.24.1"  # before, only a profile of a run told it, after the run


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Nodes that one provider runs as a whole; the CPU runs each of its nodes alone."""

    provider: str
    nodes: int


class StaticSession:
    """One graph with every dimension fixed, on one provider: what a proof must see of it, and one run at a time.

    It may be closed while another thread wants to run it, or still does.
    """

    def __init__(
        self,
        graph: Path,
        *,
        provider: str,
        options: Mapping[str, str],
        dimensions: Mapping[str, int],
        factory: ort.SessionFactory | None = None,
    ) -> None:
        """Open a graph.

        Args:
            graph: An ONNX file with one output.
            provider: By onnxruntime's name; the CPU takes what it leaves.
            options: Of the provider.
            dimensions: The sizes of the graph's free dimensions by name. onnxruntime ignores a name that is wrong.
            factory: Stands for `onnxruntime.InferenceSession`.

        Raises:
            Exception: Whatever the runtime raises.
        """
        settings = ort.session_options()
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name, size in dimensions.items():
            settings.add_free_dimension_override_by_name(name, size)
        self._lock = threading.Lock()
        self._session: Any = ort.open_session(
            graph,
            settings,
            providers=[(provider, dict(options)), ort.CPU],
            disabled_optimizers=ort.COREML_DISABLED_OPTIMIZERS,
            factory=factory,
        )

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        """The shapes of the inputs by name; a dimension that is not fixed has a name, or none."""
        return {node.name: tuple(node.shape) for node in self._session.get_inputs()}

    def placement(self) -> list[Subgraph]:
        """Return what really runs where; `get_providers` only tells what was registered.

        Raises:
            PlacementUnknownError: This onnxruntime cannot say.
        """
        try:
            entries = self._session.get_provider_graph_assignment_info()
        except AttributeError as error:
            needed = f"where a graph runs is told by onnxruntime {_TELLS_PLACEMENT} and newer"
            raise PlacementUnknownError(f"{needed}, and this is {ort.runtime_version()}") from error
        return [Subgraph(entry.ep_name, len(entry.get_nodes())) for entry in entries]

    def run(self, feeds: Mapping[str, Float32]) -> Float32:
        """Run the graph: the value of its one output.

        Raises:
            SessionClosedError: It was closed before this run's turn.
            Exception: Whatever the runtime raises.
        """
        with self._lock:
            if self._session is None:
                raise SessionClosedError
            (output,) = self._session.run(None, dict(feeds))
        return np.asarray(output, np.float32)

    def close(self, timeout_s: float = 1.0) -> None:
        """Let the runtime free it and its files; a run that takes longer than this keeps it."""
        if self._lock.acquire(timeout=timeout_s):
            self._session = None
            self._lock.release()


class PlacementUnknownError(Exception):
    """The runtime is too old to say which provider runs what."""


class SessionClosedError(Exception):
    """The session was closed meanwhile."""
