"""Graphs of several architectures as other exporters would have written them, against sentence-transformers.

Each is an export of a folder whose vectors sentence-transformers has given (tests/exported, tests/models), remade:
without a mask, with positions as an input, with a sentence vector of another pooling beside the token vectors.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from embed_worker.inference.engine import LoadedModel
from embed_worker.inference.pooling import Float32
from tests.reference.expected import read_expected
from tests.worker.export_fixtures import publish, published_tensors, run
from tests.worker.harness import cosines
from tests.worker.test_export_layouts import EXPORTED
from tests.worker.test_graphs import load
from tests.worker.test_model_folder import EXPECTED, MODELS

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a copy of a folder with our graph, by the folder's name."""
    made: dict[str, Path] = {}

    def export_of(name: str) -> Path:
        if name not in made:
            source = EXPORTED / name
            if not source.is_dir():
                source = publish(name, tmp_path_factory.mktemp("published") / name, published_tensors(name))
            made[name] = tmp_path_factory.mktemp("exported") / name
            assert run(source, "--output", made[name], "--weights", "float32") == 0
        return made[name]

    return export_of


def right_of(name: str) -> tuple[Sequence[str], Float32]:
    """Return texts and what sentence-transformers makes of them, each alone."""
    if (EXPORTED / f"{name}.expected.json").is_file():
        (item,) = read_expected(EXPORTED / f"{name}.expected.json")
        return item.texts, item.vectors
    case = next(case for case in EXPECTED[name]["cases"] if case["name"] == "mixed-lengths")
    return case["texts"], np.array(case["embeddings"], np.float32)


def assert_right(model: LoadedModel, name: str) -> None:
    texts, right = right_of(name)
    rows = model.engine.tokenizer.encode(texts, "")
    for groups in ([rows], [[row] for row in rows]):
        raw = np.concatenate([model.engine.embed(group, exclusive=False) for group in groups])
        assert cosines(model.finish(raw, None, None), right).min() > 0.99999


def remade(folder: Path, target: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    """Copy a folder with another graph, which its manifest does not list."""
    shutil.copytree(folder, target)
    (target / "manifest.json").unlink()
    model = onnx.load(target / "onnx/model.onnx")
    change(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, target / "onnx/model.onnx")
    return target


def take_out_input(graph: onnx.GraphProto, name: str) -> None:
    graph.input.remove(next(value for value in graph.input if value.name == name))


def without_mask(graph: onnx.GraphProto) -> None:
    """Let every token of the padding count, as a graph does that is exported with its ids alone."""
    take_out_input(graph, "attention_mask")
    ones = helper.make_tensor("ones", INT64, [1], [1])
    shape = helper.make_node("Shape", ["input_ids"], ["mask.shape"])
    graph.node.insert(0, shape)
    graph.node.insert(1, helper.make_node("ConstantOfShape", ["mask.shape"], ["attention_mask"], value=ones))


def with_position_ids(graph: onnx.GraphProto) -> None:
    """Take positions from outside instead of counting the tokens."""
    graph.node.remove(next(node for node in graph.node if "position_ids" in node.output))
    axes = ["batch_size", "sequence_length"]
    graph.input.append(helper.make_tensor_value_info("position_ids", INT64, axes))


def with_first_token(graph: onnx.GraphProto) -> None:
    """Add a sentence vector that is the first token's, whatever the folder says."""
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first token"))
    gathered = helper.make_node("Gather", ["last_hidden_state", "first token"], ["sentence_embedding"], axis=1)
    graph.node.append(gathered)
    graph.output.append(helper.make_tensor_value_info("sentence_embedding", FLOAT, ["batch_size", None]))


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "xlmr-unigram", "e5-prefix"])
def test_without_a_mask_each_text_runs_by_itself(tmp_path: Path, exports: Callable[[str], Path], name: str) -> None:
    model = load(remade(exports(name), tmp_path / name, without_mask))
    assert model.engine.one_by_one == "neighbours would change its vector"
    assert model.engine.is_batch_invariant
    assert_right(model, name)


@pytest.mark.parametrize("name", ["mpnet", "xlmr-unigram"])
def test_positions_from_outside_begin_where_the_architectures_do(
    tmp_path: Path, exports: Callable[[str], Path], name: str
) -> None:
    model = load(remade(exports(name), tmp_path / name, with_position_ids))
    assert (model.plan.padding_position, model.engine.one_by_one) == (1, None)
    assert_right(model, name)


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "xlmr-unigram", "dense-module"])
def test_token_vectors_come_before_a_sentence_vector_of_another_pooling(
    tmp_path: Path, exports: Callable[[str], Path], name: str
) -> None:
    model = load(remade(exports(name), tmp_path / name, with_first_token))
    assert not model.engine.backend.is_end_to_end
    assert_right(model, name)


def test_absolute_positions_take_padding_on_the_right_alone(tmp_path: Path, exports: Callable[[str], Path]) -> None:
    for name, is_moved in (("e5-prefix", True), ("dense-module", True), ("mpnet", False), ("modernbert", False)):
        folder = remade(exports(name), tmp_path / name, lambda graph: None)
        config = folder / "tokenizer_config.json"
        config.write_text(config.read_text("utf-8").rstrip().removesuffix("}") + ', "padding_side": "left"}', "utf-8")
        model = load(folder)
        assert model.plan.pad_left
        assert (model.engine.pad_left, model.engine.one_by_one) == (not is_moved, None)
        assert_right(model, name)


def test_every_folder_here_has_vectors_of_sentence_transformers() -> None:
    for name in ("mpnet", "modernbert", "xlmr-unigram", "e5-prefix", "dense-module"):
        texts, right = right_of(name)
        assert len(texts) == len(right) >= 5
    assert MODELS.is_dir()
