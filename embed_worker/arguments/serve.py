"""The command line of the worker itself, and the settings that it becomes."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from embed_worker import __version__
from embed_worker.arguments.running import add_running_arguments
from embed_worker.arguments.usage import COMMANDS, CommandParser
from embed_worker.config import (
    DEFAULT_MODEL,
    START_LIMIT_S,
    CoremlPrecision,
    CoremlUnits,
    LogFormat,
    MlxPrecision,
    ModelOptions,
    OpenvinoPrecision,
    RuntimeOptions,
    Verify,
    WorkerConfig,
    default_batch_tokens,
    folder_argument,
    positive_argument,
    stated_models_dirs,
)
from embed_worker.model_files.plan import pooling_argument
from embed_worker.model_files.search import as_listed, model_name
from embed_worker.protocol import METHODS, Limits

_SUPERVISED_DRAIN_S = 10.0

_DESCRIPTION = """\
Turn texts into embeddings: JSON lines on standard input, JSON lines on standard output.

  echo '{"inputs": ["hello world"]}' | embed-worker
  embed-worker < requests.jsonl > vectors.jsonl
"""

_EPILOG = """\
requests, which docs/protocol.md describes:
  {requests}
commands, each with a --help of its own:
{commands}
exit status: 0 end of input, shutdown or SIGTERM; 2 usage; 70 internal error; 74 the pipe failed; 75 out of memory or
threads, or the start took too long; 78 the model or the configuration cannot be used; 79 recycled; 130 Ctrl-C.
"""


class _StartModel(argparse.Action):
    """`--model`: begin the next model; the options after it are for its folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        models = namespace.models or []
        if models and "name_or_path" not in models[-1]:
            early = ", ".join(f"--{name.replace('_', '-')}" for name in models[-1])
            parser.error(f"{early} must come after the --model that it is for")
        if model_name(as_listed(Path(values))) in (
            model_name(as_listed(Path(model["name_or_path"]))) for model in models
        ):
            parser.error(f"two models have the name that {values!r} ends in: requests could not tell them apart")
        namespace.models = [*models, {"name_or_path": values}]


