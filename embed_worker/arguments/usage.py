"""The commands, and what is said to who has called them wrongly: one line, with what was probably meant."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from typing import NoReturn

from embed_worker.config import stated_models_dirs
from embed_worker.errors import printable
from embed_worker.model_files.search import models_folders, names_in
from embed_worker.model_files.suggestions import meant_model
from embed_worker.protocol import ExitCode
from embed_worker.protocol.spelling import closest

# Each but `serve` is a module of that name in embed_worker.tools, imported when it is called.
COMMANDS = {
    "serve": "run the worker, as embed-worker does without a command, too",
    "embed": "print the vectors of some texts, or embed a whole corpus",
    "models": "list the models that are here, and those that pull knows",
    "inspect": "show how a model's folder is read and why, and what its graph needs",
    "check": "judge whether a model is what it should be, and fast enough",
    "pull": "fetch a model from the Hugging Face hub and verify it",
    "export": "make an ONNX graph of a folder's safetensors",
    "quantize": "make an int8 variant of a model's graph",
}

# What other programs call a command, or what is an option here.
_ELSEWHERE = {
    "help": "--help",
    "version": "--version",
    "run": "serve",
    "start": "serve",
    "list": "models",
    "ls": "models",
    "show": "inspect",
    "download": "pull",
    "encode": "embed",
}

# Requests that need nothing but their name.
_METHODS = ("info", "ping", "metrics")


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with what was probably meant; options have to be written whole.

    Half an option would be taken for the only one that begins so: `check --model DIR` for `--models-dir DIR`.
    """

    def __init__(self, *, prog: str, description: str | None, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with the status of a wrong usage."""
        message = re.sub(r": invalid \w+ value: (.*)", self._form_of, message, count=1, flags=re.DOTALL)
        hint = self._hint(message)
        if not hint and "; " not in message:
            hint = f"; see {self.prog} --help"
        self.exit(ExitCode.USAGE, f"{self.prog}: {printable(message)}{hint}\n")

    def _form_of(self, found: re.Match[str]) -> str:
        """Return how an argument is written that its reader could not read; argparse names the reader."""
        action = self._action_of(found.string)
        return f" is written {action.metavar}, and not {found[1]}" if action is not None else found[0]

    def _hint(self, message: str) -> str:
        """Return what was probably meant, as the end of a message."""
        known: Iterable[str] = ()
        word = None
        if message.startswith("unrecognized"):
            known = [*self._option_string_actions, *(COMMANDS if self.prog == "embed-worker" else ())]
            word = next(iter(re.findall(r"--?[\w-]+", message)), None)
            if word == "--model" and any(action.dest == "model" for action in self._actions):
                return f"; the model stands by itself: `{self.prog} NAME-OR-FOLDER`"
        elif refused := re.search(r": invalid choice: '([^']*)'", message):
            word = refused[1]
            action = self._action_of(message)
            known = [str(choice) for choice in (action.choices if action is not None else None) or ()]
        meant = None if word is None else closest(word, known)
        return "" if meant is None else f"; did you mean `{meant}`?"

    def _action_of(self, message: str) -> argparse.Action | None:
        """Return the argument that a message of argparse begins with."""
        named = re.match(r"argument ([^:\s]+)", message)
        names = named[1].split("/") if named else []
        return next(
            (
                action
                for action in self._actions
                if any(name in (*action.option_strings, action.dest, action.metavar) for name in names)
            ),
            None,
        )


def unknown_command(word: str) -> str:
    """Return what is said of a command that there is not."""
    meant = _ELSEWHERE.get(word.lower()) or closest(word, COMMANDS, likeness=0.7) or _option_of_model(word)
    hint = _how_to_embed(word) if meant is None else f"; did you mean `{meant}`?"
    return f"embed-worker: there is no command {word[:64]!a}{hint}"


def _option_of_model(word: str) -> str | None:
    if os.path.exists(word):
        return None
    model = meant_model(word, names_in(models_folders(stated_models_dirs([]))))
    return None if model is None else f"--model {model}"


def _how_to_embed(word: str) -> str:
    if word.lower() in _METHODS:
        return f"""; it is a request: echo '{{"method": "{word.lower()}"}}' | embed-worker"""
    if os.path.exists(word) or re.fullmatch(r"\.\w+", os.path.splitext(word)[1]):
        return f"; for a file, say `embed-worker embed {word[:64]!a} -o vectors.npy`"
    return '; for the vector of a text, say `embed-worker embed "some text"`; see embed-worker --help'
