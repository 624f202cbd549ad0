"""Loaded models by name: load, unload, and who waits for them.

Nothing heavy is imported here: the loader's own thread does that, so that the worker answers `ping` from the start.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embed_worker.config import ModelOptions
from embed_worker.errors import ConfigError, ModelError, ModelNotFoundError, OutOfMemoryError, reason_of
from embed_worker.model_files.search import as_listed, find_by_name, find_model, model_name, short_name

if TYPE_CHECKING:
    from embed_worker.inference.engine import LoadedModel

_log = logging.getLogger(__name__)

Loader = Callable[[Path, ModelOptions], "LoadedModel"]

_uids = itertools.count(1)


@dataclass(eq=False, slots=True)
class ModelSlot:
    """A model from the moment its loading was asked for. Guarded by the store's lock.

    Attributes:
        uid: Never used again, so that a reloaded model is another one to the scheduler.
        model: Set once it is ready.
        error: Set once loading has failed.
        users: Requests that still need the model.
    """

    name: str
    uid: int = field(default_factory=lambda: next(_uids))
    model: LoadedModel | None = None
    error: Exception | None = None
    users: int = 0
    when_settled: list[Callable[[ModelSlot], None]] = field(default_factory=list)
    when_unused: Callable[[], object] | None = None


class ModelStore:
    """The models of one worker. Callbacks run with no lock held, on the thread that settles the matter."""

    def __init__(self, load: Loader, folders: Sequence[Path]) -> None:
        """Start empty.

        Args:
            load: Loads one folder.
            folders: Where requests' names are looked for.
        """
        self._load = load
        self._folders = folders
        self._lock = threading.Lock()
        self._slots: dict[str, ModelSlot] = {}
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._default_name: str | None = None
        # What the command line said of a model holds for as long as the worker lives, also after an unloading.
        self._settled: dict[str, ModelOptions] = {}

    def start(self) -> None:
        """Start the thread that loads."""
        threading.Thread(target=self._run, name="loader", daemon=True).start()

    def open(self, options: ModelOptions, when_settled: Callable[[ModelSlot], None]) -> ModelSlot:
        """Load what `--model` names; the first one opened is the default."""
        name = self._name_of(options.name_or_path)
        slot = ModelSlot(name, when_settled=[when_settled])
        with self._lock:
            self._slots[name] = slot
            self._settled[name] = options
            if self._default_name is None:
                self._default_name = name
        self._tasks.put(lambda: self._settle(slot, lambda: find_model(options.name_or_path, self._folders), options))
        return slot

    def load(self, name: str, when_settled: Callable[[ModelSlot], None]) -> None:
        """Load a model that a request names, or find it loaded or being loaded.

        Raises:
            ModelNotFoundError: Not a name, or in no models folder.
        """
        wanted = short_name(name)
        with self._lock:
            slot = self._slots.get(wanted)
            if slot is None or slot.error is not None:
                folder = self._folder_of(name, wanted)
                wanted = model_name(folder)  # another spelling may mean the same folder
                slot = self._slots.get(wanted)
            if slot is None or slot.error is not None:
                slot = self._slots[wanted] = ModelSlot(wanted, when_settled=[when_settled])
                options = self._settled.get(wanted) or ModelOptions(name_or_path=wanted)
                fresh = slot
                self._tasks.put(lambda: self._settle(fresh, lambda: folder, options))
                return
        self.when_settled(slot, when_settled)

    def _folder_of(self, name: str, wanted: str) -> Path:
        settled = self._settled.get(wanted)
        return find_by_name(name, self._folders) if settled is None else find_model(settled.name_or_path, self._folders)

    def find(self, name: str | None) -> ModelSlot:
        """Return the model that a request means, loaded or being loaded; the default model also when it has failed.

        Raises:
            ModelNotFoundError: It is not.
        """
        with self._lock:
            wanted = self._default_name if name is None else short_name(name)
            if wanted is not None and wanted not in self._slots:
                wanted = self._name_of(wanted)
            slot = self._slots.get(wanted) if wanted is not None else None
            if slot is None or (slot.error is not None and wanted != self._default_name):
                raise ModelNotFoundError(f"the model {wanted!r} is not loaded{self._loadable(wanted)}")
            return slot

    def _name_of(self, name_or_path: str) -> str:
        """Return the name of the folder that is meant; where there is none, the one that it would have."""
        try:
            return model_name(find_model(name_or_path, self._folders))
        except (ModelNotFoundError, OSError):
            return model_name(as_listed(Path(os.path.expanduser(name_or_path))))

    def _loadable(self, name: str | None) -> str:
        try:
            find_by_name(name or "", self._folders)
        except ModelNotFoundError:
            return ""
        return ": `load_model` loads it"

    def acquire(self, name: str | None) -> ModelSlot:
        """Return the model that a request means and keep it from being unloaded until `release`.

        Raises:
            ModelNotFoundError: It is not loaded.
        """
        slot = self.find(name)
        with self._lock:
            if slot.when_unused is not None:
                raise ModelNotFoundError(f"the model {slot.name!r} is being unloaded")
            slot.users += 1
        return slot

    def release(self, slot: ModelSlot) -> None:
        """Undo one `acquire`."""
        with self._lock:
            slot.users -= 1
            done = slot.when_unused if slot.users == 0 else None
        if done is not None:
            done()

    def unload(self, name: str, when_done: Callable[[], object]) -> None:
        """Let go of a model once nothing uses it; new requests do not find it from now on.

        Raises:
            ModelNotFoundError: It is not loaded.
        """
        slot = self.find(name)
        with self._lock:
            if slot.model is None or self._slots.get(slot.name) is not slot:
                raise ModelNotFoundError(f"the model {slot.name!r} is not loaded")
            del self._slots[slot.name]

            def let_go() -> None:
                model, slot.model = slot.model, None
                if model is not None:
                    model.close()
                _log.info("model unloaded name=%s", slot.name)
                when_done()

            slot.when_unused = let_go
            is_unused = slot.users == 0
        if is_unused:
            let_go()

    def when_settled(self, slot: ModelSlot, callback: Callable[[ModelSlot], None]) -> None:
        """Call back once the model is ready or has failed: now, if it is."""
        with self._lock:
            is_pending = slot.model is None and slot.error is None
            if is_pending:
                slot.when_settled.append(callback)
        if not is_pending:
            callback(slot)

    def names(self) -> list[str]:
        """List the models that are ready, in the order of loading."""
        with self._lock:
            return [name for name, slot in self._slots.items() if slot.model is not None]

    def close(self) -> None:
        """Close every model: the process is about to end."""
        with self._lock:
            models = [slot.model for slot in self._slots.values() if slot.model is not None]
        for model in models:
            model.close()

    def _settle(self, slot: ModelSlot, find: Callable[[], Path], options: ModelOptions) -> None:
        model: LoadedModel | None = None
        error: Exception | None = None
        try:
            model = self._load(find(), options)
        except (ModelError, ConfigError, OutOfMemoryError) as refused:
            _log.error("model not loaded name=%s reason=%s", slot.name, refused)
            error = refused
        except MemoryError:
            error = OutOfMemoryError(f"no memory to load the model {slot.name!r}")
        except BaseException as bug:  # noqa: BLE001 - the thread must survive, and who waits must hear
            _log.exception("model not loaded name=%s", slot.name)
            error = ModelError(f"the model {slot.name[:80]!a} could not be loaded: {reason_of(bug)}")
        with self._lock:
            slot.model, slot.error = model, error
            waiting, slot.when_settled = slot.when_settled, []
            slot.users += 1  # who hears of it first may unload it: not before all have heard
        for callback in waiting:
            try:
                callback(slot)
            except BaseException:  # noqa: BLE001 - the others must hear, and the thread must survive
                _log.exception("a callback met a bug name=%s", slot.name)
        if model is not None:
            model.use_all_cores()
        self.release(slot)

    def _run(self) -> None:
        while True:
            self._tasks.get()()
