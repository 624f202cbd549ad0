"""LangChain, LlamaIndex, Chroma and LanceDB with the default model: neighbours, reopening, and folders that changed."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_client import shared_client
from bridge_client.integrations.embedder import Embedder, OtherVectorSpaceError
from tests.integrations.neighbours import DOCUMENTS, QUESTIONS, in_a_second_process, model_named, other_model

pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("default")]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    folder = model_named("my-model", tmp_path)
    yield folder
    shared_client(str(folder)).close()


@pytest.fixture(scope="module")
def default() -> Iterator[Embedder]:
    embedder = Embedder("all-MiniLM-L6-v2")
    yield embedder
    embedder.client.close()


def swap(folder: Path) -> None:
    """Let another model stand in the folder's place, as after an upgrade and a restart."""
    shared_client(str(folder)).close()
    other_model(folder)


# What all adapters share


def test_similar_texts_are_near_and_others_are_not(default: Embedder) -> None:
    documents = default.vectors(DOCUMENTS, "document")
    for question, right in QUESTIONS.items():
        cosines = documents @ default.vectors([question], "query")[0]
        assert cosines.argmax() == right
        assert cosines[right] > 0.6
        assert np.delete(cosines, right).max() < 0.4


def test_another_folder_under_the_same_name_is_refused(model: Path) -> None:
    stored = Embedder(str(model)).config()
    assert Embedder.of_config(stored).vectors(["a"], "query").shape == (1, 384)
    swap(model)
    with pytest.raises(OtherVectorSpaceError, match=stored["fingerprint"]):
        Embedder.of_config(stored).vectors(["a"], "query")


def test_a_string_is_one_text(default: Embedder) -> None:
    for text in ("hello", ""):
        assert default.vectors(text, "document").shape == (1, 384)
        assert asyncio.run(default.avectors(text, "document")).shape == (1, 384)


def test_texts_may_be_any_iterable_and_nothing_else(default: Embedder) -> None:
    for texts in (np.array(["a", "b"]), iter(["a", "b"]), ("a", "b")):
        assert default.vectors(texts, "document").shape == (2, 384)
    assert default.vectors([], "document").shape == (0, 384)
    nothing: Any = None
    with pytest.raises(TypeError):
        default.vectors(nothing, "document")


# LangChain


def test_langchain_tells_questions_from_documents_and_is_pickled() -> None:
    langchain = pytest.importorskip("bridge_client.integrations.langchain", reason="LangChain: make integrations")
    vectorstores = pytest.importorskip("langchain_core.vectorstores")
    embeddings = pickle.loads(pickle.dumps(langchain.EmbedBridgeEmbeddings()))
    store = vectorstores.InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    for question, right in QUESTIONS.items():
        (document, score), (_, second) = store.similarity_search_with_score(question, k=2)
        assert document.page_content == DOCUMENTS[right]
        assert score > 0.6
        assert second < 0.4
    with pytest.raises(OtherVectorSpaceError):
        langchain.EmbedBridgeEmbeddings(fingerprint="0" * 16).embed_query("a")


# LlamaIndex


def test_llama_index_persists_and_reloads(tmp_path: Path) -> None:
    adapter = pytest.importorskip("bridge_client.integrations.llama_index", reason="LlamaIndex: make integrations")
    core = pytest.importorskip("llama_index.core")
    embed = adapter.EmbedBridgeEmbedding()
    nodes = [core.schema.TextNode(text=text, id_=str(number)) for number, text in enumerate(DOCUMENTS)]
    index = core.VectorStoreIndex(nodes, embed_model=embed)
    index.storage_context.persist(str(tmp_path))
    again = pickle.loads(pickle.dumps(embed)) if hasattr(embed, "__getstate__") else embed
    loaded = core.load_index_from_storage(
        core.StorageContext.from_defaults(persist_dir=str(tmp_path)),
        embed_model=adapter.EmbedBridgeEmbedding(fingerprint=embed.vector_space()),
    )
    for question, right in QUESTIONS.items():
        best, second = loaded.as_retriever(similarity_top_k=2).retrieve(question)
        assert best.node.node_id == str(right)
        assert best.score > 0.6
        assert second.score < 0.4
    assert again.model_name == embed.model_name
    stated = adapter.EmbedBridgeEmbedding.from_dict(embed.to_dict())
    assert stated.embed_batch_size == 256
    for unknown in ({"model": "other-model"}, {"request_timeout_s": 3.0}):  # of other adapters
        with pytest.raises(ValueError, match=next(iter(unknown))):
            adapter.EmbedBridgeEmbedding(**unknown)
    for name in ("model_name", "fingerprint", "options"):
        with pytest.raises(ValueError, match="frozen"):
            setattr(embed, name, None)
    with pytest.raises(OtherVectorSpaceError):
        adapter.EmbedBridgeEmbedding(fingerprint="0" * 16).get_query_embedding("a")


