"""`sentence_bert_config.json` and its older names: what a `Transformer` module says beside the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embed_worker.model_files import keys
from embed_worker.model_files.folder_files import FolderFiles, ignore_hint
from embed_worker.model_files.layout import TRANSFORMER_CONFIGS

# Old names, which win over new ones where a file has both.
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """What the module's file says.

    Attributes:
        name: The file that says it, or the one that would.
        max_seq_length: As it is written; None where it is not.
        lowercase: Texts are lower-cased first.
        processor_kwargs: What wins over tokenizer_config.json.
        max_length: Of the call of the tokenizer: it wins over every other limit.
        adds_special_tokens: Whether the call adds them.
        pads_alone: Whether the call pads a text by itself, too.
        padding_side: Of the call; None where it says none.
        hidden_state: Which of the hidden states is pooled, an index into them all; None for the last.
        chat_format: `flat`, `structured` or `auto` where texts go through a chat template; None where they do not.
        chat_kwargs: Variables for the template.
    """

    name: str
    max_seq_length: object = None
    lowercase: bool = False
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    adds_special_tokens: bool = True
    pads_alone: bool = False
    padding_side: object = None
    hidden_state: int | None = None
    chat_format: str | None = None
    chat_kwargs: Mapping[str, Any] = field(default_factory=dict)


def read_transformer_config(files: FolderFiles, path: str) -> TransformerConfig:
    """Read the first of the files that says anything.

    Raises:
        ModelError: It asks for what is not followed.
    """
    prefix = f"{path}/" if path else ""
    for name in TRANSFORMER_CONFIGS:
        if config := files.read_object(prefix + name, "Transformer"):
            return _ModuleReader(files, prefix + name, config).read()
    return TransformerConfig(name=prefix + TRANSFORMER_CONFIGS[0])


class _ModuleReader:
    def __init__(self, files: FolderFiles, name: str, config: Mapping[str, Any]) -> None:
        self._files = files
        self._name = name
        self._config = dict(config)
        for old, new in _OLD_NAMES.items():
            if old in config:
                self._config[new] = config[old]

    def read(self) -> TransformerConfig:
        task = self._config.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise self._files.error(f"is for the task {task!a} ({self._name}), which gives no embeddings")
        self._check_kwargs("model_kwargs", keys.MODEL_KWARGS_THAT_SHAPE_NOTHING)
        self._check_kwargs("config_kwargs", keys.CONFIG_KWARGS_THAT_SHAPE_NOTHING)
        call = self._call_kwargs()
        entry = self._modality()
        return TransformerConfig(
            name=self._name,
            max_seq_length=self._config.get("max_seq_length"),
            lowercase=self._files.truth(self._config, "do_lower_case", self._name),
            processor_kwargs=self._processor_kwargs(),
            max_length=call.get("max_length"),
            adds_special_tokens=call.get("add_special_tokens", True),
            pads_alone=call.get("padding") == "max_length" or bool(call.get("pad_to_multiple_of")),
            padding_side=call.get("padding_side"),
            hidden_state=self._hidden_state(entry),
            chat_format=entry.get("format", "auto") if "message" in self._modalities() else None,
            chat_kwargs=self._chat_kwargs(),
        )

    def _object(self, key: str) -> dict[str, Any]:
        value = self._config.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._files.error(f"has a {key} that is not an object ({self._name})")
        return value or {}

    def _refuse(self, key: str, name: str) -> None:
        raise self._files.error(f"asks for {key}.{name} ({self._name}), which is not followed: {ignore_hint(key)}")

    def _stated(self, key: str) -> str:
        """Return a key as the file has it: an option must find it there."""
        return next((old for old, new in _OLD_NAMES.items() if new == key and old in self._config), key)

    def _check_kwargs(self, key: str, harmless: frozenset[str]) -> None:
        for name, value in self._object(key).items():
            if name not in harmless and value is not None:
                self._refuse(self._stated(key), name)

    def _processor_kwargs(self) -> dict[str, Any]:
        kwargs = self._object("processor_kwargs")
        for name in kwargs:
            if name in keys.PROCESSOR_KWARGS_REFUSED:
                self._refuse(self._stated("processor_kwargs"), name)
        return {key: value for key, value in kwargs.items() if key not in keys.PROCESSOR_KWARGS_THAT_SHAPE_NOTHING}

    def _call_kwargs(self) -> dict[str, Any]:
        """Collect what the tokenizer is called with; `common` wins over `text`."""
        processing = self._object("processing_kwargs")
        call: dict[str, Any] = {}
        for part in ("text", "common"):
            members = processing.get(part) or {}
            if not isinstance(members, dict):
                raise self._files.error(f"has a processing_kwargs.{part} that is not an object ({self._name})")
            call |= members
        for name, value in call.items():
            is_usual = name == "truncation" and value in (True, "longest_first", "only_first")
            if not is_usual and name not in keys.CALL_KWARGS_THAT_SHAPE_NOTHING | {"max_length", "add_special_tokens"}:
                self._refuse("processing_kwargs", name)
        if call.get("max_length") is not None:
            self._files.positive(call["max_length"], f"{self._name}: processing_kwargs.text.max_length")
        if not isinstance(call.get("add_special_tokens", True), bool):
            self._refuse("processing_kwargs", "add_special_tokens")
        return call

    def _chat_kwargs(self) -> dict[str, Any]:
        kwargs = self._object("processing_kwargs").get("chat_template") or {}
        if not isinstance(kwargs, dict):
            raise self._files.error(f"has a processing_kwargs.chat_template that is not an object ({self._name})")
        for name in kwargs:
            if name in keys.CHAT_KWARGS_REFUSED:
                self._refuse("processing_kwargs", name)
        return {name: value for name, value in kwargs.items() if name not in keys.CALL_KWARGS_THAT_SHAPE_NOTHING}

    def _modalities(self) -> dict[str, Any]:
        return self._object("modality_config")

    def _modality(self) -> dict[str, Any]:
        """Return how texts are embedded: as messages where the folder knows them, else as texts."""
        modalities = self._modalities()
        if not modalities:
            return {}
        entry = modalities.get("message") or modalities.get("text")
        if not isinstance(entry, dict):
            raise self._files.error(f"takes no text (modality_config of {self._name})")
        if entry.get("method") != "forward":
            self._refuse("modality_config", f"method {entry.get('method')!a}")
        output = self._config.get("module_output_name", "token_embeddings")
        if output != "token_embeddings":
            raise self._files.error(
                f"has a Transformer module that gives {output!a} ({self._name}: module_output_name), not token vectors"
            )
        return entry

    def _hidden_state(self, entry: Mapping[str, Any]) -> int | None:
        match entry.get("method_output_name", "last_hidden_state"):
            case "last_hidden_state" | ["last_hidden_state"]:
                return None
            case ["hidden_states", int(index)] if not isinstance(index, bool):
                return index
            case other:
                self._refuse("modality_config", f"method_output_name {other!a}")
                return None
