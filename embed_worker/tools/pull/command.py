"""`embed-worker pull`: fetch a model from the Hugging Face hub, verify it, and put it where the worker finds it.

It fetches what a worker reads and nothing else: configurations, tokenizer, Dense weights, one graph and its data. The
folder appears whole, with a manifest, or not at all. The next pull goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embed_worker.config import ModelOptions, Verify, path_argument
from embed_worker.errors import ModelError
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.layout import MODULES, WEIGHTS, OutsideError, files_of_a_model, inner_path
from embed_worker.model_files.manifest import MANIFEST_NAME, Manifest, ManifestError, file_sha256, verify
from embed_worker.model_files.search import user_models_folder
from embed_worker.protocol import ExitCode
from embed_worker.tools.pull.hub import Hub, HubError, RemoteFile, Repository, VerificationError, is_verifiable, matches
from embed_worker.tools.pull.selection import (
    check_usable,
    choose_graph,
    external_data,
    files_of_a_worker,
    shards_of,
    usual_graph,
    weights_of,
)
from embed_worker.tools.pull.staging import BusyError, Staging, staging
from embed_worker.tools.pull.wanted import PullError, Wanted, wanted_of
from embed_worker.tools.report import refuse, show

_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERIFICATION_FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """What a pull did; the `--json` output has these names. Sizes are in bytes.

    Attributes:
        graph: Relative to the folder; None where the repository has weights only.
        received: Of the files that were not there already.
        notes: What a person should know or do next.
    """

    name: str
    folder: str
    source: str
    license: str
    graph: str | None
    files: int
    size: int
    received: int
    notes: tuple[str, ...]


# The command --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a known model, such as e5-small-v2, or `org/name` on the hub")
    parser.add_argument(
        "--output", metavar="DIR", type=path_argument, help="the folder to make (default: in the user's models)"
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="a commit, branch or tag (default: the pinned commit of a known model, else main)",
    )
    graph = parser.add_mutually_exclusive_group()
    graph.add_argument("--variant", metavar="NAME", help="fetch onnx/model_NAME.onnx: fp16, int8, quantized …")
    graph.add_argument("--onnx-file", metavar="FILE", help="fetch this graph, by its path in the repository")
    parser.add_argument(
        "--weights", action="store_true", help=f"also fetch {WEIGHTS} or its shards, which `embed-worker export` needs"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress on standard error")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Pull a model and report on standard output; return the exit status."""
    try:
        report = pull(
            args.name,
            output=args.output,
            revision=args.revision,
            variant=args.variant,
            onnx_file=args.onnx_file,
            weights=args.weights,
            is_quiet=args.quiet or not sys.stderr.isatty(),
        )
    except (PullError, HubError) as error:
        return refuse("pull", error, ExitCode.UNUSABLE_MODEL)
    except VerificationError as error:
        return refuse("pull", error, _VERIFICATION_FAILED)
    except KeyboardInterrupt:
        return refuse("pull", "interrupted; the same command goes on from here", ExitCode.INTERRUPTED)
    if args.json:
        show([json.dumps(asdict(report))])
        return ExitCode.OK
    received = f"{report.received / 1e6:.1f} MB received" if report.received else "nothing received"
    summary = f"{report.folder}: {report.files} files, {report.size / 1e6:.1f} MB; {received}"
    show([summary, f"from {report.source}; licence: {report.license}", *report.notes])
    return ExitCode.OK


def pull(
    name: str,
    *,
    output: Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    onnx_file: str | None = None,
    weights: bool = False,
    is_quiet: bool = True,
    hub: Hub | None = None,
) -> PullReport:
    """Bring a model into its folder, or find that it is there.

    Raises:
        PullError: The arguments, the repository or the disk do not allow it.
        HubError: The hub cannot give it.
        VerificationError: A file is not what the hub described.
    """
    if variant is not None and onnx_file is not None:
        raise PullError("--variant and --onnx-file both choose the graph: give one of them")
    graph = onnx_file if variant is None else f"onnx/model_{variant}.onnx"
    wanted, folder_name = wanted_of(name, revision, graph, weights)
    folder = _destination(output, folder_name)
    try:
        if (report := _found_without_hub(folder, wanted)) is not None:
            return report
        _check_replaceable(folder, wanted.repository)
        _require_library()
        with staging(folder) as claimed:
            return _Pull(hub or Hub(), wanted, claimed).run(is_quiet=is_quiet)
    except BusyError as error:
        raise PullError(f"another process is pulling {folder}: wait until it has ended") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            advice = "make room; the same command goes on from here"
            raise PullError(f"the disk of {folder.parent} is full: {advice}") from error
        raise PullError(f"{folder} cannot be written ({error}); is a worker using it?") from error


