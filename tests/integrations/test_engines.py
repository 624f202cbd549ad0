"""`EmbedBatch` over every kind of batch, pickled as engines pickle it, with one worker for all."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bridge_client import ClientOptions, EmbedClient, PoisonedInputError, RequestError, shared_client
from bridge_client.integrations.engines import EmbedBatch
from bridge_client.testing import fake_command
from tests.worker.harness import ROOT

MODEL = str(ROOT / "tests" / "models" / "bert-mean")
TEXTS = ["rain on a hill", None, "a river", ""]


@pytest.fixture(scope="module", autouse=True)
def worker() -> Iterator[EmbedClient]:
    yield shared_client(MODEL)
    shared_client(MODEL).close()


@pytest.fixture(scope="module")
def expected(worker: EmbedClient) -> list[Any]:
    return [None if text is None else worker.embed(text)[0] for text in TEXTS]


def batch(**keywords: Any) -> EmbedBatch:
    made: EmbedBatch = pickle.loads(pickle.dumps(EmbedBatch(MODEL, **keywords)))
    return made


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert [vector is None for vector in found] == [vector is None for vector in expected]
    for vector, right in zip(found, expected, strict=True):
        if right is not None:
            np.testing.assert_allclose(np.asarray(vector, np.float32), right, atol=2e-6)


@pytest.mark.parametrize("metadata", [{b"from": b"a test"}, None])
@pytest.mark.parametrize("kind", [pa.Table, pa.RecordBatch])
def test_arrow_gets_one_more_column_over_the_matrix(
    kind: Any, metadata: dict[bytes, bytes] | None, expected: list[Any]
) -> None:
    number = pa.field("id", pa.int64(), nullable=False, metadata={"unit": "1"})
    schema = pa.schema([number, pa.field("text", pa.string())], metadata=metadata)
    given = kind.from_pydict({"id": [1, 2, 3, 4], "text": TEXTS}, schema=schema)
    found = batch()(given)
    assert isinstance(found, kind)
    assert found.schema.names == ["id", "text", "embedding"]
    assert found.schema.metadata == metadata
    assert found.schema.field("id").equals(number, check_metadata=True)
    column = found.column("embedding")
    assert column.type == pa.list_(pa.float32(), len(expected[0]))
    assert_same(column.to_pylist(), expected)


@pytest.mark.parametrize("kind", ["Table", "RecordBatch", "pandas", "polars", "dict"])
def test_a_column_of_the_outputs_name_is_replaced(kind: str, expected: list[Any]) -> None:
    given: Any = {"embedding": ["old"] * len(TEXTS), "text": TEXTS}
    if kind in ("pandas", "polars"):
        given = pytest.importorskip(kind).DataFrame(given)
    elif kind != "dict":
        given = getattr(pa, kind).from_pydict(given)
    found = batch()(given)
    names = found.schema.names if kind in ("Table", "RecordBatch") else list(getattr(found, "columns", found))
    assert names == ["embedding", "text"]
    vectors = found["embedding"]
    if kind != "dict":
        vectors = vectors.to_pylist() if hasattr(vectors, "to_pylist") else vectors.to_list()
    assert_same(vectors, expected)


def test_lists_of_any_length_for_who_does_not_know_fixed_ones(expected: list[Any]) -> None:
    found = batch(fixed_size=False)(pa.table({"text": TEXTS}))
    assert found.schema.field("embedding").type == pa.list_(pa.float32())
    assert_same(found["embedding"].to_pylist(), expected)


def test_a_dict_of_arrays_gets_a_matrix(expected: list[Any]) -> None:
    found = batch()({"text": np.array(["a river", "rain on a hill"], object), "id": np.array([1, 2])})
    assert found["embedding"].shape == (2, len(expected[0]))
    np.testing.assert_allclose(found["embedding"], [expected[2], expected[0]], atol=2e-6)
    found = batch()({"text": np.array(TEXTS, object)})
    assert_same(list(found["embedding"]), expected)


def test_a_dict_of_lists_gets_lists(expected: list[Any]) -> None:
    for texts in (["a river"], TEXTS):
        found = batch()({"text": texts})["embedding"]
        assert isinstance(found, list)
        assert {type(vector) for vector in found} == ({list} if None not in texts else {list, type(None)})
    assert_same(found, expected)


def test_pandas_gets_rows_of_numbers_and_none(expected: list[Any]) -> None:
    pandas = pytest.importorskip("pandas")
    given = pandas.DataFrame({"id": [1, 2, 3, 4], "text": TEXTS})
    found = batch()(given)
    assert list(given.columns) == ["id", "text"]
    assert_same(found["embedding"].tolist(), expected)


def test_polars_gets_an_array_column(expected: list[Any]) -> None:
    polars = pytest.importorskip("polars")
    found = batch()(polars.DataFrame({"text": TEXTS}))
    assert found.schema["embedding"] == polars.Array(polars.Float32, len(expected[0]))
    assert_same(found["embedding"].to_list(), expected)


def test_an_empty_batch_and_one_of_nulls_have_the_dimension(expected: list[Any]) -> None:
    for texts in ([], [None, None]):
        found = batch()(pa.table({"text": pa.array(texts, pa.string())}))
        assert found["embedding"].type == pa.list_(pa.float32(), len(expected[0]))
        assert found["embedding"].null_count == len(texts)
        with pytest.raises(RequestError, match="dimensions"):
            batch(dimensions=9999)({"text": texts})


def test_a_bad_text_is_an_error_with_its_row_or_a_null() -> None:
    texts = ["a river", None, "x \ud800"]
    with pytest.raises(RequestError) as caught:
        batch()({"text": texts})
    assert caught.value.index == 2
    found = batch(on_error="null")({"text": texts})["embedding"]
    assert [vector is None for vector in found] == [False, True, True]


@pytest.fixture
def fragile() -> Iterator[ClientOptions]:
    """The options of a worker that dies of a text."""
    options = ClientOptions(worker_command=fake_command(poison="bad"), backoff_initial_s=0.01)
    yield options
    shared_client(options).close()


def test_a_text_that_kills_the_worker_or_is_none_is_named_by_its_row(fragile: ClientOptions) -> None:
    embed = EmbedBatch(fragile)
    with pytest.raises(PoisonedInputError, match="row 3 killed the worker") as poisoned:
        embed({"text": [None, None, "ok", "bad"]})
    assert (poisoned.value.index, poisoned.value.indexes) == (3, (3,))
    assert str(pickle.loads(pickle.dumps(poisoned.value))) == str(poisoned.value)
    with pytest.raises(RequestError, match="row 2 holds a lone surrogate") as refused:
        embed({"text": [None, "ok", "\ud800"]})
    assert refused.value.index == 2
    with pytest.raises(TypeError, match="row 2 must be a string, not int"):
        embed({"text": [None, None, 5]})
    nulls = EmbedBatch(fragile, on_error="null")({"text": [None, "ok", 5, "bad"]})["embedding"]
    assert [vector is None for vector in nulls] == [True, False, True, True]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_a_string_of_arrow_that_is_not_utf8_is_named_by_its_row(
    kind: pa.DataType, is_dictionary: bool, fragile: ClientOptions
) -> None:
    column = pa.array([b"ok", None, b"\xff\xfe"], _BYTES[kind]).view(kind)
    batch = pa.table({"text": pa.DictionaryArray.from_arrays([0, 1, 2], column) if is_dictionary else column})
    with pytest.raises(TypeError, match="row 2 must be a string, not bytes"):
        EmbedBatch(fragile)(batch)
    found = EmbedBatch(fragile, on_error="null")(batch)["embedding"].to_pylist()
    assert [vector is None for vector in found] == [False, True, True]


_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def test_prompts_and_dimensions_are_those_of_the_client(worker: EmbedClient) -> None:
    found = batch(input_type="query", dimensions=4, column="q", output="v")({"q": ["a river"]})
    np.testing.assert_allclose(found["v"], worker.embed_query("a river", dimensions=4), atol=2e-6)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(TypeError, match="of the type int is not known"):
        batch()(5)
    with pytest.raises(ValueError, match="on_error"):
        EmbedBatch(on_error="ignore")  # type: ignore[arg-type]
