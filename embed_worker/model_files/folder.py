"""The resolved plan of a model folder: every decision with its value and where it comes from. Nothing is guessed.

Reads small JSON files and looks at names; it loads no graph and imports nothing heavy. What the folder does not say and
no option decides is a `ModelError` that names the option.
"""

from __future__ import annotations

import contextlib
import filecmp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from embed_worker.config import ModelOptions
from embed_worker.errors import ModelError
from embed_worker.model_files import tokenizer_files
from embed_worker.model_files.folder_files import FolderFiles, UndecidedError, config_of, ignore_hint
from embed_worker.model_files.graphs import usual_graphs, way_to_a_graph
from embed_worker.model_files.known_models import KnownModel, find_known_model
from embed_worker.model_files.layout import MODULES, WEIGHTS
from embed_worker.model_files.limits import FolderLimits
from embed_worker.model_files.modules import read_modules, without_trailing_normalize
from embed_worker.model_files.onnx_outline import SENTENCE_OUTPUT, Outline, read_outline
from embed_worker.model_files.plan import (
    ChatPlan,
    Decision,
    DensePlan,
    ModelPlan,
    ModulePlan,
    PoolingMode,
    PoolingSource,
)
from embed_worker.model_files.search import model_name
from embed_worker.model_files.tokenizer_plan import TokenizerPlan
from embed_worker.model_files.transformer_module import TransformerConfig, read_transformer_config

_T = TypeVar("_T")

_SENTENCE_CONFIG = "config_sentence_transformers.json"

# Architectures that add the embedding of a word for a token type. Their tokenizers give none, and 0 is a word, too.
_TYPES_ARE_WORDS = (
    "codegen",
    "ctrl",
    "flaubert",
    "gpt-sw3",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gptj",
    "openai-gpt",
    "xlm",
)

# The booleans of the older configuration format, in the order in which their vectors are concatenated.
_POOLING_BOOLEANS = {
    "pooling_mode_cls_token": PoolingMode.CLS,
    "pooling_mode_max_tokens": PoolingMode.MAX,
    "pooling_mode_mean_tokens": PoolingMode.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": PoolingMode.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": PoolingMode.LAST_TOKEN,
}


def read_model_folder(folder: Path, options: ModelOptions) -> ModelPlan:
    """Resolve a folder into a plan.

    Raises:
        ModelError: Something is missing, damaged or not supported, or the folder does not say and an option must.
    """
    return _FolderReader(folder, options).plan()


