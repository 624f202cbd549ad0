"""Loaded models by name: load, unload, and who waits for them.

Nothing heavy is imported here: the loader's own thread does that, so that the worker answers `ping` from the start.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from embed_worker.config import ModelOptions
from embed_worker.errors import (
    ConfigError,
    ModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    brief,
    is_shortage,
    reason_of,
    without_frames,
)
from embed_worker.model_files.search import as_listed, find_by_name, find_model, model_name, names_in, short_name
from embed_worker.model_files.suggestions import meant_model

if TYPE_CHECKING:
    from embed_worker.inference.engine import LoadedModel

_log = logging.getLogger(__name__)

# Loads one folder, and says now and then what it does.
Loader: TypeAlias = Callable[[Path, ModelOptions, Callable[[str], None]], "LoadedModel"]

_uids = itertools.count(1)


@dataclass(eq=False, slots=True)
class ModelEntry:
    """A model from the moment its loading was asked for. Guarded by the store's lock.

    Attributes:
        lock: The store's.
        uid: Never used again, so that a reloaded model is another one to the scheduler.
        step: What is being done to load it.
        model: Set once it is ready.
        error: Set once loading has failed.
        users: Requests that still need the model.
        when_known: Called once it is ready or has failed.
    """

    name: str
    lock: threading.Lock
    uid: int = field(default_factory=lambda: next(_uids))
    step: str = "looking for its folder"
    model: LoadedModel | None = None
    error: Exception | None = None
    users: int = 0
    when_known: list[Callable[[ModelEntry], None]] = field(default_factory=list)
    when_unused: Callable[[], None] | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is ready or has failed."""
        return self.model is not None or self.error is not None

    def release(self) -> None:
        """Undo one `acquire`."""
        with self.lock:
            self.users -= 1
            unload = self.when_unused if self.users == 0 else None
        if unload is not None:
            unload()


