"""How a folder's tokenizer is built: tokenizer.json, and what tokenizer_config.json and the class make of it.

It compares what the class builds with what the file says, and names only what differs: a folder whose files agree is
read as it lies there. Nothing here imports the package `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embed_worker.model_files.tokenizer_builds import BUILDS, Build, Template, template_of_flags
from embed_worker.model_files.tokenizer_classes import FROM_THE_JSON, IN_PYTHON, builder_of
from embed_worker.model_files.tokenizer_sections import (
    changed_sections,
    kind_of,
    mentions,
    steps_of,
    template_of,
    with_mistral_split,
)
from embed_worker.model_files.tokenizer_settings import (
    SettingError,
    Token,
    TokenizerError,
    TokenizerFiles,
    content_of,
    extra_tokens,
    full_token,
    marked,
    merged_settings,
    named_tokens,
    place_of,
    splits_special_tokens,
)

# Mistral's models that were published with a wrong pattern, in vocabularies of more tokens than this.
_MISTRALS = frozenset(["mistral", "mistral3", "voxtral", "ministral", "pixtral"])
_LARGE, _FIXED_IN = 100_000, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerPlan:
    """How to make the tokenizer.

    Attributes:
        file: tokenizer.json, or the vocabulary of a WordPiece tokenizer where there is none.
        builder: The class of transformers whose constructor is followed.
        sections: What stands in place of `normalizer`, `pre_tokenizer` and members of `model` in tokenizer.json.
        template: Names of special tokens, None for the text; None where the post-processor of tokenizer.json stays.
        keeps_tokens: Whether the added tokens of tokenizer.json stay.
        tokens: What is added then, in order.
        special: Every special token.
        named: Those that have a name, by it.
        splits_special: Special tokens inside a text are text.
        pad_token: None where none is named.
        pad_left, truncate_left: On which side a text is padded and cut.
        sets_types: Whether the model would be given token types other than 0, which no graph is given here.
        saved_limit: Where tokenizer.json cuts by itself, if that counts: in a StaticEmbedding.
        limits: What the settings say of the longest text, `model_max_length` and its older name.
    """

    file: Path
    builder: str = FROM_THE_JSON
    sections: Mapping[str, Any]
    template: Template | None = None
    keeps_tokens: bool = True
    tokens: tuple[Token, ...] = ()
    special: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    splits_special: bool = False
    pad_token: str | None = None
    pad_left: bool = False
    truncate_left: bool = False
    sets_types: bool = False
    saved_limit: int | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drops_dropout(self) -> bool:
        """Whether merges of a BPE would be left out at random, as in training, and are not."""
        return "dropout" in self.sections.get("model", {})

    @property
    def shape(self) -> dict[str, Any]:
        """What differs from tokenizer.json, and so shapes vectors: for the fingerprint. Empty where nothing does."""
        changed: dict[str, Any] = dict(self.sections)
        if self.template is not None:
            changed["post_processor"] = list(self.template)
        if self.tokens:
            changed["tokens"] = [list(token.values()) for token in self.tokens]
        if self.splits_special:
            changed["splits_special"] = True
        return changed


def plan_tokenizer(files: TokenizerFiles) -> TokenizerPlan:
    """Decide how to make a tokenizer.

    Raises:
        TokenizerError: The class is written in Python or not known here, or takes another kind of vocabulary.
    """
    builder = _builder(files)
    settings, own, tokens = merged_settings(files)
    named = named_tokens(settings, own, tokens)
    build = None if builder == FROM_THE_JSON else _build(files, settings | named, builder)
    if build is not None:
        named = {**build.special, **named}
    extra = extra_tokens(settings, None if build is None else build.extra)
    splits_special = splits_special_tokens(settings)
    with_names = (marked(named[name]) for name in sorted(named, key=place_of) if named[name] is not None)
    special = [*with_names, *extra]
    ordered = _ordered(files, build, tokens, special)
    if builder == "Qwen2Tokenizer":  # which adds every special token once more, without its flags
        ordered += [_special(content_of(token)) for token in special]
    if splits_special:  # all that the mark of a special token is read for
        ordered = _marked_by_name(ordered, named)
    same_tokens = build is None or _ids(_vocabulary(files), ordered) == _ids_of_the_file(files) == _ids_as_read(files)
    padding, truncation = (files.document.get(name) or {} for name in ("padding", "truncation"))
    return TokenizerPlan(
        file=files.file,
        builder=builder,
        sections=_sections(files, settings, build, ordered),
        template=_template(files, settings, build, named),
        keeps_tokens=build is None or same_tokens,
        tokens=tuple(_missing(files, ordered) if build is None else () if same_tokens else ordered),
        special=tuple(dict.fromkeys(content_of(token) for token in special)),
        named={name: content_of(token) for name, token in named.items() if token is not None},
        splits_special=splits_special,
        pad_token=_pad_token(named, padding),
        pad_left=_side(settings, "padding_side", padding, pads_left=build is not None and build.pads_left),
        truncate_left=_side(settings, "truncation_side", truncation),
        limits={name: settings[name] for name in ("model_max_length", "max_len") if name in settings},
        sets_types=build is None and _sets_types(files.document.get("post_processor"), settings),
    )


def _builder(files: TokenizerFiles) -> str:
    declared = files.config.get("tokenizer_class") or files.tokenizer_class
    is_byte_level = any(
        mentions(files.document.get(section), "ByteLevel")
        for section in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    builder = builder_of(files.model_type, declared if isinstance(declared, str) else None, is_byte_level=is_byte_level)
    if builder == IN_PYTHON:
        raise TokenizerError(f"has a tokenizer of the class {declared}, which is a program and not in tokenizer.json")
    if builder != FROM_THE_JSON and builder not in BUILDS:
        raise TokenizerError(
            f"has a tokenizer of the class {declared or builder}, and what transformers 5 builds for it is not known "
            "here: --ignore-config tokenizer_class takes tokenizer.json as it is"
        )
    return builder


def _build(files: TokenizerFiles, settings: Mapping[str, Any], builder: str) -> Build | None:
    model = files.document.get("model")
    if not isinstance(model, dict):
        return None  # what is wrong with the file is told when it is read
    try:
        build = BUILDS[builder](settings, model.get("vocab"), _charsmap(files.document.get("normalizer")))
    except SettingError as error:
        raise TokenizerError(
            f"has in its tokenizer's configuration a setting {error}, which {builder} cannot take"
        ) from error
    kind = kind_of(model)
    if kind != build.kind:
        raise TokenizerError(
            f"has a tokenizer.json of the kind {kind} and a tokenizer of the class {builder}, which is {build.kind}: "
            "--ignore-config tokenizer_class takes tokenizer.json as it is"
        )
    return build


def _charsmap(normalizer: Any) -> str | None:
    steps = steps_of(normalizer, "normalizers")
    return next((step.get("precompiled_charsmap") for step in steps if step.get("type") == "Precompiled"), None)


# Special and added tokens ------------------------------------------------------------------------------------------


def _special(content: str, *, lstrip: bool = False) -> Token:
    return full_token({"content": content, "special": True, "lstrip": lstrip})


def _ordered(files: TokenizerFiles, build: Build | None, tokens: dict[int, Token], special: list[Any]) -> list[Token]:
    """Return the tokens in the order in which the constructor adds them."""
    ordered = [token for _, token in sorted(tokens.items())]
    contents = {token["content"] for token in ordered}
    if build is None:
        contents |= {content_of(token) for token in files.document.get("added_tokens") or []}
    mask = None if build is None or not build.mask_strips else build.special.get("mask_token")
    for token in special:
        content = content_of(token)
        found = full_token(token) if isinstance(token, dict) else _special(content, lstrip=content == mask)
        if content not in contents and found not in ordered:
            ordered.append(found)  # of two forms of one token the last stays
    return ordered


def _marked_by_name(tokens: list[Token], named: Mapping[str, Any]) -> list[Token]:
    """Mark as special what has a name, whatever its own entry says."""
    names = {content_of(token) for token in named.values() if token is not None}
    return [{**token, "special": token["special"] or token["content"] in names} for token in tokens]


def _missing(files: TokenizerFiles, ordered: list[Token]) -> list[Token]:
    """Leave out what tokenizer.json has in the same form."""
    there = [full_token(token) for token in files.document.get("added_tokens") or []]
    return [token for token in ordered if token not in there]


def _vocabulary(files: TokenizerFiles) -> Mapping[str, int]:
    vocabulary = (files.document.get("model") or {}).get("vocab")
    if isinstance(vocabulary, list):
        return {entry[0]: index for index, entry in enumerate(vocabulary)}
    return vocabulary if isinstance(vocabulary, dict) else {}


def _ids(vocabulary: Mapping[str, int], tokens: list[Token]) -> dict[int, Token]:
    """Return tokens by the ids that the package `tokenizers` gives them: their own of the vocabulary, or the next."""
    found: dict[int, Token] = {}
    known: dict[str, int] = {}
    following = len(vocabulary)
    for token in tokens:
        index = known.get(token["content"], vocabulary.get(token["content"]))
        if index is None:
            index, following = following, following + 1
        known[token["content"]] = index
        found[index] = token
    return found


def _ids_as_read(files: TokenizerFiles) -> dict[int, Token]:
    """Return the added tokens of tokenizer.json by the ids that they get by their order there."""
    return _ids(_vocabulary(files), [full_token(token) for token in files.document.get("added_tokens") or []])


def _ids_of_the_file(files: TokenizerFiles) -> dict[int, Token]:
    return {token["id"]: full_token(token) for token in files.document.get("added_tokens") or []}


def _sets_types(processor: Any, settings: Mapping[str, Any]) -> bool:
    """Return whether a text alone has tokens of another type than 0, and the model is given types at all."""
    if isinstance(processor, dict) and processor.get("type") == "Sequence":
        return any(_sets_types(step, settings) for step in processor.get("processors") or [])
    if not isinstance(processor, dict) or "token_type_ids" not in settings.get("model_input_names", ["token_type_ids"]):
        return False
    pieces = processor.get("single") if processor.get("type") == "TemplateProcessing" else None
    return any(part.get("type_id") for piece in pieces or [] for part in piece.values())


def _pad_token(named: Mapping[str, Any], padding: Mapping[str, Any]) -> str | None:
    token = named["pad_token"] if "pad_token" in named else padding.get("pad_token")
    return None if token is None else content_of(token)


def _side(settings: Mapping[str, Any], name: str, saved: Mapping[str, Any], *, pads_left: bool = False) -> bool:
    side = settings.get(name)
    if side is None and name not in settings:
        side = str(saved.get("direction", "left" if pads_left else "right")).lower()
    if side not in ("left", "right"):
        raise TokenizerError(f"has a {name} in tokenizer_config.json that is neither left nor right")
    return bool(side == "left")


# What the class builds against what the file says ------------------------------------------------------------------


def _sections(
    files: TokenizerFiles, settings: Mapping[str, Any], build: Build | None, tokens: list[Token]
) -> dict[str, Any]:
    """Return the sections that are not those of the file."""
    sections = dict(changed_sections(files.document, build))
    words = sections.get("pre_tokenizer", files.document.get("pre_tokenizer"))
    if settings.get("fix_mistral_regex") and isinstance(words, dict) and _is_old_mistral(files, tokens):
        sections["pre_tokenizer"] = with_mistral_split(words)
    return sections


def _is_old_mistral(files: TokenizerFiles, tokens: list[Token]) -> bool:
    """Return whether transformers 5 mends how the words are split, where it is asked to."""
    major, _, rest = (files.transformers_version or "0").partition(".")
    is_old = int(major) < _FIXED_IN or (int(major) == _FIXED_IN and rest.startswith(("0.0.dev", "0.0rc")))
    size = len({*_vocabulary(files), *(token["content"] for token in tokens)})
    return is_old and files.model_type in _MISTRALS and size > _LARGE


def _template(
    files: TokenizerFiles, settings: Mapping[str, Any], build: Build | None, named: Mapping[str, Any]
) -> Template | None:
    """Return the template where it is another than the file's."""
    told = [name for name in ("add_bos_token", "add_eos_token") if name in settings]
    has_own = files.document.get("post_processor") is not None
    template = None if build is None or (build.yields_template and (has_own or told)) else build.template
    if template is None and (told or not has_own):
        template = template_of_flags(settings, named)
    if template is None or template == template_of(files.document.get("post_processor")):
        return None
    return template
