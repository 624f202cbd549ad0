"""`modules.json`: the head of a model, how token vectors are pooled, and what becomes of the pooled vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from embed_worker.model_files.folder_files import FolderFiles, config_of
from embed_worker.model_files.keys import KEYS
from embed_worker.model_files.layout import MODULES, WEIGHTS
from embed_worker.model_files.plan import DensePlan, LayerNormPlan, ModulePlan, NormalizePlan

# Classes of sentence-transformers; the same last name in another package is another class.
_PACKAGE = "sentence_transformers."
_HEADS = ("Transformer", "StaticEmbedding")
_BEHIND = ("Dense", "LayerNorm", "Normalize", "Dropout")
_KNOWN = "Transformer and Pooling, or StaticEmbedding, then any of Dense, LayerNorm and Normalize"

_USUAL_POOLING = "1_Pooling"

_SENTENCE = "sentence_embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """What `modules.json` says.

    Attributes:
        head: The class of the first module; None where there is no such file.
        path: The head's folder, relative to the model's; empty for the model's own.
        pooling: The configuration of Pooling; empty where there is none.
        behind: What follows the pooling, in order, Dropout left out.
        sources: Where each of `behind` is from.
    """

    head: str | None
    path: str
    pooling: Mapping[str, Any]
    behind: tuple[ModulePlan, ...]
    sources: tuple[str, ...]


def read_modules(files: FolderFiles) -> Modules:
    """Read the modules of a folder.

    Raises:
        ModelError: They are damaged, or of kinds that cannot be served.
    """
    found = list(_entries(files))
    if not found:
        return Modules(head=None, path="", pooling=_stray_pooling(files), behind=(), sources=())
    kinds = [kind for kind, _ in found]
    first = 2 if kinds[0] == "Transformer" else 1
    is_known = kinds[0] in _HEADS and (first == 1 or kinds[1:2] == ["Pooling"])
    if not is_known or any(kind not in _BEHIND for kind in kinds[first:]):
        raise files.error(f"has modules that cannot be served: {', '.join(kinds)}; known are {_KNOWN}")
    read = [(_module(files, kind, path), path) for kind, path in found[first:]]
    behind = [(module, path) for module, path in read if module is not None]
    return Modules(
        head=kinds[0],
        path=found[0][1],
        pooling=_pooling_config(files, found[1][1]) if first == 2 else {},
        behind=tuple(module for module, _ in behind),
        sources=tuple(f"{MODULES}: {path}" for _, path in behind),
    )


def _entries(files: FolderFiles) -> Iterator[tuple[str, str]]:
    absent = object()
    modules = files.read_json(MODULES, absent)
    if modules is absent:
        return
    if not isinstance(modules, list) or not modules:
        raise files.error("has a modules.json that is not a list of modules")
    names: set[object] = set()
    for entry in modules:
        match entry:
            case {"type": str(kind), "path": str(path)}:
                pass
            case _:
                raise files.error("has a modules.json with an entry without `type` and `path`")
        if not path.strip("./"):
            path = ""
        else:
            files.path(path, MODULES)
            path = PurePosixPath(path).as_posix()
        if not kind.startswith(_PACKAGE):
            raise files.error(f"has a module of a class of its own, {kind!a}, which is a program and is not run")
        if entry.get("name", path) in names:
            raise files.error(f"has two modules of the name {entry.get('name')!a}, of which only one would count")
        names.add(entry.get("name", path))
        files.check_keys(MODULES, MODULES, entry)
        yield kind.rpartition(".")[2], path


def _pooling_config(files: FolderFiles, path: str) -> Mapping[str, Any]:
    config = files.read_object(config_of(path), "Pooling")
    if not config:
        raise files.error(f"has no {config_of(path)}, which says how to pool")
    return config


def _stray_pooling(files: FolderFiles) -> Mapping[str, Any]:
    """Read how to pool where the file that would name the module is missing."""
    where = config_of(_USUAL_POOLING)
    config = files.read_object(where, "Pooling")
    if config:
        files.warnings.append(
            f"there is no {MODULES}: {where} says how to pool, and nothing whether vectors have length 1; "
            "--normalize or --no-normalize does"
        )
    return config


def _module(files: FolderFiles, kind: str, path: str) -> ModulePlan | None:
    """Read a module behind the pooling; None for Dropout, which does nothing but in training."""
    config = files.read_object(config_of(path), kind if kind in KEYS else None)
    match kind:
        case "Dense":
            return _dense(files, config, path)
        case "LayerNorm":
            weights = files.folder / path / WEIGHTS
            files.check(weights)
            return LayerNormPlan(weights=weights)
        case "Normalize":
            _check_names(files, config, "a Normalize module")
            return NormalizePlan()
        case _:
            return None


def _dense(files: FolderFiles, config: Mapping[str, Any], path: str) -> DensePlan:
    where = config_of(path)
    if not config:
        raise files.error(f"has no {where}, which says what its Dense module is")
    _check_names(files, config, "a Dense module")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    # What is not torch's own is a program; sentence-transformers takes Tanh for it and says so in a log.
    if not isinstance(activation, str) or not _is_of_torch(activation):
        raise files.error(f"has a Dense module with an activation of its own, {activation!a} ({where}): it is not run")
    weights = files.folder / path / WEIGHTS  # not needed where the graph pools itself
    files.check(weights)
    sizes = [
        files.positive(config[key], f"{where}: {key}") if config.get(key) is not None else None
        for key in ("in_features", "out_features")
    ]
    return DensePlan(
        weights=weights,
        activation=activation.rpartition(".")[2],
        use_residual=files.truth(config, "use_residual", where),
        in_features=sizes[0],
        out_features=sizes[1],
        bias=files.truth(config, "bias", where, default=True),
    )


def _is_of_torch(activation: str) -> bool:
    """Return whether it is a class of `torch.nn`, by its short name or by the one that sentence-transformers writes."""
    return activation.startswith("torch.nn.modules.") or activation.rpartition(".")[0] == "torch.nn"


def _check_names(files: FolderFiles, config: Mapping[str, Any], what: str) -> None:
    of = config.get("module_input_name") or _SENTENCE
    to = config.get("module_output_name") or of
    if (of, to) != (_SENTENCE, _SENTENCE):
        raise files.error(f"has {what} over something else than the sentence embedding: {of!a} → {to!a}")


def without_trailing_normalize(modules: Sequence[ModulePlan]) -> tuple[tuple[ModulePlan, ...], bool]:
    """Part a Normalize at the end from what is before it: requests may ask for vectors without it."""
    if modules and isinstance(modules[-1], NormalizePlan):
        return tuple(modules[:-1]), True
    return tuple(modules), False