class ModelStore:
    """The models of one worker. Callbacks run with no lock held, on the thread that brings the news."""

    def __init__(self, load: Loader, folders: Sequence[Path]) -> None:
        """Start empty.

        Args:
            load: Loads one folder.
            folders: Where requests' names are looked for.
        """
        self._load = load
        self._folders = folders
        self._lock = threading.Lock()
        self._entries: dict[str, ModelEntry] = {}
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._default_name: str | None = None
        # What the command line said of a model holds for as long as the worker lives, also after an unloading.
        self._stated: dict[str, ModelOptions] = {}
        self._loading: tuple[ModelEntry, float] | None = None  # and since when
        self._thread: threading.Thread | None = None
        self._on_death: Callable[[], None] = lambda: None

    def start(self, on_death: Callable[[], None]) -> None:
        """Start the thread that loads; `on_death` is called should it ever end by itself."""
        self._on_death = on_death
        self._start_thread()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def open(self, options: ModelOptions, when_known: Callable[[ModelEntry], None]) -> ModelEntry:
        """Load what `--model` names; the first one opened is the default. One that is nowhere fails at once."""
        name = self._name_of(options.name_or_path)
        missing: ModelNotFoundError | None = None
        try:
            find_model(options.name_or_path, self._folders)
        except ModelNotFoundError as error:
            missing = error
        with self._lock:
            if missing is None:
                find = functools.partial(find_model, options.name_or_path, self._folders)
                entry = self._begin(name, find, options, when_known)
            else:
                entry = self._entries[name] = ModelEntry(name, self._lock, when_known=[when_known])
            self._stated[name] = options
            if self._default_name is None:
                self._default_name = name
        if missing is not None:
            _log.error("model not loaded name=%s reason=%s", name, missing)
            self._tell(entry, None, missing)
        return entry

    def load(self, name: str, when_known: Callable[[ModelEntry], None]) -> None:
        """Load a model that a request names, or find it loaded or being loaded.

        Raises:
            ModelNotFoundError: Not a name, or in no models folder.
        """
        wanted = short_name(name)
        with self._lock:
            entry = self._entries.get(wanted)
            if entry is None or entry.error is not None:
                folder = self._folder_of(name, wanted)
                wanted = model_name(folder)  # another spelling may mean the same folder
                entry = self._entries.get(wanted)
            if entry is None or entry.error is not None:
                options = self._stated.get(wanted) or ModelOptions(name_or_path=wanted)
                self._begin(wanted, lambda: folder, options, when_known)
                return
        self.when_known(entry, when_known)

    def _begin(
        self, name: str, find: Callable[[], Path], options: ModelOptions, when_known: Callable[[ModelEntry], None]
    ) -> ModelEntry:
        entry = self._entries[name] = ModelEntry(name, self._lock, when_known=[when_known])
        self._tasks.put(functools.partial(self._load_entry, entry, find, options))
        return entry

    def _folder_of(self, name: str, wanted: str) -> Path:
        stated = self._stated.get(wanted)
        return find_by_name(name, self._folders) if stated is None else find_model(stated.name_or_path, self._folders)

    def find(self, name: str | None) -> ModelEntry:
        """Return the model that a request means, loaded or being loaded; the default model also when it has failed.

        Raises:
            ModelNotFoundError: It is not.
        """
        with self._lock:
            return self._find(name)

    def _find(self, name: str | None) -> ModelEntry:
        wanted = self._default_name if name is None else short_name(name)
        if wanted is not None and wanted not in self._entries:
            wanted = self._name_of(wanted)
        entry = self._entries.get(wanted) if wanted is not None else None
        if entry is None or (entry.error is not None and wanted != self._default_name):
            raise ModelNotFoundError(f"the model {wanted!r} is not loaded{self._advice(wanted or '')}")
        return entry

    def _name_of(self, name_or_path: str) -> str:
        """Return the name of the folder that is meant; where there is none, the one that it would have."""
        try:
            return model_name(find_model(name_or_path, self._folders))
        except (ModelNotFoundError, OSError):
            return model_name(as_listed(Path(os.path.expanduser(name_or_path))))

    def _advice(self, name: str) -> str:
        """Return how it could be had, or what was probably meant by its name; the lock is held."""
        if self._is_found(name):
            return ": `load_model` loads it"
        loaded = [entry.name for entry in self._entries.values() if entry.model is not None]
        here = [*loaded, *names_in(self._folders)]
        meant = meant_model(name, here)
        if meant not in here:
            return ""
        return f"; did you mean `{meant}`{'' if meant in loaded else ', which `load_model` loads'}?"

    def _is_found(self, name: str) -> bool:
        try:
            find_by_name(name, self._folders)
        except ModelNotFoundError:
            return False
        return True

    def acquire(self, name: str | None) -> ModelEntry:
        """Return the model that a request means and keep it from being unloaded until its `release`.

        Raises:
            ModelNotFoundError: It is not loaded.
        """
        with self._lock:
            entry = self._find(name)
            if entry.when_unused is not None:
                raise ModelNotFoundError(f"the model {entry.name!r} is being unloaded")
            entry.users += 1
        return entry

    def unload(self, name: str, when_done: Callable[[], object]) -> None:
        """Let go of a model once nothing uses it; new requests do not find it from now on.

        Raises:
            ModelNotFoundError: It is not loaded.
        """
        with self._lock:
            entry = self._find(name)
            if entry.model is None:
                raise ModelNotFoundError(f"the model {entry.name!r} is not loaded")
            del self._entries[entry.name]
            entry.users += 1
            entry.when_unused = functools.partial(self._let_go, entry, when_done)
        entry.release()

    def _let_go(self, entry: ModelEntry, when_done: Callable[[], object]) -> None:
        model, entry.model = entry.model, None
        if model is not None:
            model.close()
        _log.info("model unloaded name=%s", entry.name)
        when_done()

    def when_known(self, entry: ModelEntry, callback: Callable[[ModelEntry], None]) -> None:
        """Call back once the model is ready or has failed: now, if it is."""
        with self._lock:
            is_known = entry.is_known
            if not is_known:
                entry.when_known.append(callback)
        if is_known:
            callback(entry)

    def names(self) -> list[str]:
        """Return the models that are ready, in the order of loading."""
        with self._lock:
            return [name for name, entry in self._entries.items() if entry.model is not None]

    def close(self) -> None:
        """Close every model: the process is about to end."""
        with self._lock:
            models = [entry.model for entry in self._entries.values() if entry.model is not None]
        for model in models:
            model.close()

    # Loading

    def loading_for_longer_than(self, limit_s: float) -> ModelEntry | None:
        """Return the model whose loading has taken longer, where one has."""
        loading = self._loading
        return loading[0] if loading is not None and time.monotonic() - loading[1] > limit_s else None

    def give_up(self, entry: ModelEntry, limit_s: float) -> None:
        """Let a model fail that is being loaded for too long; its thread cannot be ended, only replaced."""
        if self._end_loading(entry):
            self._start_thread()
            self._tell(entry, None, too_slow(entry, limit_s))

    def _load_entry(self, entry: ModelEntry, find: Callable[[], Path], options: ModelOptions) -> None:
        model: LoadedModel | None = None
        error: Exception | None = None
        self._loading = (entry, time.monotonic())
        try:
            model = self._load(find(), options, functools.partial(setattr, entry, "step"))
        except (ModelError, ConfigError, OutOfMemoryError) as refused:
            _log.error("model not loaded name=%s reason=%s", entry.name, refused)
            error = without_frames(refused)
        except BaseException as bug:  # noqa: BLE001 - the thread must survive, and who waits must hear
            _log.exception("model not loaded name=%s", entry.name)
            if is_shortage(bug):
                error = OutOfMemoryError(f"no memory or no threads to load the model {entry.name!r}: {brief(bug)}")
            else:
                error = ModelError(f"the model {entry.name[:80]!a} could not be loaded: {reason_of(bug)}")
        self._end_loading(entry)
        self._tell(entry, model, error)

    def _end_loading(self, entry: ModelEntry) -> bool:
        """Watch the loading of a model no longer; False where another one is watched, or none."""
        with self._lock:  # a thread that was given up may end at any time, and must not hide what another one loads
            is_watched = self._loading is not None and self._loading[0] is entry
            if is_watched:
                self._loading = None
        return is_watched

    def _tell(self, entry: ModelEntry, model: LoadedModel | None, error: Exception | None) -> None:
        with self._lock:
            is_late = entry.is_known
            if not is_late:
                entry.model, entry.error = model, error
            waiting, entry.when_known = entry.when_known, []
            entry.users += 1  # who hears of it first may unload it: not before all have heard
        for callback in waiting:
            try:
                callback(entry)
            except BaseException:  # noqa: BLE001 - the others must hear, and the thread must survive
                _log.exception("a callback failed name=%s", entry.name)
        if model is not None:
            if is_late:
                model.close()
            else:
                model.use_all_cores()
        entry.release()

    def _run(self) -> None:
        try:
            while self._thread is threading.current_thread():
                self._tasks.get()()
        except BaseException:  # noqa: BLE001 - a worker that lacks a thread must not pretend to live
            _log.exception("the loader ended")
            self._on_death()


def too_slow(entry: ModelEntry, limit_s: float) -> ModelError:
    """Return what is said of a model whose loading takes too long."""
    return ModelError(f"the model {entry.name!r} was not ready within {limit_s:g} s: {entry.step}")
