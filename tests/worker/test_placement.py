"""Where the threads of a run are put: the decision with a fake system, and a real session."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from embed_worker.config import RuntimeOptions
from embed_worker.inference import ort
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.placement import own_cores, run_on
from embed_worker.inference.token_batch import TokenBatch
from tests.worker.harness import TINY_MODEL
from tests.worker.test_tokenizer import plan_for

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are put on cores on Linux alone")


class FakeSystem:
    """An affinity mask, and what is done to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
        self.cores = cores
        self.is_forbidden = False
        self.masks: list[set[int]] = []
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(self.cores), raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self._set, raising=False)
        monkeypatch.setattr(sys, "platform", "linux")

    def _set(self, _: int, cores: tuple[int, ...]) -> None:
        if self.is_forbidden:
            raise PermissionError
        self.cores = set(cores)
        self.masks.append(self.cores)


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [
        ({0, 1}, 2, (0, 1)),
        ({7, 3, 5}, 3, (3, 5, 7)),  # what a container may have
        ({0, 1, 2, 3}, 2, ()),  # the kernel finds a free one
        ({0, 1}, 3, ()),  # more threads were asked for than there are cores
        ({4}, 1, ()),
    ],
)
def test_each_thread_has_a_core_where_there_are_no_more_cores_than_threads(
    cores: set[int], threads: int, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSystem(monkeypatch, cores)
    assert own_cores(threads) == expected


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_place_threads_themselves(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSystem(monkeypatch, {0, 1})
    monkeypatch.setattr(sys, "platform", system)
    assert own_cores(2) == ()
    assert run_on((0, 1), lambda: "ran") == "ran"
    assert fake.masks == []


def test_the_caller_is_on_its_core_during_the_run_and_free_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSystem(monkeypatch, {3, 5})
    during = []

    def fail() -> None:
        during.append(fake.cores)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_on((3, 5), fail)
    assert during == [{3}]
    assert fake.masks == [{3}, {3, 5}]


def test_a_mask_that_somebody_else_has_changed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSystem(monkeypatch, {6, 7})
    assert run_on((3, 5), lambda: fake.cores) == {6, 7}
    assert fake.masks == []


def test_a_system_that_forbids_it_is_no_reason_not_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSystem(monkeypatch, {3, 5})
    fake.is_forbidden = True
    assert run_on((3, 5), lambda: "ran") == "ran"
    assert fake.cores == {3, 5}


@linux
def test_the_threads_of_a_session_stay_on_the_cores_that_were_named_and_the_callers_goes_back() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    masks: dict[str, list[set[int]]] = {}

    def run() -> None:
        before = set(os.listdir("/proc/self/task"))
        session = ort.open_session(TINY_MODEL / "onnx" / "model.onnx", ort.session_options(2, cores[1:2]))
        own = set(os.listdir("/proc/self/task")) - before
        masks["helpers"] = [os.sched_getaffinity(int(thread)) for thread in own]
        one = np.ones((1, 4), np.int64)
        feeds = {node.name: one for node in session.get_inputs()}
        masks["during"] = [run_on(cores, lambda: (session.run(None, feeds), os.sched_getaffinity(0))[1])]
        masks["after"] = [os.sched_getaffinity(0)]

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert {cores[1]} in masks["helpers"]
    assert masks["during"] == [{cores[0]}]
    assert masks["after"] == [set(cores)]


@linux
def test_a_backend_places_the_threads_of_a_text_alone_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if not 2 <= len(cores) <= 8:
        pytest.skip("more threads than a text alone has, or one core")
    helpers: list[tuple[int, ...]] = []
    options = ort.session_options

    def noted(threads: int = 1, cores: Sequence[int] = ()) -> object:
        helpers.append(tuple(cores))
        return options(threads, cores)

    monkeypatch.setattr(ort, "session_options", noted)
    backend = OnnxBackend.load(plan_for("bert-mean"), RuntimeOptions(), threads=len(cores))
    backend.use_all_cores()
    assert helpers == [(), tuple(cores[1:])]
    masks, run = [], backend._run

    def watched(session: object, batch: TokenBatch) -> object:
        masks.append(os.sched_getaffinity(0))
        return run(session, batch)

    monkeypatch.setattr(backend, "_run", watched)
    one = np.ones((1, 4), np.int64)
    for exclusive in (True, False):
        backend.embed(TokenBatch(one, one), exclusive=exclusive)
    assert masks == [{cores[0]}, set(cores)]
