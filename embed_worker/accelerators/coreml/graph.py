"""The files of a model's dedicated CoreML graph, and what that graph is fed.

`embed-worker export --for coreml` makes them: a graph with float inputs alone, and the lookup tables that it leaves to
the host. Here batches become those inputs. It runs nothing. B and T are texts and tokens of a batch, N and S those of
the bucket that it is padded to, H is the hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.inference.pooling import Float32, Int64, token_counts
from embed_worker.inference.token_batch import position_ids
from embed_worker.model_files.layout import read_json
from embed_worker.model_files.manifest import file_sha256
from embed_worker.model_files.plan import PoolingMode

FOLDER = "coreml"  # within the model's
GRAPH = "model.onnx"
WORDS, POSITIONS = "word_embeddings.npy", "position_embeddings.npy"
BATCH_DIMENSION, LENGTH_DIMENSION = "batch_size", "sequence_length"

_DESCRIPTION = "coreml.json"
_FORMAT = 2

# Added to a score, it makes the weight 0 in float32 and in float16, and a row without any token stays finite.
_MASKED = np.float32(-1e4)

_Table: TypeAlias = NDArray[np.float16] | NDArray[np.float32]


class CoremlModelError(Exception):
    """The files of a dedicated graph are missing, damaged or of another version; the message is one sentence."""


class OldFormatError(CoremlModelError):
    """The files were made by another version: they can be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What coreml.json holds, with these names.

    Attributes:
        architecture: `model_type` of config.json.
        max_tokens: The longest text that the model has positions for.
        padding_id: Positions are counted over the tokens with other ids, and begin in the row after this one. None:
            they are counted over all tokens, from row 0.
        is_causal: A token sees itself and the tokens before it; else it sees all.
        inv_freq: Angles by which pairs of a head's components are rotated from one position to the next. None: the
            model has a table of positions.
        graph_sha256: Of the graph beside it: the model's identity for caches.
        sources: Files of the model's folder that it was made of, and their SHA-256.
    """

    architecture: str
    hidden_size: int
    vocabulary: int
    max_tokens: int
    padding_id: int | None
    is_causal: bool
    inv_freq: tuple[float, ...] | None
    graph_sha256: str
    sources: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read coreml.json.

        Raises:
            CoremlModelError: It is missing or damaged.
            OldFormatError: It is of another version.
        """
        path = folder / _DESCRIPTION
        try:
            fields = read_json(path)
        except OSError as error:
            raise CoremlModelError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise CoremlModelError(f"{path} is {error}") from error
        match fields:
            case {"format": int(version)} if version != _FORMAT:
                raise OldFormatError(f"{path} has the format {version} and not {_FORMAT}: export it again")
            case {
                "format": int(),
                "architecture": str(architecture),
                "hidden_size": int(hidden_size),
                "vocabulary": int(vocabulary),
                "max_tokens": int(max_tokens),
                "padding_id": int() | None as padding_id,
                "is_causal": bool(is_causal),
                "inv_freq": [*_] | None as inv_freq,
                "graph_sha256": str(graph_sha256),
                "sources": {**sources},
            } if all(isinstance(frequency, float) for frequency in inv_freq or []):
                return cls(
                    architecture=architecture,
                    hidden_size=hidden_size,
                    vocabulary=vocabulary,
                    max_tokens=max_tokens,
                    padding_id=padding_id,
                    is_causal=is_causal,
                    inv_freq=None if inv_freq is None else tuple(inv_freq),
                    graph_sha256=graph_sha256,
                    sources={str(name): str(digest) for name, digest in sources.items()},
                )
        raise CoremlModelError(f"{path} does not describe a dedicated graph")

    def write(self, folder: Path) -> None:
        """Write coreml.json.

        Raises:
            OSError: It cannot be written.
        """
        fields = {"format": _FORMAT, **asdict(self)}
        (folder / _DESCRIPTION).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoremlModel:
    """A dedicated graph with its tables, which stay in their files; safe to use from several threads.

    Attributes:
        graph: The ONNX file; its symbolic dimensions are `BATCH_DIMENSION` and `LENGTH_DIMENSION`.
        words: (vocabulary, H) float16 or float32.
        positions: (rows, H) float32, the vector of the token's type included; None where positions are rotary.
    """

    graph: Path
    description: Description
    words: _Table
    positions: Float32 | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the tables of a folder that `embed-worker export --for coreml` made.

        Args:
            folder: The one with coreml.json.

        Raises:
            CoremlModelError: A file is missing, damaged or of another version.
        """
        description = Description.read(folder)
        if not (folder / GRAPH).is_file():
            raise CoremlModelError(f"{folder} has no {GRAPH}")
        words = _mapped(folder / WORDS, (np.float16, np.float32), description.hidden_size)
        if len(words) != description.vocabulary:
            raise CoremlModelError(f"{folder / WORDS} has {len(words)} rows and not {description.vocabulary}")
        positions = None
        if description.inv_freq is None:
            positions = _mapped(folder / POSITIONS, (np.float32,), description.hidden_size)
            first = 0 if description.padding_id is None else description.padding_id + 1
            if len(positions) < first + description.max_tokens:
                raise CoremlModelError(f"{folder / POSITIONS} has {len(positions)} rows, too few")
        return cls(graph=folder / GRAPH, description=description, words=words, positions=positions)

    def is_made_of(self, model_folder: Path) -> bool:
        """Return whether no file that it was made of is another now; this reads those that are there, to hash them.

        A folder may hold the graph without the weights that it was made of: what is not there says nothing.
        """
        sources = {model_folder / name: digest for name, digest in self.description.sources.items()}
        try:
            return all(file_sha256(file) == digest for file, digest in sources.items() if file.exists())
        except OSError:
            return False

    def feeds(self, ids: Int64, mask: Int64, weights: Float32, batch: int, length: int) -> dict[str, Float32]:
        """Make the inputs of the graph for a bucket.

        What the bucket has more than the batch is padding: tokens that no text sees, and texts of one token. Their
        embeddings are those of a real token, so that nothing overflows or divides by 0 in float16 either.

        Args:
            ids: (B, T).
            mask: (B, T), 1 for a token and 0 for padding, which may be on either side.
            weights: (B, T), with which a text's token vectors are summed; see `pooling_weights`.
            batch: N, at least B.
            length: S, at least T.

        Returns:
            By the inputs' names, float32: `inputs_embeds` (N, S, H); `attention_bias` (N, 1, 1, S), or (N, 1, S, S) of
            a causal model; `pooling_weights` (N, 1, S); and where positions are rotary `rotary_cos` and `rotary_sin`
            (1, 1, S, W), W being the width of a head. The first B rows of what the graph gives are the answers.

        Raises:
            ValueError: The batch does not fit into the bucket.
            IndexError: An id, or a text's length, is beyond its table.
        """
        texts, tokens = ids.shape
        if texts > batch or tokens > length:
            raise ValueError(
                f"a batch of {texts} texts, {tokens} tokens does not fit into {batch} texts, {length} tokens"
            )
        wide_ids = np.full((batch, length), ids[0, 0])
        wide_ids[:texts, :tokens] = ids
        wide_mask = np.zeros((batch, length), np.int64)
        wide_mask[:texts, :tokens] = mask
        wide_mask[texts:, 0] = 1
        wide_weights = np.zeros((batch, 1, length), np.float32)
        wide_weights[:texts, 0, :tokens] = weights
        wide_weights[texts:, 0, 0] = 1
        return {
            "inputs_embeds": self._embeddings(wide_ids, wide_mask),
            "attention_bias": self._attention_bias(wide_mask),
            "pooling_weights": wide_weights,
            **self._rope(length),
        }

    def _embeddings(self, ids: Int64, mask: Int64) -> Float32:
        embeddings = np.take(self.words, ids, axis=0).astype(np.float32, copy=False)
        if self.positions is not None:
            embeddings += np.take(self.positions, position_ids(ids, mask, self.description.padding_id), axis=0)
        return embeddings

    def _attention_bias(self, mask: Int64) -> Float32:
        is_attended = mask[:, None, None, :] > 0
        if self.description.is_causal:
            length = mask.shape[1]
            # Padding sees itself: before the text it would see nothing at all.
            is_attended = (is_attended & np.tri(length, dtype=np.bool_)) | np.eye(length, dtype=np.bool_)
        return np.where(is_attended, np.float32(0), _MASKED)

    def _rope(self, length: int) -> dict[str, Float32]:
        """Return cosines, and sines with the sign of the component that they are multiplied with.

        Only differences of positions matter, so that the place in the row is one, wherever the padding is.
        """
        inv_freq = self.description.inv_freq
        if inv_freq is None:
            return {}
        # In float32 as transformers computes it.
        angles = np.arange(length, dtype=np.float32)[:, None] * np.array(inv_freq, np.float32)
        cosines, sines = np.cos(angles), np.sin(angles)
        return {
            "rotary_cos": np.concatenate([cosines, cosines], axis=1)[None, None],
            "rotary_sin": np.concatenate([-sines, sines], axis=1)[None, None],
        }


def _mapped(path: Path, dtypes: tuple[Any, ...], width: int) -> NDArray[Any]:
    try:
        # As a plain array: what is computed from a memmap would be one too.
        table: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise CoremlModelError(f"{path} cannot be read: {error}") from error
    if table.dtype not in dtypes or table.ndim != 2 or table.shape[1] != width:
        raise CoremlModelError(f"{path} holds {table.dtype} {list(table.shape)}, which is no table of width {width}")
    return table


def pooling_weights(mask: Int64, mode: PoolingMode, skipped: Int64 | None = None) -> Float32 | None:
    """Return the weights with which a text's token vectors are summed, so that the sum is what `pooling.pool` gives.

    Args:
        mask: (B, T), 1 for a token and 0 for padding, which may be on either side.
        mode: How token vectors become one.
        skipped: (B,) leading tokens to leave out: a prompt's. None for no such tokens.

    Returns:
        (B, T), 0 for padding; None for the largest of each component, which is no weighted sum.
    """
    positions = token_counts(mask, skipped)
    match mode:
        case PoolingMode.CLS:
            weights = _only(np.sign(positions).argmax(axis=1), mask)
        case PoolingMode.LAST_TOKEN:
            counted = np.sign(positions)
            last = _only(mask.shape[1] - 1 - counted[:, ::-1].argmax(axis=1), mask)
            weights = last * counted.any(axis=1, keepdims=True)
        case PoolingMode.MEAN:
            weights = np.sign(positions) / _at_least_one(np.sign(positions))
        case PoolingMode.MEAN_SQRT_LEN:
            weights = np.sign(positions) / np.sqrt(_at_least_one(np.sign(positions)))
        case PoolingMode.WEIGHTED_MEAN:
            weights = positions / _at_least_one(positions)
        case PoolingMode.MAX:
            return None
    return weights.astype(np.float32)


def _only(places: Int64, mask: Int64) -> NDArray[np.float64]:
    weights = np.zeros(mask.shape)
    weights[np.arange(len(mask)), places] = 1
    return weights


def _at_least_one(weights: Int64) -> Int64:
    total: Int64 = weights.sum(axis=1, keepdims=True)
    return np.maximum(total, 1)
