"""The sections of tokenizer.json, compared by what they do: files of different ages write the same thing otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from embed_worker.model_files.tokenizer_builds import Build, Template

_MISTRAL_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def kind_of(model: Mapping[str, Any]) -> str:
    """Return the type of a model; older files do not state it."""
    if isinstance(model.get("type"), str):
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def lacks_its_prefix(model: Mapping[str, Any]) -> bool:
    """Return whether merges of a BPE lack the prefix that they are said to have.

    The package `tokenizers` cuts it off unseen, perhaps within a character, which ends the process.
    """
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return False
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return any(isinstance(pair, list) and pair and not str(pair[-1]).startswith(prefix) for pair in pairs)


def mentions(section: Any, kind: str) -> bool:
    """Return whether a section has a step of a kind, at any depth."""
    if isinstance(section, dict):
        return section.get("type") == kind or any(mentions(value, kind) for value in section.values())
    return isinstance(section, list) and any(mentions(value, kind) for value in section)


def template_of(processor: Any) -> Template | None:
    """Return what a post-processor puts around a text; None where it is none that is known or sets token types."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return (None,)
        case {"type": "BertProcessing" | "RobertaProcessing", "sep": [str(sep), _], "cls": [str(cls), _]}:
            return (cls, None, sep)
        case {"type": "Sequence", "processors": list(steps)}:
            found = [step for step in map(template_of, steps) if step != (None,)]
            return (None,) if not found else found[0] if len(found) == 1 else None
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            return _template_of_pieces(pieces)
        case _:
            return None


def _template_of_pieces(pieces: list[Any]) -> Template | None:
    names: list[str | None] = []
    for piece in pieces:
        match piece:
            case {"SpecialToken": {"id": str(name), "type_id": 0}}:
                names.append(name)
            case {"Sequence": {"type_id": 0}}:
                names.append(None)
            case _:
                return None
    return tuple(names)


def changed_sections(document: Mapping[str, Any], build: Build | None) -> Iterator[tuple[str, Any]]:
    """Yield the sections of tokenizer.json that the class builds otherwise, each with what it builds."""
    if build is None:
        # Version 5 drops merges at random here, too; nobody who embeds wants that.
        if (document.get("model") or {}).get("dropout"):
            yield "model", {"dropout": None}
        return
    splits_at_spaces = _splits_at_spaces(document.get("pre_tokenizer")) and _splits_at_spaces(build.pre_tokenizer)
    for name, inner, wanted in (
        ("normalizer", "normalizers", build.normalizer),
        ("pre_tokenizer", "pretokenizers", build.pre_tokenizer),
    ):
        said = [_plain(step) for step in steps_of(document.get(name), inner)]
        if name == "normalizer" and splits_at_spaces:
            said = [step for step in said if not _joins_spaces(step)]  # nothing is left of spaces anyway
        if said != [_plain(step) for step in steps_of(wanted, inner)]:
            yield name, wanted
    model = document.get("model") or {}
    changed = {key: value for key, value in build.model.items() if _member(key, model.get(key)) != _member(key, value)}
    if changed:
        yield "model", changed


def _member(key: str, value: Any) -> Any:
    """Write a member of a model in one form: what is empty is not there, but an id may be 0."""
    if value in (None, "", False, 0) and key != "unk_id":
        return {"continuing_subword_prefix": "", "max_input_chars_per_word": 100}.get(key)
    return value


def steps_of(section: Any, inner: str) -> list[dict[str, Any]]:
    """Flatten sequences of steps."""
    if not isinstance(section, dict):
        return []
    if section.get("type") == "Sequence":
        return [step for part in section.get(inner) or [] for step in steps_of(part, inner)]
    return [section]


def _plain(step: Mapping[str, Any]) -> dict[str, Any]:
    """Write a step in one form: older files have other members, and offsets shape no vector."""
    plain = {key: value for key, value in step.items() if key not in ("trim_offsets", "str_rep")}
    if plain.get("type") == "Metaspace":
        if "prepend_scheme" not in plain:
            plain["prepend_scheme"] = "always" if plain.get("add_prefix_space", True) else "never"
        plain.pop("add_prefix_space", None)
        plain.setdefault("split", True)
    if plain.get("type") == "ByteLevel":
        plain.setdefault("use_regex", True)
    return plain


def _splits_at_spaces(section: Any) -> bool:
    return any(step.get("type") == "WhitespaceSplit" for step in steps_of(section, "pretokenizers"))


def _joins_spaces(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"} and step.get("content") == " "


def with_mistral_split(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pre-tokenizer that splits as Mistral meant it, as `fix_mistral_regex` asks.

    Reference: transformers 5, `TokenizersBackend._patch_mistral_regex`.
    """
    if section.get("type") == "Sequence":
        rest = list(section["pretokenizers"][1:])
    else:
        bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        rest = [bytes_alone if section.get("type") == "Metaspace" else section]
    split = {"type": "Split", "pattern": {"Regex": _MISTRAL_SPLIT}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, *rest]}
