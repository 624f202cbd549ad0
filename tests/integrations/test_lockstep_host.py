"""A database's bridge as it is, over `embed-lockstep`: its lines, its model, and workers that die between them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.hosts.lock_step import killed_between
from tests.integrations.neighbours import DOCUMENTS, QUESTIONS

pytestmark = pytest.mark.timeout(200)


def test_every_line_of_a_bridge_is_answered_while_its_workers_are_killed() -> None:
    answers = killed_between("all-MiniLM-L6-v2", [*DOCUMENTS, *QUESTIONS], {})
    assert [answer["status"] for answer in answers] == ["ok"] * 6
    for answer in (answers[2], answers[5]):
        vectors = np.array(answer["embeddings"], np.float32)
        documents, questions = vectors[: len(DOCUMENTS)], vectors[len(DOCUMENTS) :]
        for question, right in zip(questions, QUESTIONS.values(), strict=True):
            cosines = documents @ question
            assert cosines.argmax() == right
            assert cosines[right] > 0.6
            assert np.delete(cosines, right).max() < 0.4
