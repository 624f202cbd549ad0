"""The figures of the pages are those of the results; what is compared is the same work."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.benchmarks import report
from tests.benchmarks.compare import fitted, quartiles
from tests.benchmarks.peers.plain import cut
from tests.benchmarks.peers.roster import ROSTER


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path) -> None:
    text = page.read_text("utf-8")
    assert report.rewritten(text) == text, "python -m tests.benchmarks.report writes them anew"


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    page = "before\n<!-- benchmark: short all-MiniLM-L6-v2.json -->\nold\n<!-- end of benchmark -->\nafter\n"
    if not report.DEFAULT.exists():
        pytest.skip("no results yet")
    written = report.rewritten(page)
    assert "old" not in written
    assert written.startswith("before\n<!-- benchmark: short")
    assert written.endswith("<!-- end of benchmark -->\nafter\n")
    assert report.rewritten(written) == written


def test_the_picture_is_that_of_the_results() -> None:
    if not report.DEFAULT.exists():
        pytest.skip("no results yet")
    assert report.PICTURE.read_text("utf-8") == report.picture(report.read(report.DEFAULT))


def test_every_key_and_name_of_the_roster_is_there_once() -> None:
    assert len({entry.key for entry in ROSTER}) == len({entry.name for entry in ROSTER}) == len(ROSTER)


def test_a_text_is_cut_so_that_all_of_it_is_read() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.enable_truncation(8)
    assert fitted("a a a a a a", tokenizer) == "a a a a a a"
    shorter = fitted("a " * 30, tokenizer)
    assert 0 < len(shorter.split()) <= 6
    assert not tokenizer.encode(shorter).overflowing


def test_a_direct_call_gets_batches_of_at_most_so_many_tokens_with_every_row_once() -> None:
    lengths = [3, 200, 7, 7, 90, 256, 600, 1]
    batches = cut(lengths, 512)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= 512


def test_quartiles_of_one_value_are_that_value() -> None:
    assert json.dumps(quartiles([1.0], 1)) == '{"median": 1.0, "q1": 1.0, "q3": 1.0}'


def test_contestants_for_cuda_are_left_out_with_a_reason_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    of_cuda = [entry for entry in ROSTER if entry.is_cuda]
    model = Path(__file__).resolve().parents[2] / "models" / "all-MiniLM-L6-v2"
    for providers, is_there in ((["CPUExecutionProvider"], False), (["CUDAExecutionProvider"], True)):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda found=providers: found)
        told = [entry.why_not(Path(), model, frozenset()) for entry in of_cuda]
        assert [why is None for why in told] == [is_there] * 2
