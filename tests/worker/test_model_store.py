"""Loaded models by name: who waits, who uses, and when a model may go."""

from __future__ import annotations

import gc
import os
import queue
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from embed_worker.config import ModelOptions
from embed_worker.errors import ConfigError, ModelError, ModelNotFoundError, OutOfMemoryError
from embed_worker.inference.engine import LoadedModel
from embed_worker.serving.model_store import ModelEntry, ModelStore
from tests.worker.fakes import WAIT_S, FakeLoader, models_folder


class Store:
    """A store with a fake loader, and the entrys that were settled."""

    def __init__(self, root: Path) -> None:
        self.loader = FakeLoader()
        self.store = ModelStore(self.loader, [models_folder(root)])
        self.settled: queue.SimpleQueue[ModelEntry] = queue.SimpleQueue()
        self.store.start(lambda: None)

    def open(self, name: str) -> ModelEntry:
        self.store.open(ModelOptions(name_or_path=name), self.settled.put)
        return self.settled.get(timeout=WAIT_S)

    def load(self, name: str) -> ModelEntry:
        self.store.load(name, self.settled.put)
        return self.settled.get(timeout=WAIT_S)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.loader.gate.set()


def test_the_first_model_opened_is_the_default(store: Store) -> None:
    first, second = store.open("first"), store.open("second")
    assert store.store.find(None) is first is store.store.find("org/first")
    assert store.store.find("second") is second
    assert store.store.names() == ["first", "second"]
    assert first.uid != second.uid


def test_a_model_may_be_opened_by_its_path(store: Store, tmp_path: Path) -> None:
    entry = store.open(str(tmp_path / "first"))
    assert (entry.name, entry.error) == ("first", None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelError("damaged"), ModelError),
        (ConfigError("no such provider"), ConfigError),
        (OutOfMemoryError("none left"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("a bug"), ModelError),
        (KeyboardInterrupt(), ModelError),  # as a panic in Rust: no Exception
    ],
)
def test_who_waits_hears_why_a_model_failed_and_the_loader_goes_on(
    store: Store, error: BaseException, kind: type[Exception]
) -> None:
    store.loader.error = error
    entry = store.open("first")
    assert isinstance(entry.error, kind)
    assert entry.model is None
    store.loader.error = None
    assert store.load("first").model is not None


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "~nobody-of-this-name/model"])
def test_a_model_that_is_nowhere_settles_as_not_found(store: Store, name: str) -> None:
    assert isinstance(store.open(name).error, ModelNotFoundError)


def test_a_model_is_loaded_once_for_all_who_ask(store: Store) -> None:
    store.loader.gate.clear()
    for _ in range(3):
        store.store.load("second", store.settled.put)
    store.loader.gate.set()
    entrys = {store.settled.get(timeout=WAIT_S) for _ in range(3)}
    assert len(entrys) == 1
    assert store.load("org/second") in entrys
    assert store.loader.entered.get(timeout=WAIT_S) == "second"
    assert store.loader.entered.empty()


@pytest.mark.parametrize("name", ["nowhere", "../first", "a/b/c", "", ".hidden", "-x", "x" * 300, "x" * 5000, "a\0b"])
def test_a_name_is_never_a_path_and_never_another_error(store: Store, name: str) -> None:
    store.open("first")
    asks: tuple[Callable[[str], object], ...] = (store.load, store.store.find, store.store.acquire)
    for ask in asks:
        with pytest.raises(ModelNotFoundError) as refused:
            ask(name)
        assert len(str(refused.value)) < 500


def test_what_is_not_loaded_says_whether_it_could_be(store: Store, tmp_path: Path) -> None:
    store.open("first")
    (tmp_path / "second" / "config.json").touch()
    with pytest.raises(ModelNotFoundError, match="`load_model` loads it"):
        store.store.find("second")
    with pytest.raises(ModelNotFoundError, match=r"'nowhere' is not loaded$"):
        store.store.find("nowhere")
    for wanted, meant in (("First", "first"), ("sekond", "second")):
        if (tmp_path / wanted).exists():  # the file system ignores case: it is the same folder
            assert store.store.find(wanted).name == meant
            continue
        with pytest.raises(ModelNotFoundError, match=rf"; did you mean `{meant}`"):
            store.store.find(wanted)


def test_what_failed_keeps_nothing_of_what_it_had_read(tmp_path: Path) -> None:
    """Memory, and mapped files, which nobody may remove on Windows."""
    read: list[weakref.ref[object]] = []

    def load(folder: Path, *_: object) -> LoadedModel:
        content = np.zeros(8)
        read.append(weakref.ref(content))
        try:
            raise ValueError("its header is not JSON")
        except ValueError as error:
            raise ModelError("damaged") from error

    store = ModelStore(load, [models_folder(tmp_path)])
    store.start(lambda: None)
    settled: queue.SimpleQueue[ModelEntry] = queue.SimpleQueue()
    gc.disable()
    try:
        store.open(ModelOptions(name_or_path="first"), settled.put)
        assert str(settled.get(timeout=WAIT_S).error) == "damaged"
        assert read[0]() is None
    finally:
        gc.enable()