# Chroma

_REOPEN_CHROMA = """
import sys, chromadb
from bridge_client.integrations import chroma
from bridge_client.integrations.embedder import OtherVectorSpaceError
client = chromadb.PersistentClient(sys.argv[1])
try:
    collection = client.get_collection("texts")
    print(collection.query(query_texts=[sys.argv[2]], n_results=1)["ids"][0][0])
except OtherVectorSpaceError as error:
    print("refused", error.stored)
"""


def test_chroma_is_reopened_and_refuses_another_space(model: Path, tmp_path: Path) -> None:
    chroma = pytest.importorskip("bridge_client.integrations.chroma", reason="Chroma: make integrations")
    chromadb = pytest.importorskip("chromadb")
    client = chromadb.PersistentClient(str(tmp_path / "db"))
    function = chroma.EmbedBridgeFunction(str(model))
    collection = chroma.collection(client, "texts", function)
    collection.add(ids=[str(number) for number in range(len(DOCUMENTS))], documents=DOCUMENTS)
    for question, right in QUESTIONS.items():
        found = collection.query(query_texts=[question], n_results=2)
        assert found["ids"][0][0] == str(right)
        near, far = found["distances"][0]
        assert 1 - near > 0.6
        assert 1 - far < 0.4
    question, right = next(iter(QUESTIONS.items()))
    assert in_a_second_process(_REOPEN_CHROMA, str(tmp_path / "db"), question) == str(right)
    fingerprint = function.get_config()["fingerprint"]
    swap(model)
    assert in_a_second_process(_REOPEN_CHROMA, str(tmp_path / "db"), question) == f"refused {fingerprint}"
    other = chroma.EmbedBridgeFunction(str(model))
    with pytest.raises(OtherVectorSpaceError):
        chroma.collection(client, "texts", other)
    persisted = client.get_collection("texts").configuration_json["embedding_function"]["config"]
    assert persisted["fingerprint"] == fingerprint
    with pytest.raises(OtherVectorSpaceError):
        collection.modify(configuration={"embedding_function": other})


# LanceDB

_REOPEN_LANCEDB = """
import sys, lancedb
from bridge_client.integrations.lancedb import Embedder
from bridge_client.integrations.embedder import OtherVectorSpaceError
table = lancedb.connect(sys.argv[1]).open_table("texts")
try:
    print(table.search(sys.argv[2]).limit(1).to_list()[0]["id"])
except OtherVectorSpaceError as error:
    print("refused", error.stored)
"""


def test_lancedb_is_reopened_and_refuses_another_space(model: Path, tmp_path: Path) -> None:
    adapter = pytest.importorskip("bridge_client.integrations.lancedb", reason="LanceDB: make integrations")
    lancedb = pytest.importorskip("lancedb")
    pydantic = pytest.importorskip("lancedb.pydantic")
    embed = adapter.embed_bridge(str(model))
    for unknown in ({"model": "other-model"}, {"request_timeout_s": 3.0}):  # LanceDB's word is `name`
        with pytest.raises(ValueError, match=next(iter(unknown))):
            type(embed).create(**unknown)
    with pytest.raises(ValueError, match="frozen"):
        embed.name = "other-model"

    class Row(pydantic.LanceModel):  # type: ignore[misc, name-defined]
        id: int
        text: str = embed.SourceField()
        vector: pydantic.Vector(embed.ndims()) = embed.VectorField()  # type: ignore[valid-type]

    database = lancedb.connect(str(tmp_path / "db"))
    table = database.create_table("texts", schema=Row)
    table.add([{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)])
    for question, right in QUESTIONS.items():
        best, second = table.search(question).metric("cosine").limit(2).to_list()
        assert best["id"] == right
        assert 1 - best["_distance"] > 0.6
        assert 1 - second["_distance"] < 0.4
    question, right = next(iter(QUESTIONS.items()))
    assert in_a_second_process(_REOPEN_LANCEDB, str(tmp_path / "db"), question) == str(right)
    fingerprint = embed.fingerprint
    swap(model)
    assert in_a_second_process(_REOPEN_LANCEDB, str(tmp_path / "db"), question) == f"refused {fingerprint}"