def _destination(output: Path | None, folder_name: str) -> Path:
    """Decide where the model is to lie."""
    if output is not None:
        return Path(os.path.realpath(output))
    if (users := user_models_folder()) is None:
        raise PullError("there is no home to keep models in: --output names a folder")
    return Path(os.path.realpath(users / folder_name))


def _check_replaceable(folder: Path, repository: str) -> None:
    """Let nothing be replaced but an empty folder, or one whose manifest says that it is from this repository."""
    try:
        manifest = Manifest.read(folder)
    except ManifestError:
        manifest = None
    if manifest is not None and manifest.source.partition("@")[0].casefold() == repository.casefold():
        return
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        says = "has no manifest that says where it is from"
        if manifest is not None:
            says = f"its manifest says that it is from {manifest.source!a}, and not from {repository}"
        advice = "choose another with --output, or move it away"
        raise PullError(f"{folder} is there, and {says}: {advice}")


def _require_library() -> None:
    try:
        import huggingface_hub
    except ImportError as error:
        raise PullError("this needs huggingface_hub: pip install 'embed-bridge[hub]'") from error
    if int(huggingface_hub.__version__.partition(".")[0]) < 1:
        raise PullError("this needs huggingface_hub 1 or later: pip install -U 'embed-bridge[hub]'")


# What is there already ----------------------------------------------------------------------------------------------


def _found_without_hub(folder: Path, wanted: Wanted) -> PullReport | None:
    """Find a folder that a commit names exactly, so that nobody need be asked."""
    commits = [commit or "" for commit in (wanted.revision, wanted.onnx_revision)]
    if not all(_COMMIT.fullmatch(commit) for commit in commits):
        return None
    return _found(folder, wanted, wanted.source(commits[0], commits[1]))


def _found(folder: Path, wanted: Wanted, source: str) -> PullReport | None:
    """Report a folder that has everything already, unharmed; None if not."""
    manifest = _manifest_of(folder, source)
    if manifest is None or (wanted.weights and weights_of(manifest.files) is None):
        return None
    graph = usual_graph(manifest.files) if wanted.graph is None else wanted.graph
    if graph is None or graph not in manifest.files:
        return None
    try:
        verify(folder, manifest, Verify.ALWAYS)
    except ManifestError:
        return None
    return _report(folder, manifest, graph, received=0, notes=("It was there already",))


def _manifest_of(folder: Path, source: str) -> Manifest | None:
    """Read the manifest of a folder from this source; `export` and `quantize` add to what it says, after a comma."""
    try:
        manifest = Manifest.read(folder)
    except ManifestError:
        return None
    return manifest if manifest is not None and f"{manifest.source},".startswith(f"{source},") else None


def _report(folder: Path, manifest: Manifest, graph: str | None, *, received: int, notes: Iterable[str]) -> PullReport:
    return PullReport(
        name=manifest.name,
        folder=str(folder),
        source=manifest.source,
        license=manifest.license,
        graph=graph,
        files=len(manifest.files),
        size=sum(record.size for record in manifest.files.values()),
        received=received,
        notes=tuple(notes),
    )


# One pull -----------------------------------------------------------------------------------------------------------


def _inside(path: str) -> str:
    try:
        return inner_path(path)
    except OutsideError as error:  # no honest repository has such a file
        raise HubError(f"the repository names a file that would lie outside its folder: {error}") from error


