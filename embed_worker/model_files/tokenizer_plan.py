"""How a folder's tokenizer is built: tokenizer.json, and what tokenizer_config.json and the class make of it.

It compares what the class builds with what the file says, and names only what differs: a folder whose files agree is
read as it lies there. Nothing here imports the package `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from embed_worker.model_files.tokenizer_builds import BUILDS, Build, SettingError, Template, template_of_flags
from embed_worker.model_files.tokenizer_classes import FROM_THE_JSON, IN_PYTHON, builder_of
from embed_worker.model_files.tokenizer_sections import changed_sections, kind_of, mentions, steps_of, template_of

# A token with its `content`, `single_word`, `lstrip`, `rstrip`, `normalized` and `special`.
Token: TypeAlias = dict[str, Any]

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerError(ValueError):
    """The files of a tokenizer cannot be followed; the message completes "the model folder X"."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes:
        file: tokenizer.json or vocab.txt.
        document: tokenizer.json; a document without vocabulary for vocab.txt.
        config: tokenizer_config.json.
        overrides: `processor_kwargs` of the sentence-transformers files, which win over it.
        special_tokens_map, added_tokens: The files of these names, which older versions wrote.
        model_type, tokenizer_class: Of config.json.
    """

    file: Path
    document: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    model_type: str | None
    tokenizer_class: str | None

    @property
    def settings(self) -> dict[str, Any]:
        """What the constructor gets: bos and eos are left to tokenizer.json, where there is one."""
        config = dict(self.config)
        if self.file.name == "tokenizer.json":
            config.pop("add_bos_token", None)
            config.pop("add_eos_token", None)
        return config | dict(self.overrides)


def plan_tokenizer(files: TokenizerFiles) -> TokenizerPlan:
    """Decide how to make a tokenizer.

    Raises:
        TokenizerError: The class is written in Python or not known here, or takes another kind of vocabulary.
    """
    builder = _builder(files)
    settings, own, tokens = _merged(files)
    named = _named_tokens(settings, own, tokens)
    build = None if builder == FROM_THE_JSON else _build(files, settings | named, builder)
    if build is not None:
        named = {**build.special, **named}
    extra = _extra_tokens(settings, build)
    splits_special = _splits_special(settings)
    with_names = (_marked(named[name]) for name in sorted(named, key=_place) if named[name] is not None)
    special = [*with_names, *extra]
    ordered = _ordered(files, build, tokens, special)
    if builder == "Qwen2Tokenizer":  # which adds every special token once more, without its flags
        ordered += [_special(_content(token)) for token in special]
    if splits_special:  # all that the mark of a special token is read for
        ordered = _marked_by_name(ordered, named)
    same_tokens = build is None or _ids(_vocabulary(files), ordered) == _ids_of_the_file(files) == _ids_as_read(files)
    padding, truncation = (files.document.get(name) or {} for name in ("padding", "truncation"))
    return TokenizerPlan(
        file=files.file,
        builder=builder,
        sections=dict(changed_sections(files.document, build)),
        template=_template(files, settings, build, named),
        keeps_tokens=build is None or same_tokens,
        tokens=tuple(_missing(files, ordered) if build is None else () if same_tokens else ordered),
        special=tuple(dict.fromkeys(_content(token) for token in special)),
        named={name: _content(token) for name, token in named.items() if token is not None},
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


def _merged(files: TokenizerFiles) -> tuple[dict[str, Any], dict[str, Any], dict[int, Token]]:
    """Return what the constructor gets, the special tokens of names that no other model has, and the added tokens.

    special_tokens_map.json counts where tokenizer_config.json does not list the added tokens itself: with each of its
    keys, whatever they say.

    Reference: transformers 5, `PreTrainedTokenizerBase._from_pretrained`.
    """
    settings = files.settings
    _rename_extra(settings, is_there=bool(settings.get("extra_special_tokens")))
    own = _own_tokens(settings) | _extra_by_name(settings)
    for name in own:
        settings.pop(name, None)  # so that those of the map come first
    if isinstance(decoder := settings.get("added_tokens_decoder"), dict):
        return settings, own, {int(index): _token(token) for index, token in decoder.items()}
    _merge_map(settings, files)
    own = _own_tokens(settings) | own | _extra_by_name(settings)
    tokens: dict[int, Token] = {}
    special = {_content(settings[name]) for name in NAMED_TOKENS if settings.get(name)}
    special |= {_content(token) for token in settings.get("extra_special_tokens") or []}
    for content, index in files.added_tokens.items():
        is_special = content in special
        tokens[index] = _token({"content": content, "normalized": not is_special, "special": is_special})
    for token in files.document.get("added_tokens") or []:
        tokens[token["id"]] = _token(token)
    return settings, own, tokens


def _named_tokens(settings: Mapping[str, Any], own: Mapping[str, Any], tokens: Mapping[int, Token]) -> dict[str, Any]:
    """Return the special tokens that have a name, by it, as they were added."""
    named = {name: settings[name] for name in NAMED_TOKENS if name in settings} | dict(own)
    _check_tokens(named)
    by_content = {token["content"]: token for token in tokens.values()}
    return {name: value and by_content.get(_content(value), value) for name, value in named.items()}


def _extra_tokens(settings: Mapping[str, Any], build: Build | None) -> list[Any]:
    """Return the further special tokens: an empty list and null say that there are none."""
    if "extra_special_tokens" in settings:
        extra = settings["extra_special_tokens"] or []
    elif build is not None and build.extra is not None:
        extra = build.extra
    else:
        extra = settings.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        raise TokenizerError("has further special tokens in its tokenizer's configuration that are no list")
    if any(not isinstance(token, str) and not _is_token(token) for token in extra):
        raise TokenizerError(
            "has further special tokens in its tokenizer's configuration that are neither strings nor marked as tokens"
        )
    return extra


def _splits_special(settings: Mapping[str, Any]) -> bool:
    splits = settings.get("split_special_tokens", False)
    if not isinstance(splits, bool):
        raise TokenizerError(
            "has a split_special_tokens in its tokenizer's configuration that is neither true nor false"
        )
    return splits


def _rename_extra(settings: dict[str, Any], *, is_there: bool) -> None:
    """Take the older name of the further special tokens where the newer one is not there."""
    if "additional_special_tokens" in settings and not is_there:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")


def _own_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the special tokens of names that no other model has."""
    return {key: value for key, value in settings.items() if _is_own_token(key, value)}


