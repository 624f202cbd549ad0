"""What the tools that read a model have in common: its name or folder, and the options that decide about it."""

from __future__ import annotations

import argparse
from pathlib import Path

from embed_worker.config import DEFAULT_MODEL, ModelOptions, folder_argument, positive_argument, stated_models_dirs
from embed_worker.model_files.plan import pooling_argument
from embed_worker.model_files.search import find_model, models_folders


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare MODEL and the options that decide about its folder, named as those of the worker."""
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a model's folder or its name (%(default)s)"
    )
    add_folder_arguments(parser)


def add_folder_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the options that decide about a folder, and where names are looked for, as the worker has them."""
    parser.add_argument("--onnx-file", metavar="FILE", help="the graph to run, relative to the folder")
    parser.add_argument("--variant", metavar="NAME", help="run onnx/model_NAME.onnx: fp16, int8, quantized …")
    parser.add_argument(
        "--onnx-output", metavar="NAME", help="the graph's output to take, where it has none of the usual names"
    )
    parser.add_argument(
        "--pooling",
        type=pooling_argument,
        metavar="MODE[,MODE]",
        help="how token vectors become one: mean, cls, lasttoken …",
    )
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="L2-normalise vectors, or do not")
    parser.add_argument(
        "--max-tokens", type=positive_argument, metavar="N", help="cut texts to N tokens instead of the folder's limit"
    )
    parser.add_argument(
        "--ignore-config",
        action="append",
        default=[],
        metavar="KEY",
        help="read the model as if its configurations did not have KEY; repeatable",
    )
    parser.add_argument("--allow-links", action="store_true", help="follow links out of the model's folder")
    add_search_argument(parser)


def add_search_argument(parser: argparse._ActionsContainer) -> None:
    """Declare where names are looked for, as the worker has it."""
    parser.add_argument(
        "--models-dir",
        dest="models_dirs",
        action="append",
        type=folder_argument,
        default=[],
        metavar="DIR",
        help="look for models by name here first; repeatable; $EMBED_WORKER_MODELS comes next",
    )


def folder_arguments(args: argparse.Namespace) -> list[str]:
    """Return the parsed options as the worker's command line has them."""
    arguments = []
    for name in ("onnx_file", "onnx_output", "variant", "pooling", "max_tokens"):
        if (value := getattr(args, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    if args.normalize is not None:
        arguments.append("--normalize" if args.normalize else "--no-normalize")
    for key in args.ignore_config:
        arguments += ["--ignore-config", key]
    if args.allow_links:
        arguments.append("--allow-links")
    for folder in args.models_dirs:
        arguments += ["--models-dir", str(folder)]
    return arguments


def model_options(args: argparse.Namespace) -> ModelOptions:
    """Turn the parsed arguments into the options of one model."""
    return ModelOptions(
        name_or_path=args.model,
        onnx_file=args.onnx_file,
        onnx_output=args.onnx_output,
        variant=args.variant,
        pooling=args.pooling,
        normalize=args.normalize,
        max_tokens=args.max_tokens,
        ignore_config=tuple(args.ignore_config),
        allow_links=args.allow_links,
    )


def model_folder(args: argparse.Namespace) -> Path:
    """Find the folder that the arguments mean.

    Raises:
        ModelNotFoundError: Neither an existing folder nor a known name.
    """
    return find_model(args.model, searched_folders(args))


def searched_folders(args: argparse.Namespace) -> list[Path]:
    """Return where names are looked for, as the worker does it."""
    return models_folders(stated_models_dirs(args.models_dirs))