class _FolderReader:
    def __init__(self, folder: Path, options: ModelOptions) -> None:
        self._files = FolderFiles(folder, ignore=options.ignore_config, allow_links=options.allow_links)
        self._folder = folder
        self._options = options
        self._decisions: list[Decision] = []
        self._undecided: list[str] = []
        self._name = model_name(folder)
        if not folder.name:
            raise ModelError(f"{str(folder)!r} is the root of a file system and not a model's folder")
        if not folder.name.isprintable():
            raise ModelError(f"the model folder {folder.name!a} has a name that is not text: rename it")
        self._sentence_config = self._files.read_object(_SENTENCE_CONFIG, _SENTENCE_CONFIG)
        self._modules = read_modules(self._files)
        self._head = f"{self._modules.path}/" if self._modules.path else ""
        self._config = self._files.read_object(f"{self._head}config.json")
        # A StaticEmbedding reads none of these files, whoever has left them there.
        is_static = self._modules.head == "StaticEmbedding"
        self._transformer = (
            TransformerConfig(name="") if is_static else read_transformer_config(self._files, self._modules.path)
        )

    def plan(self) -> ModelPlan:
        self._check_kind()
        self._warn_of_missing_modules()
        is_static = self._modules.head == "StaticEmbedding"
        tokenizer_config = self._files.read_object(f"{self._head}tokenizer_config.json")
        tokenizer = self._attempt(lambda: self._tokenizer(tokenizer_config, is_static=is_static))
        pooling_config = self._modules.pooling
        prompts = self._prompts()
        graph = self._attempt(self._table if is_static else self._graph)
        outline = Outline() if graph is None or is_static else read_outline(graph)
        pooling = (PoolingMode.MEAN,) if is_static else self._attempt(lambda: self._pooling(pooling_config, outline))
        limits = self._limits(tokenizer_config if tokenizer is None else tokenizer.limits, outline)
        saved = tokenizer.saved_limit if is_static and tokenizer is not None else None
        asked = self._options.max_tokens
        limit = self._attempt(lambda: limits.of_a_table(asked, saved) if is_static else limits.decide(asked))
        if tokenizer is None or graph is None or pooling is None or limit is None:
            raise self._files.undecided(*self._undecided)
        if tokenizer.sets_types and "token_type_ids" in outline.inputs:
            raise self._error(
                "has a tokenizer.json that sets token types other than 0, which are not fed (post_processor)"
            )
        if (kind := self._config.get("model_type")) in _TYPES_ARE_WORDS and "token_type_ids" in outline.inputs:
            raise self._error(f"has a graph with token types, which a {kind} adds as words: export it without them")
        if (self._folder / self._head / "adapter_config.json").exists():
            self._files.warnings.append(
                "adapter_config.json lies beside the graph, which alone is run: whether it has the adapter is not known"
            )
        self._check_padding(tokenizer, limits, pooling_config)
        truncate_dim = self._truncate_dim()
        modules, normalize = self._behind(truncate_dim)
        chat = self._chat(tokenizer_config, tokenizer)
        plan = ModelPlan(
            name=self._name,
            folder=self._folder,
            graph=graph,
            is_static=is_static,
            onnx_output=self._options.onnx_output,
            pooling=pooling,
            pooling_source=self._pooling_source(pooling_config, pooling, is_static=is_static),
            pooling_dimension=self._pooling_dimension(pooling_config),
            include_prompt=self._include_prompt(pooling_config),
            modules=modules,
            normalize=normalize,
            truncate_dim=truncate_dim,
            hidden_state=self._hidden_state(),
            padding_position=limits.padding_position(),
            max_tokens=self._decide("max_tokens", *limit),
            prompts=prompts,
            default_prompt_name=self._default_prompt_name(prompts),
            tokenizer=tokenizer,
            adds_special_tokens=not is_static and chat is None and self._transformer.adds_special_tokens,
            chat=chat,
            lowercase=self._lowercase(),
            allow_links=self._options.allow_links,
            decisions=tuple(self._decisions),
            warnings=tuple(self._files.warnings),
        )
        self._files.check_ignored()
        return replace(plan, decisions=(*plan.decisions, *self._ignored()))

    def _attempt(self, decide: Callable[[], _T]) -> _T | None:
        """Decide something; what is missing for it is told with all else that is, and not start by start."""
        try:
            return decide()
        except UndecidedError as error:
            self._undecided.append(error.problem)
            return None

    def _decide(self, subject: str, value: Any, source: str) -> Any:
        self._decisions.append(Decision(subject, value, source))
        return value

    def _ignored(self) -> list[Decision]:
        return [Decision(f"{path}: {key}", "ignored", "--ignore-config") for key, path in self._files.ignored.items()]

    def _error(self, problem: str) -> ModelError:
        return self._files.error(problem)

    def _known(self) -> KnownModel | None:
        """What the table of known models says of a model of this name."""
        return find_known_model(self._name)

    def _limits(self, tokenizer_settings: Mapping[str, Any], outline: Outline) -> FolderLimits:
        return FolderLimits(
            self._files,
            self._config,
            tokenizer_settings,
            self._transformer,
            self._head,
            known=self._known_limit(),
            graph_positions=outline.positions,
        )

    def _known_limit(self) -> tuple[int, str] | None:
        known = self._known() if self._modules.head is None else None
        return None if known is None else (known.max_tokens, f"known_models.toml: {known.name}")

    def _check_kind(self) -> None:
        kind = self._sentence_config.get("model_type", "SentenceTransformer")
        if kind != "SentenceTransformer":
            raise self._error(f"is a {kind!a} ({_SENTENCE_CONFIG}), which is not a model of sentence embeddings")

    def _warn_of_missing_modules(self) -> None:
        """Tell what is followed though sentence-transformers reads it beside modules.json alone."""
        stated = [config_of("1_Pooling"), _SENTENCE_CONFIG, self._transformer.name]
        found = [name for name in stated if (self._folder / name).is_file()]
        if self._modules.head is None and found:
            self._files.warnings.append(
                f"there is no {MODULES}, without which sentence-transformers does not read {' and '.join(found)}: "
                "followed here, for they tell what the model is"
            )

    def _check_padding(self, tokenizer: TokenizerPlan, limits: FolderLimits, pooling: Mapping[str, Any]) -> None:
        """Refuse padding of a text by itself where sentence-transformers lets it shape the vector."""
        if not self._transformer.pads_alone:
            return
        side = self._transformer.padding_side
        is_left = tokenizer.pad_left if side is None else side == "left"
        if not self._files.truth(pooling, "include_prompt", "1_Pooling", default=True):
            effect = "makes the part of a prompt that is left out longer (include_prompt: false)"
        elif is_left and limits.counts_padding():
            effect = "on the left shifts the positions of its tokens"
        else:
            return
        where = f"{self._transformer.name}: processing_kwargs"
        raise self._error(
            f"pads a text that is alone ({where}), which {effect}: it is not followed, and "
            f"{ignore_hint('processing_kwargs')}"
        )

    # Decisions, in the order of the plan

    def _tokenizer(self, config: Mapping[str, Any], *, is_static: bool) -> TokenizerPlan:
        plan = tokenizer_files.read_tokenizer(
            self._files, self._head, config, self._transformer.processor_kwargs, self._config, is_static=is_static
        )
        source = "tokenizer_config.json"
        if plan.pad_token is not None:
            self._decide("pad_token", plan.pad_token, source)
        for name, is_left in (("padding_side", plan.pad_left), ("truncation_side", plan.truncate_left)):
            stated = name in self._transformer.processor_kwargs
            where = self._transformer.name if stated else source if name in config else "the default of tokenizers"
            self._decide(name, "left" if is_left else "right", where)
        if plan.shape:
            self._decide("tokenizer", f"as {plan.builder} of transformers 5", ", ".join(plan.shape))
        return plan

    def _table(self) -> Path:
        table = self._files.path(f"{self._head}{WEIGHTS}", "modules.json")
        if not table.is_file():
            raise self._error(f"has no {self._head}{WEIGHTS}, which its StaticEmbedding is")
        self._decide("vectors", f"rows of {self._head}{WEIGHTS}, averaged", "modules.json: StaticEmbedding")
        return table

    def _graph(self) -> Path:
        chosen = self._options.onnx_file
        usual = next((path for path in usual_graphs(self._head) if (self._folder / path).is_file()), None)
        if chosen is not None:
            chosen, source = chosen.replace("\\", "/"), "--onnx-file"
        elif self._options.variant is not None:
            chosen, source = f"onnx/model_{self._options.variant}.onnx", "--variant"
        elif usual is not None:
            chosen, source = usual, "the usual place"
            if usual == "model.onnx":
                source = "the folder's root: there is no onnx/model.onnx"
            if usual == "onnx/model.onnx":
                self._warn_of_another(self._folder / usual, self._folder / "model.onnx")
        else:
            way = way_to_a_graph(self._folder, self._config)
            raise self._files.undecided(f"has no onnx/model.onnx and no model.onnx{way}")
        graph = self._files.path(chosen, source)
        if not graph.is_file():
            way = way_to_a_graph(self._folder, self._config)
            raise self._error(f"has no {chosen}, which {source} asks for{way}")
        self._decide("graph", chosen, source)
        return graph

    def _warn_of_another(self, chosen: Path, other: Path) -> None:
        with contextlib.suppress(OSError):
            if other.is_file() and not filecmp.cmp(chosen, other, shallow=False):
                self._files.warnings.append(
                    "model.onnx and onnx/model.onnx are different graphs: onnx/model.onnx is run, --onnx-file chooses"
                )

    def _pooling(self, config: Mapping[str, Any], outline: Outline) -> tuple[PoolingMode, ...]:
        if self._options.pooling is not None:
            return self._pooling_modes(self._options.pooling.split(","), "--pooling")
        if not config and (known := self._known()) is not None:
            return self._pooling_modes(known.pooling, f"known_models.toml: {known.name}")
        output = self._options.onnx_output or SENTENCE_OUTPUT
        if not config and output in (outline.sentence_outputs if self._options.onnx_output else outline.outputs):
            self._decide("pooling", "the graph's own", f"the graph: its output {output}")
            return ()
        if not config:
            raise self._files.undecided(
                f"does not say how to pool; decide it with --pooling, as its model card says: {', '.join(PoolingMode)}"
            )
        if "pooling_mode" in config:
            named = config["pooling_mode"]
            return self._pooling_modes(named if isinstance(named, list) else [named], "1_Pooling: pooling_mode")
        modes = [mode for boolean, mode in _POOLING_BOOLEANS.items() if self._files.truth(config, boolean, "1_Pooling")]
        if not modes:
            return self._pooling_modes([PoolingMode.MEAN], "1_Pooling names no mode, which is mean")
        return self._pooling_modes(modes, "1_Pooling: the pooling_mode_* booleans")

    def _pooling_source(
        self, config: Mapping[str, Any], pooling: tuple[PoolingMode, ...], *, is_static: bool
    ) -> PoolingSource:
        if self._options.pooling is not None:
            return PoolingSource.OPTION
        if config or is_static:
            return PoolingSource.FOLDER
        return PoolingSource.TABLE if pooling else PoolingSource.GRAPH

    def _pooling_modes(self, names: Sequence[object], source: str) -> tuple[PoolingMode, ...]:
        try:
            modes = tuple(PoolingMode(str(name)) for name in names)
        except ValueError as error:
            known = ", ".join(PoolingMode)
            raise self._error(f"asks for an unknown pooling ({source}): {error}; known are {known}") from None
        if not modes:
            raise self._error(f"asks for no pooling at all ({source}); decide it with --pooling")
        self._decide("pooling", [str(mode) for mode in modes], source)
        return modes

    def _pooling_dimension(self, config: Mapping[str, Any]) -> int | None:
        value = config.get("embedding_dimension", config.get("word_embedding_dimension"))
        return None if value is None else self._files.positive(value, "1_Pooling: the dimension")

    def _include_prompt(self, config: Mapping[str, Any]) -> bool:
        if self._files.truth(config, "include_prompt", "1_Pooling", default=True):
            return True
        return bool(self._decide("include_prompt", False, "1_Pooling: include_prompt"))

    def _truncate_dim(self) -> int | None:
        stated = self._sentence_config.get("truncate_dim")
        if stated is None:
            return None
        source = f"{_SENTENCE_CONFIG}: truncate_dim"
        return int(self._decide("truncate_dim", self._files.positive(stated, source), source))

    def _behind(self, truncate_dim: int | None) -> tuple[tuple[ModulePlan, ...], bool]:
        """Decide what follows the pooling, and whether vectors are normalised at last."""
        modules = self._modules.behind
        for module, source in zip(modules, self._modules.sources, strict=True):
            if isinstance(module, DensePlan):
                self._decide("dense", module.activation, source)
        before, normalizes = without_trailing_normalize(modules)
        if self._options.normalize is not None:
            return before, bool(self._decide("normalize", self._options.normalize, "--normalize"))
        if normalizes and truncate_dim is not None:
            # sentence-transformers cuts what its modules give: what is left of a vector of length 1 is shorter.
            return modules, bool(self._decide("normalize", False, f"{_SENTENCE_CONFIG}: truncate_dim cuts after it"))
        return before, bool(self._decide("normalize", *self._normalize(normalizes=normalizes)))

    def _normalize(self, *, normalizes: bool) -> tuple[bool, str]:
        if normalizes:
            return True, "modules.json: Normalize"
        if self._modules.head is not None:
            return False, "modules.json has no Normalize at its end"
        if self._options.pooling is None and (known := self._known()) is not None:
            return known.normalize, f"known_models.toml: {known.name}"
        return False, "no modules.json, as sentence-transformers does"

    def _hidden_state(self) -> int | None:
        if self._transformer.hidden_state is None:
            return None
        source = f"{self._transformer.name}: modality_config"
        return int(self._decide("hidden_state", self._transformer.hidden_state, source))

    def _prompts(self) -> dict[str, str]:
        stated = self._sentence_config.get("prompts") or {}
        if not isinstance(stated, dict) or not all(isinstance(prompt, str | None) for prompt in stated.values()):
            raise self._error(f"has prompts in {_SENTENCE_CONFIG} that are not strings")
        prompts = {name: prompt or "" for name, prompt in stated.items()}  # null is a place for one
        source = _SENTENCE_CONFIG if prompts else "none are published in the folder"
        if not prompts and (known := self._known()) is not None and known.prompts:
            prompts, source = dict(known.prompts), f"known_models.toml: {known.name}"
        self._decide("prompts", prompts, source)
        return {"query": "", "document": ""} | prompts

    def _default_prompt_name(self, prompts: Mapping[str, str]) -> str | None:
        name = self._sentence_config.get("default_prompt_name")
        if name is None:
            return None
        if not isinstance(name, str) or name not in prompts:
            raise self._error(f"has a default_prompt_name that is not among its prompts: {name!r}")
        return str(self._decide("default_prompt_name", name, _SENTENCE_CONFIG))

    def _chat(self, tokenizer_config: Mapping[str, Any], tokenizer: TokenizerPlan) -> ChatPlan | None:
        if self._transformer.chat_format is None:
            return None
        chat = tokenizer_files.read_chat(
            self._files, self._head, tokenizer_config, tokenizer, self._transformer, self._config.get("model_type")
        )
        self._decide("chat_template", "every text is a message", f"{self._transformer.name}: modality_config")
        return chat

    def _lowercase(self) -> bool:
        if not self._transformer.lowercase:
            return False
        return bool(self._decide("lowercase", True, f"{self._transformer.name}: do_lower_case"))
