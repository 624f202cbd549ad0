"""`embed-worker embed`: print the vectors of some texts, or embed a whole corpus.

  embed-worker embed "some text"
  embed-worker embed corpus.jsonl -o vectors.parquet
  embed-worker embed 'shards/*.parquet' --column body --keep id -o vectors/
  embed-worker embed books.parquet --chunk 200,20 -o chunks.parquet

A corpus is embedded in parts that are written aside, so that after an interruption, whatever its kind, the same command
goes on where it was. The output appears whole or not at all. Exit status: 0 everything is embedded; 1 some rows have no
vector and `--on-error null` lets them, or no worker could be started; 2 wrong usage, a row that has no vector, a corpus
that cannot be used or an output that cannot be written; 78 the model cannot be used; 130 interrupted: the same command
goes on.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from embed_worker.arguments.running import add_running_arguments, running_arguments
from embed_worker.config import DEFAULT_MODEL
from embed_worker.errors import ModelError
from embed_worker.model_files.folder import read_model_folder
from embed_worker.protocol import ExitCode
from embed_worker.tools.model_options import add_folder_arguments, folder_arguments, model_folder, model_options
from embed_worker.tools.report import refuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    _command().add_arguments(parser)
    model = parser.add_argument_group("the model")
    model.add_argument("--model", default=DEFAULT_MODEL, metavar="MODEL", help="its folder or its name (%(default)s)")
    add_folder_arguments(model)
    add_running_arguments(model)


def run(args: argparse.Namespace) -> int:
    """Embed; return the exit status."""
    try:
        read_model_folder(model_folder(args), model_options(args))  # told in a sentence here, and not by a dead worker
    except ModelError as error:
        return refuse("embed", error, ExitCode.UNUSABLE_MODEL)
    return int(_command().run(args, args.model, [*folder_arguments(args), *running_arguments(args)]))


def _command() -> Any:
    # By name: what is built over the client lives with the client, which knows the worker by its protocol alone.
    return importlib.import_module("bridge_client.bulk.command")