class _Pull:
    def __init__(self, hub: Hub, wanted: Wanted, claimed: Staging) -> None:
        self._hub = hub
        self._wanted = wanted
        self._staging = claimed
        self._paths: set[str] = set()
        self._unverified: list[str] = []
        self._received = 0

    def run(self, *, is_quiet: bool) -> PullReport:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

        wanted, folder = self._wanted, self._staging.folder
        main = self._hub.repository(wanted.repository, wanted.revision)
        onnx = main
        if not wanted.is_one_repository:
            onnx = self._hub.repository(wanted.onnx_repository, wanted.onnx_revision)
        source = wanted.source(main.commit, onnx.commit)
        if (report := _found(folder, wanted, source)) is not None:
            return report
        graph = choose_graph(onnx, wanted.graph)
        check_usable(main, graph, weights=wanted.weights)
        with tqdm(total=0, unit="B", unit_scale=True, desc=folder.name, disable=is_quiet, file=sys.stderr) as bar:
            at_the_root = files_of_a_model(main.files, None)
            self._fetch(main, at_the_root, bar)
            if wanted.weights or graph is None:
                weights = weights_of(main.files) or WEIGHTS
                self._fetch(main, [weights], bar)
                if weights != WEIGHTS:
                    self._fetch(main, shards_of(self._staging.files), bar)
            with_modules = files_of_a_worker(self._staging.files / MODULES, main.files)
            self._fetch(main, [file for file in with_modules if file not in at_the_root], bar)
            if graph is not None:
                self._fetch(onnx, [graph], bar)
                self._fetch(onnx, external_data(self._staging.files / graph, graph, onnx.files), bar)
        self._take_over_other_files(source)
        self._staging.keep_only(self._paths)
        manifest = Manifest.of_folder(
            self._staging.files, name=folder.name, source=source, license=main.license or wanted.license or "not stated"
        )
        manifest.write(self._staging.files)
        self._keep_what_is_not_ours()
        self._staging.put_in_place()
        return _report(folder, manifest, graph, received=self._received, notes=self._notes(graph, manifest))

    def _fetch(self, repository: Repository, paths: Iterable[str], bar: Any) -> None:
        """Get files of a repository, each from the network, an interrupted pull or the folder that is replaced."""
        files = [self._hub.describe(repository, _inside(path)) for path in paths]
        missing = [file for file in files if not self._is_there(file.path, file)]
        size = sum(file.size or 0 for file in missing)
        bar.total += size
        bar.refresh()
        self._check_space(size)
        for file in missing:
            self._hub.fetch(file, self._staging.files / file.path, bar)
            self._received += file.size or 0
        self._paths.update(file.path for file in files)
        self._unverified.extend(file.path for file in files if not is_verifiable(file))

    def _is_there(self, path: str, file: RemoteFile) -> bool:
        if not is_verifiable(file):
            return False
        staged = self._staging.files / path
        if staged.is_file() and matches(staged, file):
            return True
        there = self._staging.folder / path
        if there.is_file() and matches(there, file):
            self._staging.take_over(path)
            return True
        return False

    def _check_space(self, size: int) -> None:
        parent = self._staging.folder.parent
        free = shutil.disk_usage(parent).free
        if size > free:
            raise PullError(f"{parent} has {free / 1e6:.0f} MB free, and {size / 1e6:.0f} MB are needed: make room")

    def _take_over_other_files(self, source: str) -> None:
        """Keep what the folder has besides, other variants for instance, if it is from the same commit."""
        folder = self._staging.folder
        manifest = _manifest_of(folder, source)
        for path, record in manifest.files.items() if manifest is not None else ():
            if path not in self._paths and (folder / path).is_file() and file_sha256(folder / path) == record.sha256:
                self._staging.take_over(path)
                self._paths.add(path)

    def _keep_what_is_not_ours(self) -> None:
        """Keep every file of the folder that no pull wrote: a user's own notes, settings or graphs.

        Raises:
            PullError: One of them is where a file of the model belongs.
        """
        folder = self._staging.folder
        try:
            manifest = Manifest.read(folder)
        except ManifestError:
            manifest = None
        ours = {MANIFEST_NAME, *(manifest.files if manifest is not None else ())}
        for path in self._staging.others(ours):
            if path not in self._paths:
                self._staging.take_over(path)
            elif file_sha256(folder / path) != file_sha256(self._staging.files / path):
                raise PullError(f"{folder / path} is not from a pull, and stands where the model has a file: move it")

    def _notes(self, graph: str | None, manifest: Manifest) -> Iterable[str]:
        folder = self._staging.folder
        if self._unverified:
            yield f"Not verified, because the server gives no hash: {', '.join(self._unverified)}"
        if graph is None:
            # The licence is what a stranger wrote into a model card, and this is a line to be copied into a shell.
            quoted = [shlex.quote(part) for part in (str(folder), manifest.source, manifest.license)]
            options = f"--source {quoted[1]} --license {quoted[2]}"
            yield f"It has no ONNX graph; make one of its weights: embed-worker export {quoted[0]} {options}"
            return
        try:
            read_model_folder(folder, ModelOptions(onnx_file=graph))
        except ModelError as error:
            yield f"To be served, it needs an option: {error}"
