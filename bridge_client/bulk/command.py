"""`embed-worker embed`: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bridge_client import BridgeError, ClientOptions, EmbedClient, RequestError
from bridge_client.bulk.chunks import Chunker, ChunkSize
from bridge_client.bulk.corpus import Corpus, find_sources, is_like_a_file
from bridge_client.bulk.job import Job, RowError, parts_folder
from bridge_client.bulk.parts import VECTOR_COLUMN, Form, JsonlParts, NpyParts, Output, told
from bridge_client.bulk.pipeline import Pipeline
from bridge_client.bulk.places import Place, check_places, place_of, refuse_changed, refuse_existing
from bridge_client.bulk.report import Progress
from bridge_client.bulk.rows import CHUNK_COLUMNS, CorpusError, Format
from bridge_client.bulk.token_counts import WorkerTokens
from bridge_client.calls import EmbedKeywords
from bridge_client.worker_process import one_line, printable
from embed_worker import __version__

_SOME_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
# Nobody waits for an answer: a machine that others have slows a corpus down and no more. A worker that has embedded for
# a second has been worth its start, however often it is killed; one that never does is not tried for long.
_PATIENT = ClientOptions(request_timeout_s=3600.0, restart_budget=10, restart_forgive_s=1.0, backoff_max_s=1.0)
_PART_ROWS = 8192
_PART_TEXTS = 512  # of the rows of a part where each becomes some chunks
_PYARROW = 25  # the first that writes vectors of fixed size in parquet where some rows have none; 26 reads them, too
_DTYPES = ("float32", "float16")
# What counts with -o alone, and what it is where nobody has given it.
_OF_A_CORPUS = {
    "format": None, "column": None, "keep": None, "chunk": None, "dtype": _DTYPES[0], "output_format": None,
    "on_error": "fail", "errors": None, "part_rows": None, "overwrite": False,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, but for those that decide about the model."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a text; with -o a file, a pattern, a folder, or - for standard input",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="write the vectors to this file, or in parts to this folder"
    )
    corpus = parser.add_argument_group("the corpus")
    corpus.add_argument(
        "--format", choices=[str(each) for each in Format], help="format of the inputs (by default their suffix tells)"
    )
    corpus.add_argument("--column", metavar="NAME", help="the column of the texts (text, or the only one)")
    corpus.add_argument(
        "--keep", metavar="NAME[,NAME]", help="columns to keep beside the vectors, * for all (the column of the texts)"
    )
    corpus.add_argument(
        "--chunk",
        type=ChunkSize.parse,
        metavar="N[,OVERLAP]",
        help="make rows of chunks of at most N tokens of the text, each with OVERLAP tokens or more of the one before; "
        "they have the columns source_row, chunk, start and end (code points), and their own text",
    )
    how = parser.add_argument_group("the vectors")
    prompts = how.add_mutually_exclusive_group()
    prompts.add_argument("--query", action="store_true", help="embed the texts with the model's prompt for queries")
    prompts.add_argument("--document", action="store_true", help="embed them with the model's prompt for documents")
    prompts.add_argument("--prompt-name", metavar="NAME", help="embed them with the model's prompt of this name")
    how.add_argument("--dimensions", type=_positive, metavar="N", help="keep the first N dimensions (Matryoshka)")
    how.add_argument("--dtype", choices=_DTYPES, default="float32", help="what numbers are stored as (float32)")
    how.add_argument(
        "--output-format",
        choices=[str(each) for each in Output],
        help="format of the output (by default its suffix tells; parquet for a folder)",
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--on-error",
        choices=["fail", "null"],
        default="fail",
        help="stop at a row that has no vector, or write null and go on (fail)",
    )
    running.add_argument(
        "--errors",
        metavar="FILE.jsonl",
        type=Path,
        help="write the rows that have no vector here, with code and message",
    )
    running.add_argument(
        "--part-rows",
        type=_positive,
        metavar="N",
        help=f"rows of a part: what an interruption can cost ({_PART_ROWS}, with --chunk {_PART_TEXTS})",
    )
    running.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    running.add_argument("--json", action="store_true", help="print what was done as JSON")
    running.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def run(args: argparse.Namespace, model: str, worker_args: Sequence[str]) -> int:
    """Embed texts or a corpus; return the exit status.

    Args:
        args: What `add_arguments` declared.
        model: The model's name or folder.
        worker_args: The worker's options that decide about the model.
    """
    place, status = None, None
    try:
        if args.output is not None:
            place = place_of(args.output, None if args.output_format is None else Output(args.output_format))
        options = replace(_PATIENT, model=model, worker_args=tuple(worker_args))
        with _interruptible(), EmbedClient(options) as client:
            status = _print_vectors(client, args) if place is None else _embed_corpus(client, args, place)
    except (CorpusError, RequestError) as error:  # not of a row: the model has no such prompt, or fewer dimensions
        return _fail(one_line(str(error)), _USAGE)
    except BridgeError as error:
        return _fail(f"{printable(str(error))}{_way_on(place)}", _SOME_FAILED)
    except KeyboardInterrupt:
        if status is None:  # else all is done, and the worker goes by itself
            return _fail(f"interrupted{_way_on(place)}", _INTERRUPTED)
    assert status is not None
    return status


def _way_on(place: Place | None) -> str:
    """Return how a message ends that tells of a job that has begun."""
    return "; the same command goes on" if place is not None and parts_folder(place.path).exists() else ""


def _fail(message: str, status: int) -> int:
    """Return the exit status, after saying what went wrong; a dead worker's last words may have several lines."""
    sys.stderr.write(f"embed-worker embed: {message}\n")
    return status


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: what is finished stays, and the worker goes.

    Who is asked twice does not wait for the worker, which notices by itself.
    """
    asked = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            os._exit(_INTERRUPTED)
        asked = True
        raise KeyboardInterrupt

    # A shell starts background jobs with SIGINT ignored: it stays so.
    ours = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(each, interrupt) for each in ours]
    try:
        yield
    finally:
        for each, handler in zip(ours, before, strict=True):
            signal.signal(each, handler)


# Some texts -----------------------------------------------------------------------------------------------------------


def _print_vectors(client: EmbedClient, args: argparse.Namespace) -> int:
    """Print one vector a line for texts on the command line."""
    if file := next((name for name in args.inputs if name == "-" or os.path.exists(name)), None):
        raise CorpusError(f"{file!r} is a file: say with -o where its vectors go, such as -o vectors.parquet")
    if name := next((name for name, unset in _OF_A_CORPUS.items() if getattr(args, name) != unset), None):
        option = name.replace("_", "-")
        raise CorpusError(
            f"--{option} is for a corpus, and without -o INPUT is a text: say with -o where its vectors go"
        )
    for name in filter(is_like_a_file, () if args.quiet else args.inputs):
        sys.stderr.write(f"embed-worker embed: {name!r} is embedded as a text, for there is no file of this name\n")
    found = client.embed_detailed(args.inputs, **_parameters(args))
    for row, text in enumerate(args.inputs):
        vector = found.vectors[row]
        line = {"text": text, "embedding": vector, "tokens": found.tokens[row], "model": found.model,
                "fingerprint": found.fingerprint} if args.json else vector  # fmt: skip
        sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()
    return 0


def _parameters(args: argparse.Namespace) -> EmbedKeywords:
    """Return the parameters of `embed` that the arguments ask for."""
    return {
        "dimensions": args.dimensions,
        "input_type": "query" if args.query else "document" if args.document else None,
        "prompt_name": args.prompt_name,
    }


# A corpus -------------------------------------------------------------------------------------------------------------


def _embed_corpus(client: EmbedClient, args: argparse.Namespace, place: Place) -> int:
    """Embed a corpus into a file or a folder of parts."""
    begun_s = time.monotonic()
    kind = place.kind
    stated = None if args.format is None else Format(args.format)
    keep = None if args.keep is None else [name for name in args.keep.split(",") if name]
    _need_pyarrow(kind, args.inputs, stated)
    if kind is Output.NPY:
        keep = keep or []
        if keep:
            raise CorpusError("an npy file holds vectors alone: leave out --keep, or write parquet")
        if args.chunk is not None:
            raise CorpusError("an npy file cannot say which chunk a vector is of: write parquet, arrow or jsonl")
    corpus = Corpus(find_sources(args.inputs, stated), args.column, keep)
    check_places(place, corpus.sources, args.errors)
    _refuse_taken_names(corpus.kept, is_chunked=args.chunk is not None)
    part_rows = args.part_rows or (_PART_ROWS if args.chunk is None else _PART_TEXTS)
    info = client.info()
    parameters = _parameters(args)
    dimension = client.embed("", **parameters).shape[1]  # what the model refuses, it refuses before the work
    chunker = None if args.chunk is None else _chunker(client, args.chunk, info, parameters, corpus.column)
    asked = _asked(args, corpus, info, parameters, dimension, kind, part_rows)
    metadata = {
        "model": info["model"], "fingerprint": info["fingerprint"], "dimension": str(dimension),
        "prompt": parameters["prompt_name"] or parameters["input_type"] or "",
        "version": __version__,
    }  # fmt: skip
    form = _form_of(kind, corpus, metadata, is_folder=place.is_folder, is_chunked=chunker is not None)
    job = Job(place.path, form.suffix)
    with job.locked():
        # Nothing tells before it is read whether standard input is the same.
        if (summary := job.earlier_summary(asked)) is None or corpus.has_stdin:
            refuse_existing(place, is_overwriting=args.overwrite)
            job.begin(asked)
            progress = Progress(corpus.total, lambda: client.stats().restarts, is_quiet=args.quiet or args.json)
            with progress.shown() as on_progress:
                pipeline = Pipeline(
                    job,
                    corpus,
                    form,
                    lambda texts: client.embed_iter_detailed(texts, on_error="null", **parameters),
                    chunker,
                    part_rows=part_rows,
                    dimension=dimension,
                    dtype=np.dtype(args.dtype),
                    is_strict=args.on_error == "fail",
                    on_progress=on_progress,
                )
                pipeline.run()
            refuse_changed(corpus.sources, job.folder)
            if args.errors is not None:
                _write_errors(args.errors, pipeline.errors)
            summary = asdict(pipeline.counts) | {
                "seconds": round(time.monotonic() - begun_s, 3),
                "restarts": client.stats().restarts,
                "model": info["model"],
                "fingerprint": info["fingerprint"],
                "dimension": dimension,
                "output": str(place.path),
            }
            refuse_existing(place, is_overwriting=args.overwrite)  # somebody may have made it meanwhile
            parts = [job.part(number) for number in range(pipeline.parts)]
            job.finish(summary, None if place.is_folder else lambda file: form.join(parts, file, dimension))
    _report(summary, args, kind)
    return _SOME_FAILED if summary["failed"] else 0


def _refuse_taken_names(kept: Sequence[str], *, is_chunked: bool) -> None:
    ours = (*(CHUNK_COLUMNS if is_chunked else ()), VECTOR_COLUMN)
    if taken := [name for name in kept if name in ours]:
        raise CorpusError(f"the output has a column {taken[0]!r} of its own: leave the input's out of --keep")


def _chunker(
    client: EmbedClient, size: ChunkSize, info: Mapping[str, Any], parameters: EmbedKeywords, column: str
) -> Chunker:
    """Return what makes chunks that fit into the model."""
    tokenize = WorkerTokens(client, input_type=parameters["input_type"], prompt_name=parameters["prompt_name"])
    most = info.get("max_tokens")
    size.check_room(None if most is None else int(most) - tokenize.fixed, tokenize.fixed, str(info["model"]))
    return Chunker(size, tokenize, column)


def _form_of(output: Output, corpus: Corpus, metadata: Mapping[str, str], *, is_folder: bool, is_chunked: bool) -> Form:
    """Return how to write an output; `is_folder` where the parts themselves are the output."""
    match output:
        case Output.PARQUET | Output.ARROW:
            from bridge_client.bulk import tables
            from bridge_client.bulk.arrow_parts import ArrowParts

            schema = tables.chunked(corpus.schema(), corpus.column) if is_chunked else corpus.schema()
            return ArrowParts(schema, metadata, output, is_folder=is_folder)
        case Output.NPY:
            return NpyParts()
        case Output.JSONL:
            return JsonlParts()


def _need_pyarrow(kind: Output, inputs: Sequence[str], stated: Format | None) -> None:
    tables = (".parquet", ".arrow", ".feather")
    reads = stated.is_table if stated else any(name.lower().endswith(tables) for name in inputs)
    if not reads and kind not in (Output.PARQUET, Output.ARROW):
        return
    try:
        has = version("pyarrow")
    except PackageNotFoundError:
        raise CorpusError("parquet and arrow need the package pyarrow: pip install 'embed-bridge[bulk]'") from None
    if kind is Output.PARQUET and int(has.partition(".")[0]) < _PYARROW:
        message = f"parquet is written by pyarrow {_PYARROW} or newer, and this is {has}"
        raise CorpusError(f"{message}: pip install -U 'embed-bridge[bulk]', or write arrow")


def _asked(
    args: argparse.Namespace,
    corpus: Corpus,
    info: dict[str, Any],
    parameters: EmbedKeywords,
    dimension: int,
    kind: Output,
    part_rows: int,
) -> dict[str, Any]:
    """Return what makes this job another than any other, under the names that a message uses."""
    return {
        "inputs": [asdict(source) for source in corpus.sources],
        "column": corpus.column,
        "keep": corpus.kept,
        "chunk": None if args.chunk is None else asdict(args.chunk),
        "prompt_name": parameters["prompt_name"],
        "input_type": parameters["input_type"],
        "dimensions": dimension,
        "dtype": args.dtype,
        "model": info["model"],
        "fingerprint": info["fingerprint"],
        "on_error": args.on_error,
        "output_format": str(kind),
        "part_rows": part_rows,
    }


def _write_errors(file: Path, errors: Sequence[RowError]) -> None:
    # In its place, and not aside: a device, a pipe or a link stays what it is.
    with told(f"{file} cannot be written"), file.open("wb") as out:
        for error in errors:
            out.write(orjson.dumps(error, option=orjson.OPT_APPEND_NEWLINE))
        out.flush()
        if file.is_file():
            os.fsync(out.fileno())


def _report(summary: dict[str, Any], args: argparse.Namespace, kind: Output) -> None:
    if args.json:
        print(json.dumps(summary))
    elif not args.quiet:
        names = ("rows", "unique", "null", "failed", "truncated", "tokens", "seconds", "restarts", "fingerprint")
        print(f"{one_line(summary['output'])}: " + ", ".join(f"{name} {summary[name]}" for name in names))
        if kind is Output.PARQUET and summary["null"] + summary["failed"]:
            print("rows without a vector are null, which pyarrow can read from version 26 on, DuckDB and polars always")
