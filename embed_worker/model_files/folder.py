"""The resolved plan of a model folder: every decision with its value and where it comes from. Nothing is guessed.

Reads small JSON files and looks at names; it loads no graph and imports nothing heavy. What the folder does not say and
no option settles is a `ModelError` that names the option.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from embed_worker.config import ModelOptions
from embed_worker.errors import ModelError
from embed_worker.model_files.known_models import KnownModel, find_known_model
from embed_worker.model_files.onnx_outline import SENTENCE_OUTPUT, read_outline
from embed_worker.model_files.plan import Decision, DensePlan, ModelPlan, PoolingMode, PoolingSource
from embed_worker.model_files.search import model_name

# What sentence-transformers has called the file of its `Transformer` module, in the order in which it looks.
_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# Architectures with a table of positions, and how many of its rows no token can use.
_POSITION_OFFSETS = {
    "albert": 0,
    "bert": 0,
    "distilbert": 0,
    "electra": 0,
    "camembert": 2,
    "longformer": 2,
    "mpnet": 2,
    "roberta": 2,
    "xlm-roberta": 2,
    "xlm-roberta-xl": 2,
}


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
    return _Reader(folder, options).plan()


@dataclass(frozen=True, slots=True)
class _Module:
    kind: str
    path: str


class _Reader:
    def __init__(self, folder: Path, options: ModelOptions) -> None:
        self._folder = folder
        self._options = options
        self._decisions: list[Decision] = []
        self._warnings: list[str] = []
        self._name = model_name(folder)
        self._config = self._read_object("config.json")
        self._tokenizer_config = self._read_object("tokenizer_config.json")
        self._sentence_config = self._read_object("config_sentence_transformers.json")
        self._transformer_config_name, self._transformer_config = self._read_transformer_config()

    def plan(self) -> ModelPlan:
        if not self._folder.name.isprintable():
            raise ModelError(f"the model folder {self._folder.name!a} has a name that is not text: rename it")
        if not (self._folder / "tokenizer.json").is_file():
            raise self._error("has no tokenizer.json: only fast tokenizers can be used")
        modules = list(self._modules())
        pooling_config = self._pooling_config(modules)
        prompts = self._prompts()
        graph = self._graph()
        pooling = self._pooling(pooling_config, graph)
        return ModelPlan(
            name=self._name,
            folder=self._folder,
            graph=graph,
            pooling=pooling,
            pooling_source=self._pooling_source(pooling_config, pooling),
            pooling_dimension=self._pooling_dimension(pooling_config),
            include_prompt=self._include_prompt(pooling_config),
            dense=tuple(self._dense(module) for module in modules if module.kind == "Dense"),
            normalize=self._normalize(modules),
            lowercase=self._lowercase(),
            padding_position=self._padding_position(),
            max_tokens=self._max_tokens(),
            prompts=prompts,
            default_prompt_name=self._default_prompt_name(prompts),
            pad_token=self._pad_token(),
            pad_left=self._side("padding_side"),
            truncate_left=self._side("truncation_side"),
            decisions=tuple(self._decisions),
            warnings=tuple(self._warnings),
        )

    def _decide(self, subject: str, value: Any, source: str) -> Any:
        self._decisions.append(Decision(subject, value, source))
        return value

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"the model folder {self._folder.name!r} {problem}")

    # Files

    def _read_json(self, path: str, default: Any) -> Any:
        """Read a file; give the default where there is none."""
        try:
            return json.loads((self._folder / path).read_bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return default
        except OSError as error:
            raise self._error(f"has a {path} that cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise self._error(f"has a {path} that is not JSON") from error

    def _read_object(self, path: str) -> dict[str, Any]:
        value = self._read_json(path, {})
        if not isinstance(value, dict):
            raise self._error(f"has a {path} that is not a JSON object")
        return value

    def _read_transformer_config(self) -> tuple[str, dict[str, Any]]:
        for name in _TRANSFORMER_CONFIGS:
            if config := self._read_object(name):
                task = config.get("transformer_task", "feature-extraction")
                if task != "feature-extraction":
                    raise self._error(f"is for the task {task!r} ({name}), which gives no embeddings")
                return name, config
        return _TRANSFORMER_CONFIGS[0], {}

    def _known(self) -> KnownModel | None:
        """What the table of known models says of a model of this name."""
        return find_known_model(self._name)

    # Decisions, in the order of the plan

    def _graph(self) -> Path:
        chosen = self._options.onnx_file
        if chosen is not None:
            source = "--onnx-file"
        elif self._options.variant is not None:
            chosen, source = f"onnx/model_{self._options.variant}.onnx", "--variant"
        elif (self._folder / "onnx/model.onnx").is_file():
            chosen, source = "onnx/model.onnx", "the usual place"
            self._warn_of_another(self._folder / "onnx/model.onnx", self._folder / "model.onnx")
        elif (self._folder / "model.onnx").is_file():
            chosen, source = "model.onnx", "the folder's root: there is no onnx/model.onnx"
        else:
            raise self._error(f"has no onnx/model.onnx and no model.onnx{self._other_graphs()}")
        graph = self._inside(chosen, source)
        if not graph.is_file():
            raise self._error(f"has no {chosen}, which {source} asks for{self._other_graphs()}")
        self._decide("graph", chosen, source)
        return graph

    def _warn_of_another(self, chosen: Path, other: Path) -> None:
        with contextlib.suppress(OSError):
            if other.is_file() and not filecmp.cmp(chosen, other, shallow=False):
                self._warnings.append(
                    "model.onnx and onnx/model.onnx are different graphs: onnx/model.onnx is run, --onnx-file chooses"
                )

    def _other_graphs(self) -> str:
        found = sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.onnx"))
        return f"; --onnx-file can choose one of: {', '.join(found[:8])}" if found else ""

    def _inside(self, path: str, source: str) -> Path:
        pure = PurePosixPath(path.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", path):
            raise self._error(f"has a path in {source} that leaves the folder: {path!r}")
        return self._folder / pure

    def _modules(self) -> Iterator[_Module]:
        modules = self._read_json("modules.json", [])
        if not isinstance(modules, list):
            raise self._error("has a modules.json that is not a list")
        for module in modules:
            if not (
                isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
            ):
                raise self._error("has a modules.json with an entry without `type` and `path`")
            self._inside(module["path"], "modules.json")
            # Both generations of sentence-transformers agree on the last component of the dotted name.
            yield _Module(module["type"].rpartition(".")[2], module["path"])

    def _pooling_config(self, modules: list[_Module]) -> dict[str, Any]:
        kinds = [module.kind for module in modules if module.kind != "Dropout"]
        if not kinds:
            return {}
        after = [kind for kind in kinds[2:] if kind != "Dense"]
        is_known = kinds[:2] == ["Transformer", "Pooling"] and after in ([], ["Normalize"])
        if not is_known or (after and kinds[-1] != "Normalize"):
            known = "Transformer, Pooling, any number of Dense, and Normalize at the end"
            raise self._error(f"has modules that cannot be served: {', '.join(kinds)}; known are {known}")
        path = next(module.path for module in modules if module.kind == "Pooling")
        config = self._read_object(_config_of(path))
        if not config:
            raise self._error(f"has no {_config_of(path)}, which says how to pool")
        return config

    def _pooling(self, config: dict[str, Any], graph: Path) -> tuple[PoolingMode, ...]:
        if self._options.pooling is not None:
            return self._pooling_modes(self._options.pooling.split(","), "--pooling")
        if not config and (known := self._known()) is not None:
            return self._pooling_modes(known.pooling, f"known_models.toml: {known.name}")
        if not config and SENTENCE_OUTPUT in read_outline(graph).outputs:
            self._decide("pooling", "the graph's own", f"the graph: its output {SENTENCE_OUTPUT}")
            return ()
        if not config:
            raise self._error("does not say how to pool; settle it with --pooling, for instance --pooling mean")
        if "pooling_mode" in config:
            named = config["pooling_mode"]
            return self._pooling_modes(named if isinstance(named, list) else [named], "1_Pooling: pooling_mode")
        names = [mode for boolean, mode in _POOLING_BOOLEANS.items() if self._boolean(config, boolean, "1_Pooling")]
        return self._pooling_modes(names, "1_Pooling: the pooling_mode_* booleans")

    def _pooling_source(self, config: dict[str, Any], pooling: tuple[PoolingMode, ...]) -> PoolingSource:
        if self._options.pooling is not None:
            return PoolingSource.OPTION
        if config:
            return PoolingSource.FOLDER
        return PoolingSource.TABLE if pooling else PoolingSource.GRAPH

    def _pooling_modes(self, names: Sequence[object], source: str) -> tuple[PoolingMode, ...]:
        try:
            modes = tuple(PoolingMode(str(name)) for name in names)
        except ValueError as error:
            known = ", ".join(PoolingMode)
            raise self._error(f"asks for an unknown pooling ({source}): {error}; known are {known}") from None
        if not modes:
            raise self._error(f"asks for no pooling at all ({source}); settle it with --pooling")
        self._decide("pooling", [str(mode) for mode in modes], source)
        return modes

    def _pooling_dimension(self, config: dict[str, Any]) -> int | None:
        value = config.get("embedding_dimension", config.get("word_embedding_dimension"))
        return None if value is None else self._positive(value, "1_Pooling: the dimension")[0]

    def _include_prompt(self, config: dict[str, Any]) -> bool:
        if self._boolean(config, "include_prompt", "1_Pooling", default=True):
            return True
        return bool(self._decide("include_prompt", False, "1_Pooling: include_prompt"))

    def _dense(self, module: _Module) -> DensePlan:
        config = self._read_object(_config_of(module.path))
        if not config:
            raise self._error(f"has no {_config_of(module.path)}, which says what its Dense module is")
        of = config.get("module_input_name", "sentence_embedding")
        to = config.get("module_output_name") or of
        if (of, to) != ("sentence_embedding", "sentence_embedding"):
            raise self._error(f"has a Dense module over something else than the sentence embedding: {of!r} → {to!r}")
        weights = self._folder / module.path / "model.safetensors"  # not needed where the graph pools itself
        activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        self._decide("dense", activation, f"modules.json: {module.path}")
        sizes = {key: config[key] for key in ("in_features", "out_features") if isinstance(config.get(key), int)}
        return DensePlan(
            weights=weights, activation=activation, use_residual=config.get("use_residual") is True, **sizes
        )

    def _normalize(self, modules: list[_Module]) -> bool:
        if self._options.normalize is not None:
            return bool(self._decide("normalize", self._options.normalize, "--normalize"))
        module = next((module for module in modules if module.kind == "Normalize"), None)
        if module is None:
            if not modules and self._options.pooling is None and (known := self._known()) is not None:
                return bool(self._decide("normalize", known.normalize, f"known_models.toml: {known.name}"))
            source = "modules.json has no Normalize" if modules else "no modules.json, as sentence-transformers does"
            return bool(self._decide("normalize", False, source))
        of = self._read_object(_config_of(module.path)).get("module_input_name", "sentence_embedding")
        if of != "sentence_embedding":
            raise self._error(f"normalises something else than the sentence embedding: {of!r}")
        return bool(self._decide("normalize", True, "modules.json: Normalize"))

    def _max_tokens(self) -> int:
        limit, source = self._stated_limit()
        table = self._position_table()
        if table is not None and table < limit:
            limit, source = table, f"config.json: the position table is smaller than {source}"
        return int(self._decide("max_tokens", limit, source))

    def _stated_limit(self) -> tuple[int, str]:
        if self._options.max_tokens is not None:
            return self._options.max_tokens, "--max-tokens"
        stated = self._transformer_config.get("max_seq_length")
        if stated is not None:
            return self._positive(stated, f"{self._transformer_config_name}: max_seq_length")
        limits = []
        tokenizer_limit = self._tokenizer_config.get("model_max_length")
        # Tokenizers without a limit of their own say 1e30.
        if tokenizer_limit is not None and not isinstance(tokenizer_limit, int | float):
            raise self._error("has a model_max_length in tokenizer_config.json that is not a number")
        if tokenizer_limit is not None and 0 < tokenizer_limit < 1e9:
            limits.append((int(tokenizer_limit), "tokenizer_config.json: model_max_length"))
        if (positions := self._config.get("max_position_embeddings")) is not None:
            rows, source = self._positive(positions, "config.json: max_position_embeddings")
            limits.append((rows - self._position_offset(), source))
        if not limits:
            raise self._error("does not say how many tokens a text may have; settle it with --max-tokens")
        return min(limits)

    def _positive(self, value: object, source: str) -> tuple[int, str]:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._error(f"has a number that is not a positive integer ({source})")
        return value, source

    def _boolean(self, config: Mapping[str, Any], key: str, source: str, *, default: bool = False) -> bool:
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(f"has a {key} that is neither true nor false ({source})")
        return default if value is None else value

    def _position_offset(self) -> int:
        return _POSITION_OFFSETS.get(str(self._config.get("model_type")), 0)

    def _padding_position(self) -> int | None:
        if not self._position_offset():
            return None
        padding_id = self._config.get("pad_token_id", 1)
        # MPNet's is no matter of configuration.
        is_stated = isinstance(padding_id, int) and self._config.get("model_type") != "mpnet"
        return padding_id if is_stated else 1

    def _position_table(self) -> int | None:
        kind, rows = self._config.get("model_type"), self._config.get("max_position_embeddings")
        if not isinstance(kind, str) and self._options.max_tokens is None:
            raise self._error(
                "has no config.json with a model_type, which a limit is checked by: settle it with --max-tokens"
            )
        if kind not in _POSITION_OFFSETS or rows is None:
            return None
        return self._positive(rows, "config.json: max_position_embeddings")[0] - self._position_offset()

    def _prompts(self) -> dict[str, str]:
        prompts = self._sentence_config.get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
            raise self._error("has prompts in config_sentence_transformers.json that are not strings")
        source = "config_sentence_transformers.json" if prompts else "none are published in the folder"
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
        return str(self._decide("default_prompt_name", name, "config_sentence_transformers.json"))

    def _lowercase(self) -> bool:
        if not self._boolean(self._transformer_config, "do_lower_case", self._transformer_config_name):
            return False
        return bool(self._decide("lowercase", True, f"{self._transformer_config_name}: do_lower_case"))

    def _pad_token(self) -> str | None:
        token = self._tokenizer_config.get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str):
            return None
        return str(self._decide("pad_token", token, "tokenizer_config.json"))

    def _side(self, name: str) -> bool:
        side = self._tokenizer_config.get(name, "right")
        if side not in ("left", "right"):
            raise self._error(f"has a {name} in tokenizer_config.json that is neither left nor right")
        source = "tokenizer_config.json" if name in self._tokenizer_config else "the default of tokenizers"
        return bool(self._decide(name, side, source) == "left")


def _config_of(module_path: str) -> str:
    """Name a module's configuration; the path may be empty."""
    return (PurePosixPath(module_path) / "config.json").as_posix()
