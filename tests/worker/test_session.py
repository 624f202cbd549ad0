"""The choice of a provider, what a graph must look like, and what its failures mean."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from embed_worker.config import RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError
from embed_worker.inference import graph_io as graph_inputs
from embed_worker.inference import onnx_backend as session
from embed_worker.inference.onnx_backend import OnnxBackend, choose_provider
from embed_worker.inference.ort import is_out_of_memory
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.model_files.onnx_outline import HIDDEN_OUTPUTS, SENTENCE_OUTPUT
from embed_worker.model_files.plan import DensePlan, PoolingSource
from tests.worker.test_model_folder import EXPECTED, MODELS
from tests.worker.test_tokenizer import plan_for

CPU = "CPUExecutionProvider"
AVAILABLE = ["CUDAExecutionProvider", "CoreMLExecutionProvider", CPU]


@pytest.mark.parametrize(
    ("asked", "providers"),
    [
        ("auto", [CPU]),
        ("cpu", [CPU]),
        ("CPUExecutionProvider", [CPU]),
        ("cuda", ["CUDAExecutionProvider", CPU]),
        ("CoreML", ["CoreMLExecutionProvider", CPU]),
        ("coremlexecutionprovider", ["CoreMLExecutionProvider", CPU]),
    ],
)
def test_a_provider_is_known_by_its_short_or_long_name(asked: str, providers: list[str]) -> None:
    chosen, report = choose_provider(asked, AVAILABLE)
    assert chosen == providers
    assert (report.asked, report.chosen) == (asked, providers[0])
    assert report.reason


def test_a_provider_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no provider 'tpu'; it has: coreml, cpu, cuda"):
        choose_provider("tpu", AVAILABLE)
    with pytest.raises(ConfigError, match=r"no provider 'cuda'; it has: cpu; docs/installing\.md tells how"):
        choose_provider("cuda", [CPU])


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("BFCArena: Failed to allocate memory for requested buffer"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("bad allocation"), True),
        (RuntimeError("invalid indices"), False),
    ],
)
def test_a_failed_allocation_is_told_from_other_failures(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def load(graph: Path, threads: int = 1, **changes: Any) -> OnnxBackend:
    plan = replace(plan_for("bert-mean"), name="m", graph=graph, pooling_dimension=None, **changes)
    return OnnxBackend.load(plan, RuntimeOptions(), threads=threads)


@pytest.mark.parametrize("content", [None, b"", b"not a graph", b"\x08\x07"])
def test_a_file_that_is_no_graph_is_refused_with_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    graph = tmp_path / "model.onnx"
    if content is not None:
        graph.write_bytes(content)
    with pytest.raises(ModelError, match=r"'model\.onnx' that (cannot be used|is empty|is cut off)") as refused:
        load(graph)
    assert "\n" not in str(refused.value)


def test_no_memory_for_a_graph_is_no_fault_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(OutOfMemoryError):
        load(MODELS / "bert-mean/onnx/model.onnx")


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_family_runs_alone_and_in_lanes(name: str, threads: int) -> None:
    backend = load(MODELS / name / "onnx/model.onnx", threads)
    ids = np.array([[2, 5, 3], [2, 3, 0]], np.int64)
    mask = np.array([[1, 1, 1], [1, 1, 0]], np.int64)
    before = backend.embed(TokenBatch(ids, mask), exclusive=True)
    backend.use_all_cores()
    outputs = [backend.embed(TokenBatch(ids, mask), exclusive=exclusive) for exclusive in (True, False)]
    assert not backend.is_end_to_end  # also where there is a sentence vector: the folder's own modules come first
    assert (before.ndim, len(before)) == (2, 2)
    assert {output.dtype for output in (before, *outputs)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(outputs[0], before, atol=1e-5)
    np.testing.assert_allclose(outputs[1], before, atol=1e-5)


def test_a_session_that_cannot_be_widened_serves_on_one_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = load(MODELS / "bert-mean/onnx/model.onnx", 2)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no threads left")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    backend.use_all_cores()
    ids = np.array([[2, 3]], np.int64)
    assert backend.embed(TokenBatch(ids, np.ones_like(ids)), exclusive=True).shape == (1, 32)


def test_a_dimension_other_than_the_folders_is_refused() -> None:
    one = TokenBatch(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    graph = MODELS / "bert-mean/onnx/model.onnx"
    backend = OnnxBackend.load(
        replace(plan_for("bert-mean"), graph=graph, pooling_dimension=5), RuntimeOptions(), threads=1
    )
    with pytest.raises(ModelError, match="pooling configuration says 5"):
        backend.embed(one, exclusive=True)


def test_a_graph_of_a_fixed_shape_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = onnx.load(MODELS / "bert-mean/onnx/model.onnx")
    for tensor in model.graph.input:
        tensor.type.tensor_type.shape.dim[1].dim_value = 128
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="dynamic axes"):
        load(tmp_path / "model.onnx")


def test_a_precision_is_named_in_bits() -> None:
    assert load(MODELS / "bert-mean/onnx/model.onnx").precision == "float32"
    assert load(MODELS / "qwen3-last/onnx/model_fp16.onnx").precision in ("float16", "float32")


def test_an_id_beyond_the_vocabulary_fails_the_batch_and_nothing_else() -> None:
    backend = load(MODELS / "bert-mean/onnx/model.onnx")
    one = np.ones((1, 1), np.int64)
    with pytest.raises(Exception, match="indices element out of data bounds"):
        backend.embed(TokenBatch(one * 10**6, one), exclusive=True)
    assert np.isfinite(backend.embed(TokenBatch(one, one), exclusive=True)).all()


# Graphs as onnxruntime would describe them


def node(name: str, kind: str = "tensor(int64)", shape: tuple[int | str, ...] = ("B", "T")) -> Any:
    return SimpleNamespace(name=name, type=kind, shape=list(shape))


BATCH = TokenBatch(np.array([[0, 7, 8], [9, 7, 8]]), np.array([[0, 1, 1], [1, 1, 1]]))


def feed(described: Any) -> np.ndarray[Any, Any]:
    name, make = graph_inputs.feeder(described, "B", plan_for("bert-mean"))
    assert name == described.name
    return make(BATCH)


@pytest.mark.parametrize("kind", ["tensor(int64)", "tensor(int32)"])
def test_inputs_are_made_in_the_type_that_the_graph_states(kind: str) -> None:
    values = {name: feed(node(name, kind)) for name in graph_inputs.KNOWN_INPUTS}
    assert values["input_ids"].tolist() == BATCH.ids.tolist()
    assert values["attention_mask"].tolist() == BATCH.mask.tolist()
    assert values["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert values["position_ids"].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert {str(value.dtype) for value in values.values()} == {kind[len("tensor(") : -1]}


@pytest.mark.parametrize("kind", ["tensor(float)", "tensor(float16)", "tensor(int64)"])
def test_what_a_decoder_carries_is_empty(kind: str) -> None:
    value = feed(node("past_key_values.0.key", kind, ("B", 2, "past", 16)))
    assert value.shape == (2, 2, 0, 16)


@pytest.mark.parametrize("images", [0, "num_images", None])
def test_what_belongs_to_other_senses_is_empty(images: int | str | None) -> None:
    assert feed(node("image_features", "tensor(float)", (images, 512))).shape == (0, 512)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "described",
    [
        node("input_ids", "tensor(float)"),
        node("attention_mask", "tensor(bool)"),
        node("token_type_ids", "tensor(float)"),
        node("mystery", "tensor(float)", ("B", 4)),
        node("mystery", "tensor(string)", ("B", "T")),
        node("scalar", "tensor(float)", ()),
    ],
)
def test_an_input_that_is_not_known_is_refused(described: Any) -> None:
    with pytest.raises(ModelError, match=described.name):
        graph_inputs.feeder(described, "B", plan_for("bert-mean"))


@pytest.mark.parametrize("kind", ["tensor(float)", "tensor(float16)", "tensor(int32)"])
def test_a_mask_may_be_wanted_in_floats(kind: str) -> None:
    value = feed(node("attention_mask", kind))
    assert value.tolist() == BATCH.mask.tolist()
    assert value.dtype == {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}[kind]


def test_positions_begin_behind_the_paddings_own_where_the_architecture_has_it_so() -> None:
    batch = TokenBatch(np.array([[1, 7, 8, 9], [7, 1, 8, 1]]), np.array([[0, 1, 1, 1], [1, 1, 1, 0]]))
    plan = replace(plan_for("bert-mean"), padding_position=1)
    _, make = graph_inputs.feeder(node("position_ids"), "B", plan)
    # A text that spells out the padding token has no position for it, as in transformers.
    assert make(batch).tolist() == [[1, 2, 3, 4], [2, 1, 3, 1]]


def output_of(*outputs: Any, **changes: Any) -> str:
    return graph_inputs.choose_output(outputs, replace(plan_for("bert-mean"), name="m", **changes)).name


HIDDEN, TOKENS = (node(name, "tensor(float)", ("B", "T", 4)) for name in HIDDEN_OUTPUTS)
SENTENCE, POOLER = (node(name, "tensor(float)", ("B", 4)) for name in (SENTENCE_OUTPUT, "pooler_output"))


def test_the_output_is_the_hidden_state_or_its_other_name() -> None:
    assert output_of(POOLER, HIDDEN) == "last_hidden_state"
    assert output_of(TOKENS) == "token_embeddings"
    assert output_of(SENTENCE) == "sentence_embedding"
    with pytest.raises(ModelError, match="it has pooler_output"):
        output_of(POOLER)
    with pytest.raises(ModelError, match="has 2 dimensions"):
        output_of(node("last_hidden_state", "tensor(float)", ("B", 4)))


def test_token_vectors_come_first_where_all_that_follows_them_is_at_hand(tmp_path: Path) -> None:
    assert output_of(SENTENCE, TOKENS) == "token_embeddings"
    assert output_of(SENTENCE, TOKENS, pooling_source=PoolingSource.OPTION) == "token_embeddings"
    # A bare folder of the table: the table speaks of the graph's own vector.
    assert output_of(SENTENCE, TOKENS, pooling_source=PoolingSource.TABLE) == "sentence_embedding"
    dense = DensePlan(weights=tmp_path / "model.safetensors", activation="Tanh", use_residual=False)
    assert output_of(SENTENCE, TOKENS, modules=(dense,)) == "sentence_embedding"
    dense.weights.write_bytes(b"")
    assert output_of(SENTENCE, TOKENS, modules=(dense,)) == "token_embeddings"


def test_of_outputs_the_float_one_is_taken_and_integers_alone_are_refused() -> None:
    bytes_of_tokens = node("last_hidden_state", "tensor(uint8)", ("B", "T", 4))
    bytes_of_text = node("sentence_embedding", "tensor(int8)", ("B", 4))
    assert output_of(bytes_of_tokens, TOKENS, bytes_of_text) == "token_embeddings"
    assert output_of(bytes_of_tokens, SENTENCE) == "sentence_embedding"
    with pytest.raises(
        ModelError, match=r"integers alone: last_hidden_state as tensor\(uint8\), sentence_embedding as"
    ):
        output_of(bytes_of_tokens, bytes_of_text)


def test_the_report_says_what_really_runs() -> None:
    _, report = choose_provider("cuda", AVAILABLE)
    fallen_back = session._as_chosen(report, [CPU])
    assert (fallen_back.asked, fallen_back.chosen) == ("cuda", CPU)
    assert "CUDAExecutionProvider" in fallen_back.reason
    assert session._as_chosen(report, ["CUDAExecutionProvider", CPU]) is report
    assert os.linesep not in fallen_back.reason
