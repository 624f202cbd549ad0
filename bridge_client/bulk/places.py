"""Where a job writes: what the output is, and what is refused before the work.

That is what could not be written after it, and what would destroy something: an input, or files that nobody has asked
to replace. Names are compared by the files that they mean, whatever their spelling.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge_client.bulk.job import OURS, parts_folder
from bridge_client.bulk.parts import Output, told
from bridge_client.bulk.rows import STDIN, CorpusError, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an output goes, what it is, and whether it is a folder of parts."""

    path: Path
    kind: Output
    is_folder: bool


def place_of(output: Path, stated: Output | None) -> Place:
    """Return what an output's name means; a link means what it leads to.

    Args:
        output: As given on the command line.
        stated: What it is; by default its suffix tells.

    Raises:
        CorpusError: It means nothing that could be written.
    """
    if str(output) == STDIN:
        raise CorpusError(
            f"an output appears whole, which standard output cannot: name a file, or a folder, instead of {output}"
        )
    path = _absolute(output)
    if os.path.islink(path) or path.name == "..":
        path = Path(os.path.realpath(path))
    if not path.name:
        raise CorpusError(f"{output} is no place for an output: name a file or a folder in it")
    suffix = output.suffix.lower().removeprefix(".")
    if suffix in set(Output):
        if stated is not None and stated != suffix:
            raise CorpusError(f"{output} ends in .{suffix}, and --output-format says {stated}")
        return Place(path=path, kind=Output(suffix), is_folder=False)
    if suffix and not os.path.isdir(output):
        raise CorpusError(f"{output} cannot be written: an output ends in {', '.join(f'.{each}' for each in Output)}")
    return Place(path=path, kind=stated or Output.PARQUET, is_folder=True)


def check_places(place: Place, sources: Sequence[Source], errors: Path | None) -> None:
    """Refuse before the work what could not be written after it, or would destroy an input.

    Args:
        place: Of the output.
        sources: What is read.
        errors: Where the rows without a vector are listed.

    Raises:
        CorpusError: It is refused.
    """
    _check_kind(place)
    inputs = [Path(source.path) for source in sources if source.path != STDIN]
    taken = (place.path, parts_folder(place.path))
    if any(_is_same(file, place.path) for file in inputs):
        raise CorpusError(f"{place.path} is an input, too")
    folders = {Path(os.path.realpath(file)).parent: file for file in inputs}
    folders |= {Path(os.path.realpath(file.parent)): file for file in inputs}  # where it is a link
    for folder, file in folders.items():
        if found := _holding(taken, folder):
            raise CorpusError(f"{found} has inputs in it, such as {file}: write to another place")
    if errors is None:
        return
    if str(errors) == STDIN:
        raise CorpusError("the rows without a vector go to a file: for standard error, name /dev/stderr")
    real = Path(os.path.realpath(_absolute(errors)))
    if not os.path.exists(real) and not os.path.isdir(real.parent):  # the devices of Windows are in no folder
        raise CorpusError(f"{errors} cannot be written: there is no such folder")
    if os.path.isdir(real):
        raise CorpusError(f"{errors} is a folder")
    if any(_is_same(file, real) for file in inputs):
        raise CorpusError(f"{errors} is an input, too: write the rows without a vector to another file")
    if found := _holding(taken, real):
        what = "is the output, too" if _is_same(found, real) else f"is in {found}, which is replaced"
        raise CorpusError(f"{errors} {what}: write the rows without a vector to another file")


def _check_kind(place: Place) -> None:
    """Refuse an output that cannot be put in its place by a rename, and parts that have no folder of their own."""
    output, parts = place.path, parts_folder(place.path)
    if place.is_folder and os.path.exists(output) and not os.path.isdir(output):
        raise CorpusError(f"{output} is there already and is no folder, which an output without a suffix is")
    if not place.is_folder and os.path.isdir(output):
        raise CorpusError(f"{output} is a folder")
    if not place.is_folder and os.path.exists(output) and not os.path.isfile(output):
        raise CorpusError(f"{output} is a pipe or a device, and an output is a file that appears whole")
    if os.path.ismount(output):
        raise CorpusError(f"{output} is a mount point, which cannot be replaced: name a place in it, or another")
    if os.path.lexists(parts) and (not os.path.isdir(parts) or os.path.islink(parts) or os.path.ismount(parts)):
        raise CorpusError(f"{parts} is not a folder of its own, and the parts go to this name: move it away")
    if place.kind in (Output.PARQUET, Output.ARROW) and not place.is_folder:
        try:
            str(output).encode()
        except UnicodeEncodeError:  # pyarrow does not open the parts there
            raise CorpusError(f"{output} cannot be written as {place.kind}, for its name is not UTF-8") from None


def refuse_existing(place: Place, *, is_overwriting: bool) -> None:
    """Refuse to replace what is there, unless that is asked for, and what can be no output.

    Raises:
        CorpusError: It is refused.
    """
    output, parts = place.path, parts_folder(place.path)
    if not os.path.exists(output):
        return
    if place.is_folder:
        with told(f"{output} cannot be read"):
            names = os.listdir(output)
        if others := [name for name in names if not name.startswith(OURS)]:
            raise CorpusError(f"{output} is there already, with other files than parts, such as {others[0]}")
        if not names:
            return
    if is_overwriting:
        return
    if os.path.exists(parts):
        raise CorpusError(
            f"{output} is there already, and so is {parts}: --overwrite goes on with these parts and replaces the "
            f"output, or remove the one that is not wanted"
        )
    raise CorpusError(f"{output} is there already: --overwrite replaces it")


def refuse_changed(sources: Sequence[Source], parts: Path) -> None:
    """Refuse to make an output of inputs that were written to while they were read.

    Raises:
        CorpusError: One is not as it was.
    """
    for source in sources:
        if source.path == STDIN:
            continue
        facts = None
        with suppress(OSError):
            facts = os.stat(source.path)
        if facts is None or (facts.st_size, facts.st_mtime_ns) != (source.size, source.modified_ns):
            raise CorpusError(f"{source.name} changed while it was read: remove {parts} and begin again")


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:
        raise CorpusError(
            f"the working directory is not there any more: go to another, or give all of {path}"
        ) from None


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two names mean one file, also where it is not there yet."""
    with suppress(OSError):
        return os.path.samefile(one, other)
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))


def _holding(folders: Sequence[Path], real: Path) -> Path | None:
    """Return the one that a path is, or is in."""
    return next((folder for folder in folders for each in (real, *real.parents) if _is_same(each, folder)), None)
