"""examples/openai_server.py as a process, asked by the `openai` package, by LangChain, and by plain HTTP."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bridge_client import shared_client
from bridge_client.testing.processes import is_there, send_signal
from tests.integrations.neighbours import DOCUMENTS, QUESTIONS
from tests.worker.harness import ROOT

openai = pytest.importorskip("openai", reason="openai is not there: make integrations")
for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not there: make integrations")
httpx = pytest.importorskip("httpx")

pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("default")]
MODEL = "all-MiniLM-L6-v2"


def served(port: int, stderr: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "openai_server.py"), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process = served(0)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        yield url
        pid = worker_of(url)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert not is_there(pid)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def get(address: str, path: str) -> Any:
    return httpx.get(address.removesuffix("/v1") + path, timeout=60)


def worker_of(address: str) -> int:
    return int(get(address, "/health").json()["pid"])


def test_both_encodings_give_the_vectors_of_the_worker(client: Any) -> None:
    right = shared_client(MODEL).embed(DOCUMENTS)
    for encoding in ("float", "base64"):
        found = client.embeddings.create(model=MODEL, input=DOCUMENTS, encoding_format=encoding)
        assert [each.index for each in found.data] == list(range(len(DOCUMENTS)))
        rows = [
            np.frombuffer(base64.b64decode(each.embedding), "<f4") if encoding == "base64" else each.embedding
            for each in found.data
        ]
        np.testing.assert_allclose(np.array(rows, np.float32), right, atol=2e-6)
        assert found.usage.prompt_tokens == found.usage.total_tokens > 4 * len(DOCUMENTS)
        assert found.model == MODEL
        assert found.fingerprint == shared_client(MODEL).info()["fingerprint"]
    shared_client(MODEL).close()


def test_fewer_dimensions_and_a_single_text(client: Any) -> None:
    [found] = client.embeddings.create(model=f"sentence-transformers/{MODEL}", input="a river", dimensions=64).data
    assert len(found.embedding) == 64
    assert abs(np.linalg.norm(found.embedding) - 1) < 1e-5


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[1, 2, 3]]}, "input"),
        ({"input": "a", "dimensions": 10**6}, None),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "extra_body": {"inputs": "a"}}, "inputs"),
    ],
)
def test_what_is_wrong_is_a_400_that_says_so(client: Any, wrong: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, **wrong)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


def test_another_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_the_model_is_listed_with_its_vector_space(client: Any) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).fingerprint == model.fingerprint


def test_a_killed_worker_costs_nothing_and_is_counted(client: Any, address: str) -> None:
    send_signal(worker_of(address), "KILL")
    assert client.embeddings.create(model=MODEL, input="a").data
    assert get(address, "/health").status_code == 200
    parser = pytest.importorskip("prometheus_client.parser")
    families = {each.name: each for each in parser.text_string_to_metric_families(get(address, "/metrics").text)}
    assert families["embed_worker_restarts"].samples[0].value == 1
    ok = [each.value for each in families["embed_requests"].samples if each.labels.get("status") == "200"]
    assert ok
    assert families["embed_texts"].samples[0].value >= 1


def test_a_name_of_the_internet_that_leads_here_is_refused(address: str) -> None:
    assert httpx.get(f"{address}/models", headers={"host": "evil.example"}).status_code == 400
    assert httpx.post(f"{address}/embeddings", content=b"{").status_code == 400


def test_langchain_finds_the_right_neighbours(address: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not there: make integrations")
    embeddings = langchain.OpenAIEmbeddings(
        model=MODEL, base_url=address, api_key="none", check_embedding_ctx_length=False
    )
    documents = np.array(embeddings.embed_documents(DOCUMENTS))
    for question, right in QUESTIONS.items():
        cosines = documents @ np.array(embeddings.embed_query(question))
        assert cosines.argmax() == right
        assert cosines[right] > 0.6
        assert np.delete(cosines, right).max() < 0.4


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no port of a server that has ended")
def test_a_service_that_is_started_again_gets_its_port_again() -> None:
    port = 0
    for _ in range(2):
        with served(port) as process:
            assert process.stdout is not None
            try:
                url = process.stdout.readline().strip()
                assert url.startswith("http://"), url
                port = int(url.removesuffix("/v1").rpartition(":")[2])
                with (
                    httpx.Client() as open_connection
                ):  # the server ends it, and the system keeps its port for a minute
                    assert open_connection.get(url + "/models", timeout=60).status_code == 200
                    process.send_signal(signal.SIGTERM)
                    process.wait(60)
            finally:
                process.kill()


def test_a_port_that_is_taken_is_told_in_a_sentence(address: str) -> None:
    port = int(address.removesuffix("/v1").rpartition(":")[2])
    with served(port, subprocess.STDOUT) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith(f"port {port} of 127.0.0.1 cannot be taken: ")
    assert "Traceback" not in said
