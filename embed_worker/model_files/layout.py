"""What a model folder is made of: the names of its files, the paths that stay inside it, and how its files are read.

It decides nothing about a model. The worker, `pull` and `export` take the same list of files from here.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import orjson

from embed_worker.errors import ModelError
from embed_worker.model_files.damage import json_damage

MODULES = "modules.json"
WEIGHTS = "model.safetensors"
USUAL_GRAPHS = ("onnx/model.onnx", "model.onnx")

# What sentence-transformers has called the file of its `Transformer` module, in the order in which it looks.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# What the module at the head of a model is read from: the architecture, the limit, the tokenizer.
_TRANSFORMER_FILES = (
    "config.json",
    *TRANSFORMER_CONFIGS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
# What a tokenizer is built from where there is no tokenizer.json.
_VOCABULARIES = ("vocab.txt",)
_ROOT_FILES = (*_TRANSFORMER_FILES, "config_sentence_transformers.json", MODULES)
_TERMS = ("LICENSE*", "NOTICE*", "README.md")

# Qwen's and Gemma's tokenizers have 11 and 33 MB; nothing published comes near.
MAX_TEXT_BYTES = 64 << 20

# Control characters and lone surrogates: no such name can be printed, and some cannot be opened.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def files_of_a_model(files: Collection[str], modules: object) -> list[str]:
    """Return what makes a model folder besides its graph and the weights that a graph is made of.

    Args:
        files: Everything that is there, as POSIX paths relative to the folder.
        modules: What `modules.json` says; anything else than its list stands for a folder without one.

    Returns:
        Those of `files` that a worker reads, and the terms under which it may, sorted.
    """
    patterns = [*_ROOT_FILES, *_TERMS, *_vocabularies("", files)]
    for kind, path in _module_paths(modules):
        if kind in ("Transformer", "StaticEmbedding"):
            patterns += [f"{path}/{name}" for name in _TRANSFORMER_FILES] + _vocabularies(f"{path}/", files)
        else:
            patterns += [f"{path}/config.json", f"{path}/{WEIGHTS}"]
        if kind == "StaticEmbedding":
            patterns.append(f"{path}/{WEIGHTS}")
    found = {name for pattern in patterns for name in fnmatch.filter(files, pattern) if _is_beside(name, pattern)}
    return sorted(found)


def _vocabularies(prefix: str, files: Collection[str]) -> list[str]:
    return [] if f"{prefix}tokenizer.json" in files else [f"{prefix}{name}" for name in _VOCABULARIES]


def _module_paths(modules: object) -> Iterator[tuple[str, str]]:
    for module in modules if isinstance(modules, list) else []:
        match module:
            case {"path": str(path), "type": str(kind)} if path.strip("./"):
                yield kind.rpartition(".")[2], PurePosixPath(path).as_posix()
            case _:
                pass


def _is_beside(name: str, pattern: str) -> bool:
    """Return whether a pattern meant this folder: `*` of fnmatch matches a slash, too."""
    return name.count("/") == pattern.count("/")


class OutsideError(ValueError):
    """A path is none that stays inside a folder on every platform."""


def inner_path(path: str) -> str:
    """Return a path that stays inside the folder as its text says, in its plain POSIX form; links are another matter.

    Manifests, modules, graphs with data of their own and repositories of the hub all name files by this rule.

    Raises:
        OutsideError: Absolute, with a drive, `..`, a backslash or a colon, empty, or not printable.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if (
        not parts
        or ".." in parts
        or path.startswith("/")
        or PureWindowsPath(path).anchor
        or "\\" in path
        or ":" in path
        or _UNPRINTABLE.search(path)
    ):
        raise OutsideError(f"{path!a} is not a path inside the folder")
    return "/".join(parts)


def check_link(file: Path, folder: Path) -> None:
    """Pass a file that lies where its folder says: in it, or in the store of the Hugging Face hub's cache.

    Raises:
        ModelError: A link leads elsewhere.
    """
    target = os.path.realpath(file)
    home = os.path.realpath(folder)
    # A snapshot of the hub's cache is made of links to ../../blobs/HASH, and so are older folders made by it.
    store = os.path.dirname(target)
    is_blob = os.path.basename(store) == "blobs" and os.path.basename(os.path.dirname(store)).startswith("models--")
    if is_blob or Path(target).is_relative_to(home):
        return
    raise ModelError(
        f"the model folder {folder.name!r} has a {file.name!r} that is a link out of the folder: "
        "--allow-links serves it"
    )


def read_file(file: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file; a pipe or a device would never end.

    Raises:
        OSError: It is not there, or cannot be read.
        ValueError: Not a regular file, or larger than the limit; the message completes "it is".
    """
    status = file.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{file.name} is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    with file.open("rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit >> 20} MiB")
    return content


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: It is not there, or cannot be read.
        ValueError: Not a regular file, too large, not JSON, or with strings that are not text; the message completes
            "it is".
    """
    content = read_file(file)
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(content)  # a tokenizer may have tens of MB
    try:
        document = json.loads(content)  # which takes NaN, as Python's own files may have it
        # A lone surrogate passes the parser and breaks whoever prints it, hashes it or looks a file up by it.
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("not text: it has half of a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(json_damage(content) or "not JSON") from error
    return document