def test_before_anything_is_opened_there_is_no_default(store: Store) -> None:
    with pytest.raises(ModelNotFoundError):
        store.store.find(None)


def test_a_model_in_use_goes_when_its_last_user_is_done(store: Store) -> None:
    entry = store.open("first")
    done: list[str] = []
    users = [store.store.acquire(None) for _ in range(2)]
    store.store.unload("first", lambda: done.append("gone"))
    for ask in (lambda: store.store.find("first"), lambda: store.store.unload("first", lambda: None)):
        with pytest.raises(ModelNotFoundError):
            ask()
    users[0].release()
    assert (done, entry.model is None) == ([], False)
    users[1].release()
    assert (done, entry.model) == (["gone"], None)
    assert store.loader.models["first"].is_closed
    assert store.load("first") is not entry


def test_an_unused_model_goes_at_once_and_a_loading_one_cannot(store: Store) -> None:
    store.open("first")
    done: list[str] = []
    store.store.unload("first", lambda: done.append("gone"))
    assert done == ["gone"]
    store.loader.gate.clear()
    store.store.load("second", store.settled.put)
    with pytest.raises(ModelNotFoundError):
        store.store.unload("second", lambda: None)
    store.loader.gate.set()
    assert store.settled.get(timeout=WAIT_S).error is None


def test_a_model_that_is_going_cannot_be_acquired_any_more(store: Store) -> None:
    entry = store.open("first")
    entry.when_unused = lambda: None  # what another thread has just decided
    with pytest.raises(ModelNotFoundError, match="being unloaded"):
        store.store.acquire("first")


def test_a_loading_is_given_up_once_and_its_end_hides_no_other_one(store: Store) -> None:
    slow, fast = FakeLoader(), FakeLoader()
    slow.gate.clear()
    fast.gate.clear()
    loaders = iter((slow, fast))
    watched = ModelStore(lambda *loading: next(loaders)(*loading), store.store._folders)
    watched.start(lambda: None)
    abandoned = watched._thread
    assert abandoned is not None
    watched.load("first", store.settled.put)
    assert slow.entered.get(timeout=WAIT_S) == "first"
    entry = watched.loading_for_longer_than(-1)
    assert entry is not None
    watched.give_up(entry, 1)
    assert isinstance(store.settled.get(timeout=WAIT_S).error, ModelError)
    assert watched.loading_for_longer_than(-1) is None  # or it would be given up again, at each look
    watched.load("second", store.settled.put)
    assert fast.entered.get(timeout=WAIT_S) == "second"
    slow.gate.set()
    abandoned.join(WAIT_S)
    assert not abandoned.is_alive()
    second = watched.loading_for_longer_than(-1)
    assert second is not None
    assert second.name == "second"
    watched.give_up(entry, 1)  # which has ended by now
    assert watched.loading_for_longer_than(-1) is second
    fast.gate.set()
    assert store.settled.get(timeout=WAIT_S) is second


def test_models_are_closed_when_the_process_ends(store: Store) -> None:
    store.open("first")
    store.open("bad")
    store.store.close()
    assert store.loader.models["first"].is_closed


def test_settled_models_call_back_at_once(store: Store) -> None:
    entry = store.open("first")
    called: list[ModelEntry] = []
    store.store.when_known(entry, called.append)
    assert called == [entry]


def test_everybody_who_waited_sees_the_model_even_when_the_first_of_them_unloads_it(store: Store) -> None:
    # A host that hears that its model is loaded may unload it while others are still being told.
    store.loader.gate.clear()
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def unload(entry: ModelEntry) -> None:
        store.store.unload("second", lambda: None)

    store.store.load("second", unload)
    store.store.load("second", lambda entry: seen.put(entry.model is not None or entry.error is not None))
    store.loader.gate.set()
    assert seen.get(timeout=WAIT_S)
    assert store.load("second").model is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_fails_does_not_end_the_loader(store: Store) -> None:
    def fail(entry: ModelEntry) -> None:
        raise RuntimeError("a bug")

    store.loader.gate.clear()
    store.store.load("second", fail)
    store.store.load("second", store.settled.put)
    store.loader.gate.set()
    assert store.settled.get(timeout=WAIT_S).model is not None
    assert store.load("third").model is not None


def test_one_folder_is_one_model_under_every_spelling_that_opens_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on most of Windows and macOS, where `FIRST` opens the folder `first`."""
    if not (tmp_path / "FIRST").exists():
        lstat, isdir = os.lstat, os.path.isdir
        monkeypatch.setattr(os, "lstat", lambda path: lstat(os.fspath(path).replace("FIRST", "first")))
        monkeypatch.setattr(os.path, "isdir", lambda path: isdir(os.fspath(path).replace("FIRST", "first")))
    slot = store.load("FIRST")
    assert slot.name == "first"
    assert store.load("first") is store.load("FIRST") is store.store.find("FIRST") is slot
    assert store.store.names() == ["first"]
    store.store.unload("FIRST", lambda: None)
    assert store.store.names() == []