def _extra_by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out the further special tokens where they have names."""
    named = isinstance(settings.get("extra_special_tokens"), dict)
    return dict(settings.pop("extra_special_tokens")) if named else {}


def _merge_map(settings: dict[str, Any], files: TokenizerFiles) -> None:
    """Let special_tokens_map.json win over tokenizer_config.json, and not over what sentence-transformers passes."""
    for key, value in files.special_tokens_map.items():
        if files.overrides.get(key):
            continue
        if key == "extra_special_tokens" and isinstance(value, list):
            merged = list(settings.get(key) or [])
            merged += [token for token in map(_marked, value) if token not in merged]
            settings[key] = merged
        else:
            settings[key] = _marked(value)


def _marked(token: Any) -> Any:
    return (
        {**token, "special": True, "__type": "AddedToken"} if isinstance(token, dict) and "content" in token else token
    )


def _check_tokens(named: Mapping[str, Any]) -> None:
    for name, value in named.items():
        if not (value is None or isinstance(value, str) or _is_token(value)):
            raise TokenizerError(f"has a {name} in tokenizer_config.json that is not a token")


def _place(name: str) -> int:
    return NAMED_TOKENS.index(name) if name in NAMED_TOKENS else len(NAMED_TOKENS)


def _is_own_token(key: str, value: Any) -> bool:
    return key.endswith("_token") and key not in NAMED_TOKENS and (isinstance(value, str) or _is_token(value))


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and "content" in value and value.get("__type") == "AddedToken"


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _token(token: Mapping[str, Any]) -> Token:
    """Fill in what an added token leaves unsaid: a special one is found before the text is normalised."""
    is_special = token.get("special") is True
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not is_special, "special": False}
    stated = {key: value for key, value in token.items() if key in _FLAGS and value is not None}
    full = usual | stated
    return {key: full[key] for key in _FLAGS}


def _special(content: str, *, lstrip: bool = False) -> Token:
    return _token({"content": content, "special": True, "lstrip": lstrip})


def _ordered(files: TokenizerFiles, build: Build | None, tokens: dict[int, Token], special: list[Any]) -> list[Token]:
    """Return the tokens in the order in which the constructor adds them."""
    ordered = [token for _, token in sorted(tokens.items())]
    contents = {token["content"] for token in ordered}
    if build is None:
        contents |= {_content(token) for token in files.document.get("added_tokens") or []}
    mask = None if build is None or not build.mask_strips else build.special.get("mask_token")
    for token in special:
        content = _content(token)
        found = _token(token) if isinstance(token, dict) else _special(content, lstrip=content == mask)
        if content not in contents and found not in ordered:
            ordered.append(found)  # of two forms of one token the last stays
    return ordered


def _marked_by_name(tokens: list[Token], named: Mapping[str, Any]) -> list[Token]:
    """Mark as special what has a name, whatever its own entry says."""
    names = {_content(token) for token in named.values() if token is not None}
    return [{**token, "special": token["special"] or token["content"] in names} for token in tokens]


def _missing(files: TokenizerFiles, ordered: list[Token]) -> list[Token]:
    """Leave out what tokenizer.json has in the same form."""
    there = [_token(token) for token in files.document.get("added_tokens") or []]
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
    return _ids(_vocabulary(files), [_token(token) for token in files.document.get("added_tokens") or []])


def _ids_of_the_file(files: TokenizerFiles) -> dict[int, Token]:
    return {token["id"]: _token(token) for token in files.document.get("added_tokens") or []}


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
    return None if token is None else _content(token)


def _side(settings: Mapping[str, Any], name: str, saved: Mapping[str, Any], *, pads_left: bool = False) -> bool:
    side = settings.get(name)
    if side is None and name not in settings:
        side = str(saved.get("direction", "left" if pads_left else "right")).lower()
    if side not in ("left", "right"):
        raise TokenizerError(f"has a {name} in tokenizer_config.json that is neither left nor right")
    return bool(side == "left")


# What the class builds against what the file says ------------------------------------------------------------------


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
