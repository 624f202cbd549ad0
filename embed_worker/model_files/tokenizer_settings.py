"""What the files of a tokenizer say: the settings and tokens that the constructor of its class gets, merged.

Reference: transformers 5, `PreTrainedTokenizerBase._from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

# A token with its `content`, `single_word`, `lstrip`, `rstrip`, `normalized` and `special`.
Token: TypeAlias = dict[str, Any]

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerError(ValueError):
    """The files of a tokenizer cannot be followed; the message completes "the model folder X"."""


class SettingError(ValueError):
    """A setting is of a type or a value that the class does not take; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes:
        file: tokenizer.json or vocab.txt.
        document: tokenizer.json; a document without vocabulary for vocab.txt.
        config: tokenizer_config.json.
        overrides: `processor_kwargs` of the sentence-transformers files, which win over it.
        special_tokens_map, added_tokens: The files of these names, which older versions wrote.
        model_type, tokenizer_class, transformers_version: Of config.json.
    """

    file: Path
    document: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    model_type: str | None
    tokenizer_class: str | None
    transformers_version: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the constructor gets: bos and eos are left to tokenizer.json, where there is one."""
        config = dict(self.config)
        if self.file.name == "tokenizer.json":
            config.pop("add_bos_token", None)
            config.pop("add_eos_token", None)
        return config | dict(self.overrides)


def merged_settings(files: TokenizerFiles) -> tuple[dict[str, Any], dict[str, Any], dict[int, Token]]:
    """Return what the constructor gets, the special tokens of names that no other model has, and the added tokens.

    special_tokens_map.json counts where tokenizer_config.json does not list the added tokens itself: with each of its
    keys, whatever they say.
    """
    settings = files.settings
    _rename_extra(settings, is_there=bool(settings.get("extra_special_tokens")))
    own = _own_tokens(settings) | _extra_by_name(settings)
    for name in own:
        settings.pop(name, None)  # so that those of the map come first
    if isinstance(decoder := settings.get("added_tokens_decoder"), dict):
        return settings, own, {int(index): full_token(token) for index, token in decoder.items()}
    _merge_map(settings, files)
    own = _own_tokens(settings) | own | _extra_by_name(settings)
    tokens: dict[int, Token] = {}
    special = {content_of(settings[name]) for name in _NAMED_TOKENS if settings.get(name)}
    special |= {content_of(token) for token in settings.get("extra_special_tokens") or []}
    for content, index in files.added_tokens.items():
        is_special = content in special
        tokens[index] = full_token({"content": content, "normalized": not is_special, "special": is_special})
    for token in files.document.get("added_tokens") or []:
        tokens[token["id"]] = full_token(token)
    return settings, own, tokens


def named_tokens(settings: Mapping[str, Any], own: Mapping[str, Any], tokens: Mapping[int, Token]) -> dict[str, Any]:
    """Return the special tokens that have a name, by it, as they were added.

    Raises:
        TokenizerError: One is no token.
    """
    named = {name: settings[name] for name in _NAMED_TOKENS if name in settings} | dict(own)
    _check_tokens(named)
    by_content = {token["content"]: token for token in tokens.values()}
    return {name: value and by_content.get(content_of(value), value) for name, value in named.items()}


def extra_tokens(settings: Mapping[str, Any], of_class: list[Any] | None) -> list[Any]:
    """Return the further special tokens: an empty list and null say that there are none.

    Args:
        settings: Merged.
        of_class: What the class makes of `additional_special_tokens`, if it makes anything of them.

    Raises:
        TokenizerError: They are no list of tokens.
    """
    if "extra_special_tokens" in settings:
        extra = settings["extra_special_tokens"] or []
    elif of_class is not None:
        extra = of_class
    else:
        extra = settings.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        raise TokenizerError("has further special tokens in its tokenizer's configuration that are no list")
    if any(not isinstance(token, str) and not _is_token(token) for token in extra):
        raise TokenizerError(
            "has further special tokens in its tokenizer's configuration that are neither strings nor marked as tokens"
        )
    return extra


def splits_special_tokens(settings: Mapping[str, Any]) -> bool:
    """Return whether special tokens inside a text are text.

    Raises:
        TokenizerError: What says so is no boolean.
    """
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
            merged += [token for token in map(marked, value) if token not in merged]
            settings[key] = merged
        else:
            settings[key] = marked(value)


def marked(token: Any) -> Any:
    """Mark an object as a special token; a string is one."""
    return (
        {**token, "special": True, "__type": "AddedToken"} if isinstance(token, dict) and "content" in token else token
    )


def _check_tokens(named: Mapping[str, Any]) -> None:
    for name, value in named.items():
        if not (value is None or isinstance(value, str) or _is_token(value)):
            raise TokenizerError(f"has a {name} in tokenizer_config.json that is not a token")


def place_of(name: str) -> int:
    """Return where among the special tokens the one of a name is added."""
    return _NAMED_TOKENS.index(name) if name in _NAMED_TOKENS else len(_NAMED_TOKENS)


def _is_own_token(key: str, value: Any) -> bool:
    return key.endswith("_token") and key not in _NAMED_TOKENS and (isinstance(value, str) or _is_token(value))


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and "content" in value and value.get("__type") == "AddedToken"


def content_of(token: Any) -> str:
    """Return what a token stands for in a text."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def full_token(token: Mapping[str, Any]) -> Token:
    """Fill in what an added token leaves unsaid: a special one is found before the text is normalised."""
    is_special = token.get("special") is True
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not is_special, "special": False}
    stated = {key: value for key, value in token.items() if key in _FLAGS and value is not None}
    full = usual | stated
    return {key: full[key] for key in _FLAGS}


def token_of(settings: Mapping[str, Any], name: str, default: str | None) -> str:
    """Return a named special token as a string; it may be written as an object.

    Raises:
        SettingError: It is null.
    """
    value = settings.get(name, default)
    if value is None:
        raise SettingError(f"{name} that is null")
    return str(value["content"] if isinstance(value, dict) else value)


def flag_of(settings: Mapping[str, Any], name: str, default: bool | None) -> bool | None:
    """Return a setting that the tokenizer takes as it is: no number, and null only where that is the default."""
    value = settings.get(name, default)
    if isinstance(value, bool) or (value is None and default is None):
        return value
    raise SettingError(f"{name} that is neither true nor false")