class _ModelOption(argparse.Action):
    """An option of the `--model` before it, or of the default model."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        models = list(namespace.models or [{}])
        models[-1] = models[-1] | {self.dest: self.const if self.nargs == 0 else values}
        namespace.models = models
        setattr(namespace, self.dest, None)


class _CollectForModel(argparse.Action):
    """A repeatable option of the `--model` before it, or of the default model."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        models = list(namespace.models or [{}])
        models[-1] = models[-1] | {self.dest: (*models[-1].get(self.dest, ()), values)}
        namespace.models = models
        setattr(namespace, self.dest, None)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = CommandParser(
        prog="embed-worker",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(
            requests=", ".join(name for name in METHODS if name != "embed_batch"),  # an older name of `embed`
            commands="\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items()),
        ),
    )
    parser.add_argument("--version", action="version", version=f"embed-worker {__version__}")
    runtime = RuntimeOptions()

    models = parser.add_argument_group("models", "options after a --model apply to that model")
    models.add_argument(
        "--model",
        dest="models",
        action=_StartModel,
        metavar="PATH-OR-NAME",
        help=f"a model's folder or its name; repeat it to serve several, the first is the default ({DEFAULT_MODEL})",
    )
    models.add_argument(
        "--onnx-file", action=_ModelOption, metavar="FILE", help="the graph to run, relative to the folder"
    )
    models.add_argument(
        "--variant", action=_ModelOption, metavar="NAME", help="run onnx/model_NAME.onnx: fp16, int8, quantized …"
    )
    models.add_argument(
        "--onnx-output",
        action=_ModelOption,
        metavar="NAME",
        help="the graph's output to take, where it has none of the usual names",
    )
    models.add_argument(
        "--pooling",
        action=_ModelOption,
        type=pooling_argument,
        metavar="MODE[,MODE]",
        help="how token vectors become one: mean, cls, lasttoken, max …",
    )
    models.add_argument(
        "--normalize", action=_ModelOption, nargs=0, const=True, help="L2-normalise vectors, unless a request says no"
    )
    models.add_argument(
        "--no-normalize",
        action=_ModelOption,
        nargs=0,
        const=False,
        dest="normalize",
        help="do not L2-normalise vectors, unless a request says so",
    )
    models.add_argument(
        "--max-tokens",
        action=_ModelOption,
        type=positive_argument,
        metavar="N",
        help="cut texts to N tokens instead of the folder's limit",
    )
    models.add_argument(
        "--ignore-config",
        action=_CollectForModel,
        metavar="KEY",
        help="serve the model as if its configurations did not have KEY; repeatable",
    )
    models.add_argument(
        "--allow-links",
        action="store_true",
        help="follow links out of a model's folder; those into the hub's cache are always followed",
    )
    models.add_argument(
        "--models-dir",
        dest="models_dirs",
        action="append",
        type=folder_argument,
        default=[],
        metavar="DIR",
        help="look for models by name here first; repeatable; $EMBED_WORKER_MODELS comes next",
    )
    models.add_argument(
        "--verify",
        choices=[str(mode) for mode in Verify],
        default=str(runtime.verify),
        help="compare a model's files with the SHA-256 in its manifest; auto hashes only what has changed (auto)",
    )

    running = parser.add_argument_group("running")
    add_running_arguments(running)
    running.add_argument(
        "--batch-tokens",
        type=positive_argument,
        metavar="N",
        help="tokens of a micro-batch: its texts times the longest of them "
        f"({default_batch_tokens('cpu')}; on CUDA and other GPUs of onnxruntime {default_batch_tokens('cuda')})",
    )
    running.add_argument(
        "--batch-invariant",
        action="store_true",
        help="run texts one at a time, for graphs that give a text another vector in another batch",
    )
    running.add_argument(
        "--supervised",
        action="store_true",
        help="for programs that own the worker: ignore Ctrl-C, end with the parent, drain for 10 s at most",
    )
    running.add_argument(
        "--start-limit-s",
        type=positive_argument,
        default=START_LIMIT_S,
        metavar="S",
        help=f"seconds that loading a model may take; then the worker ends, or load_model fails ({START_LIMIT_S})",
    )
    running.add_argument(
        "--rss-limit-mb",
        type=positive_argument,
        metavar="MB",
        help="above this resident memory finish accepted work and exit with 79, to be restarted (no limit)",
    )

    bounds = parser.add_argument_group("limits", "the answer of `info` tells them to hosts")
    for limit in fields(Limits):
        flag = f"--{limit.name.replace('_', '-')}"
        what = f"{limit.metadata['what']} ({limit.default})"
        bounds.add_argument(flag, type=positive_argument, default=limit.default, metavar="N", help=what)

    logs = parser.add_argument_group("logs", "they go to standard error, and hold ids and counts, never texts")
    least = "the least severe messages that are written (warning)"
    logs.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="warning", help=least)
    logs.add_argument(
        "--log-format", choices=[str(name) for name in LogFormat], default="text", help="how they look (text)"
    )
    return parser


def make_config(options: argparse.Namespace) -> WorkerConfig:
    """Turn parsed arguments, and the one environment variable, into settings."""
    return WorkerConfig(
        models=tuple(ModelOptions(**model) for model in options.models or [{}]),
        models_dirs=stated_models_dirs(options.models_dirs),
        allow_links=options.allow_links,
        runtime=RuntimeOptions(
            provider=options.provider,
            threads=options.threads,
            batch_tokens=options.batch_tokens or default_batch_tokens(options.provider),
            batch_invariant=options.batch_invariant,
            verify=Verify(options.verify),
            coreml_units=CoremlUnits(options.coreml_units),
            coreml_precision=CoremlPrecision(options.coreml_precision),
            coreml_cache=options.coreml_cache,
            mlx_precision=MlxPrecision(options.mlx_precision),
            openvino_precision=OpenvinoPrecision(options.openvino_precision),
        ),
        limits=Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)}),
        is_supervised=options.supervised,
        drain_timeout_s=_SUPERVISED_DRAIN_S if options.supervised else None,
        start_limit_s=options.start_limit_s,
        rss_limit_bytes=None if options.rss_limit_mb is None else options.rss_limit_mb * 10**6,
    )
