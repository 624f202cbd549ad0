"""The files of a folder's tokenizer and chat template, found and read; `tokenizer_plan` decides what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed_worker.model_files.folder_files import FolderFiles, ignore_hint
from embed_worker.model_files.plan import ChatPlan
from embed_worker.model_files.tokenizer_classes import FROM_THE_JSON
from embed_worker.model_files.tokenizer_plan import TokenizerPlan, plan_tokenizer
from embed_worker.model_files.tokenizer_sections import lacks_its_prefix, template_of
from embed_worker.model_files.tokenizer_settings import TokenizerError, TokenizerFiles
from embed_worker.model_files.transformer_module import TransformerConfig

_TOKENIZER, _WORD_PIECES = "tokenizer.json", "vocab.txt"

# Templates that read the content of a message as a list of parts. Reference: sentence-transformers, `InputFormatter`.
_STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
_FLAT_MODELS = ("apertus", "deepseek_v3", "gpt_oss", "seed_oss")


def read_tokenizer(
    files: FolderFiles,
    head: str,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    model_config: Mapping[str, Any],
    *,
    is_static: bool,
) -> TokenizerPlan:
    """Read what the tokenizer is made of.

    Args:
        files: The folder.
        head: The prefix of the head's files.
        config: tokenizer_config.json.
        overrides: `processor_kwargs`, which win over it.
        model_config: config.json.
        is_static: A StaticEmbedding reads tokenizer.json and nothing else.

    Raises:
        ModelError: A file is missing or damaged, or what it asks for is not known.
    """
    if any(str(name) != _TOKENIZER for name in config.get("fast_tokenizer_files") or []):
        raise files.error(f"has tokenizers for several versions of transformers: {ignore_hint('fast_tokenizer_files')}")
    name = _TOKENIZER if (files.folder / head / _TOKENIZER).exists() else _WORD_PIECES
    file = files.folder / head / name
    files.check(file)
    if name == _WORD_PIECES and (is_static or not file.is_file()):
        others = sorted(path.name for path in (files.folder / head).glob(f"*{_TOKENIZER}"))
        way_out = (
            f"rename {others[0]}"
            if len(others) == 1
            else ("`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers makes one")
        )
        raise files.undecided(f"has no {head}{_TOKENIZER}: {way_out}")
    document = files.read_object(head + _TOKENIZER) if name == _TOKENIZER else {"model": {"type": "WordPiece"}}
    if is_static:
        return _checked(files, document, _static(file, document))
    if _names_a_program(config.get("auto_map")):
        raise files.error(
            "has a tokenizer that is a program (auto_map of tokenizer_config.json), which is not run: "
            f"{ignore_hint('auto_map')}"
        )
    found = TokenizerFiles(
        file=file,
        document=document,
        config=config,
        overrides=overrides,
        special_tokens_map=files.read_object(f"{head}special_tokens_map.json"),
        added_tokens=files.read_object(f"{head}added_tokens.json"),
        model_type=_text(model_config.get("model_type")),
        tokenizer_class=_text(model_config.get("tokenizer_class")),
        transformers_version=_text(model_config.get("transformers_version")),
    )
    try:
        plan = plan_tokenizer(found)
    except TokenizerError as error:
        raise files.error(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise files.error(f"has a tokenizer_config.json that {_TOKENIZER} cannot be read with: {error!r}") from error
    _warn(files, found, plan)
    return _checked(files, document, plan)


def _checked(files: FolderFiles, document: Mapping[str, Any], plan: TokenizerPlan) -> TokenizerPlan:
    """Refuse what would end the process while it is read; all else that is wrong is told then."""
    model = document.get("model")
    if isinstance(model, dict) and lacks_its_prefix({**model, **plan.sections.get("model", {})}):
        raise files.error(f"has a {_TOKENIZER} with merges that lack its continuing_subword_prefix")
    return plan


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _names_a_program(auto_map: object) -> bool:
    """Return whether a tokenizer has code of its own; the oldest files have a list in place of the object."""
    return bool(auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map)


def _static(file: Any, document: Mapping[str, Any]) -> TokenizerPlan:
    """A table's tokenizer is tokenizer.json as it lies there, also where it cuts a text."""
    truncation = document.get("truncation") or {}
    is_left = str(truncation.get("direction")).lower() == "left"
    return TokenizerPlan(file=file, sections={}, truncate_left=is_left, saved_limit=truncation.get("max_length"))


def _warn(files: FolderFiles, found: TokenizerFiles, plan: TokenizerPlan) -> None:
    """Tell where transformers 5 does not do what the files seem to say, or what version 4 did."""
    if plan.drops_dropout:
        files.warnings.append(
            "tokenizer.json drops merges at random (dropout), which is for training: every text gets all merges here"
        )
    if plan.file.name == _TOKENIZER and plan.builder != FROM_THE_JSON and plan.shape:
        files.warnings.append(
            f"tokenizer.json and what transformers 5 builds for {plan.builder} differ in {', '.join(plan.shape)}: "
            "version 5 is followed, and version 4 may give other vectors; "
            "--ignore-config tokenizer_class takes tokenizer.json as it is"
        )
    template = plan.template or template_of(found.document.get("post_processor")) or ()
    for flag, is_there in (("add_bos_token", template[:1] != (None,)), ("add_eos_token", template[-1:] != (None,))):
        if found.config.get(flag) is True and flag not in found.settings and template and not is_there:
            files.warnings.append(
                f"{flag} of tokenizer_config.json has no effect beside tokenizer.json since transformers 5; "
                "version 4 obeyed it, and gives other vectors"
            )


def read_chat(
    files: FolderFiles,
    head: str,
    config: Mapping[str, Any],
    tokenizer: TokenizerPlan,
    transformer: TransformerConfig,
    model_type: object,
) -> ChatPlan:
    """Read the chat template that every text goes through.

    Raises:
        ModelError: There is none, or several without a default.
    """
    template, is_one_of_several = _template(files, head, config)
    if template is None:
        raise files.error(f"has texts that are messages ({transformer.name}), and no chat template for them")
    is_structured = transformer.chat_format == "structured"
    if transformer.chat_format == "auto" and model_type not in _FLAT_MODELS:
        is_structured = is_one_of_several or any(pattern in template for pattern in _STRUCTURED)
    variables = {**tokenizer.named, **transformer.chat_kwargs}
    restores = bool(variables.pop("restore_suffix", True))  # a word of sentence-transformers, not of the template
    return ChatPlan(template=template, is_structured=is_structured, restores_suffix=restores, variables=variables)


def _template(files: FolderFiles, head: str, config: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the template, and whether it is the default one of several: a file wins over tokenizer_config.json."""
    content = files.read_text(f"{head}chat_template.jinja")
    if content is not None:
        return content, any((files.folder / head / "additional_chat_templates").glob("*.jinja"))
    stated = config.get("chat_template")
    if isinstance(stated, list):
        stated = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
    template = stated.get("default") if isinstance(stated, dict) else stated
    return template if isinstance(template, str) else None, isinstance(stated, dict)
