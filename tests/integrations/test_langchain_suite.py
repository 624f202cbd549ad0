"""LangChain's own test suite for embeddings, over the default model."""

from __future__ import annotations

from typing import Any

import pytest

suites = pytest.importorskip("langchain_tests.integration_tests", reason="LangChain's tests: make integrations")
units = pytest.importorskip("langchain_tests.unit_tests")
adapter = pytest.importorskip("bridge_client.integrations.langchain")

pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("default")]


class TestUnits(units.EmbeddingsUnitTests):  # type: ignore[misc, name-defined]
    """How it is made."""

    @property
    def embeddings_class(self) -> Any:
        return adapter.EmbedBridgeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-MiniLM-L6-v2"}


class TestIntegration(suites.EmbeddingsIntegrationTests):  # type: ignore[misc, name-defined]
    """What it gives, blocking and async."""

    @property
    def embeddings_class(self) -> Any:
        return adapter.EmbedBridgeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-MiniLM-L6-v2"}
