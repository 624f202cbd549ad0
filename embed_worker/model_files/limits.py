"""How many tokens a text may have: what the folder says, and never more than the table of positions holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed_worker.model_files.folder_files import FolderFiles
from embed_worker.model_files.transformer_module import TransformerConfig

# Architectures with a table of positions, and how many of its rows no token can use.
_POSITION_OFFSETS = {
    "albert": 0,
    "bert": 0,
    "distilbert": 0,
    "electra": 0,
    "camembert": 2,
    "data2vec-text": 2,
    "ibert": 2,
    "longformer": 2,
    "mpnet": 2,
    "roberta": 2,
    "roberta-prelayernorm": 2,
    "xlm-roberta": 2,
    "xlm-roberta-xl": 2,
    "xmod": 2,
}
# The table's size where config.json leaves it unsaid: the default of all of these.
_USUAL_POSITIONS = 512

# GPT-2 and what descends from it call the table's size otherwise.
_OTHER_NAMES = dict.fromkeys(("codegen", "ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"), "n_positions")

# Tokenizers without a limit of their own say 1e30.
_NO_LIMIT = 10**9


def _is_no_limit(stated: object) -> bool:
    return isinstance(stated, int | float) and stated >= _NO_LIMIT


# No text that a line may hold has as many tokens.
UNLIMITED = 2**31 - 1


class FolderLimits:
    """The limit of a folder, by the files that may state it."""

    def __init__(
        self,
        files: FolderFiles,
        config: Mapping[str, Any],
        tokenizer_settings: Mapping[str, Any],
        transformer: TransformerConfig,
        head: str,
        *,
        known: tuple[int, str] | None = None,
        graph_positions: int | None = None,
    ) -> None:
        """Take what may state a limit.

        Args:
            files: The folder, for its errors.
            config: config.json.
            tokenizer_settings: The settings of the tokenizer.
            transformer: What sentence-transformers reads.
            head: The prefix of the head's files.
            known: What is known of a model of this name, for a folder that has only a graph and a tokenizer.
            graph_positions: The rows of the graph's own table of positions.
        """
        self._files = files
        self._config = config
        self._tokenizer_settings = tokenizer_settings
        self._transformer = transformer
        self._head = head
        self._known = known
        self._graph_positions = graph_positions

    def of_a_table(self, asked: int | None, saved: object) -> tuple[int, str]:
        """Return the limit of a StaticEmbedding, which has no positions: an option, or what its tokenizer cuts at.

        Raises:
            ModelError: What is saved is no number.
        """
        if asked is not None:
            return asked, "--max-tokens"
        if saved is None:
            return UNLIMITED, "StaticEmbedding has no limit"
        return self._files.positive(saved, "tokenizer.json: truncation"), "tokenizer.json: truncation"

    def decide(self, asked: int | None) -> tuple[int, str]:
        """Return the limit and what decides it.

        Args:
            asked: What an option says.

        Raises:
            ModelError: Nobody says, or what is said is no number.
        """
        limit, source = (asked, "--max-tokens") if asked is not None else self._stated()
        table = self._position_table(is_asked=asked is not None)
        if table is not None and table < limit:
            limit, source = table, f"config.json: the position table is smaller than {source}"
        rows = self._positions_in_the_graph()
        if rows is not None and rows < limit:
            limit, source = rows, f"the graph: its position table is smaller than {source}"
        return limit, source

    def _positions_in_the_graph(self) -> int | None:
        rows = self._graph_positions
        if rows is None:
            return None
        # RoBERTa and its kin, BART and OPT leave two rows unused; their tables have two more than a round number.
        offset = self._offset() if self._kind() in _POSITION_OFFSETS else 2 * (rows % 8 == 2)
        return rows - offset

    def _stated(self) -> tuple[int, str]:
        transformer = self._transformer
        if transformer.max_length is not None:
            return transformer.max_length, f"{transformer.name}: processing_kwargs"
        kwargs = transformer.processor_kwargs
        stated = kwargs.get("model_max_length", transformer.max_seq_length)
        if stated is not None and not _is_no_limit(stated):
            return self._files.positive(stated, f"{transformer.name}: max_seq_length"), (
                f"{transformer.name}: max_seq_length"
            )
        if self._known is not None:
            return self._known
        # A null among the arguments is stated: it takes the tokenizer's own limit away.
        is_unsaid = stated is None and "model_max_length" not in kwargs
        if not is_unsaid and not self._has_a_table():
            # As in sentence-transformers: positions that are computed go on beyond max_position_embeddings.
            return UNLIMITED, f"{transformer.name}: max_seq_length is no limit"
        limits = []
        if is_unsaid and (limit := self._limit_of_the_tokenizer()) is not None:
            limits.append((limit, "the tokenizer's settings: model_max_length"))
        if (rows := self._rows()) is not None:
            limits.append((rows - self._offset(), "config.json: max_position_embeddings"))
        if not limits:
            raise self._files.undecided("does not say how many tokens a text may have; decide it with --max-tokens")
        return min(limits)

    def _limit_of_the_tokenizer(self) -> int | None:
        settings = {**self._tokenizer_settings, **self._transformer.processor_kwargs}
        limit = settings.get("model_max_length", settings.get("max_len"))
        if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool)):
            raise self._files.error("has a model_max_length in tokenizer_config.json that is not a number")
        if limit is not None and limit <= 0:
            raise self._files.error(
                f"has a model_max_length of {limit} in tokenizer_config.json, which leaves nothing of a text: "
                "--max-tokens decides how many tokens a text may have"
            )
        return int(limit) if limit is not None and limit < _NO_LIMIT else None

    def _has_a_table(self) -> bool:
        """Return whether positions are rows of a table, by the architecture or by the graph."""
        kind = self._kind()
        return self._graph_positions is not None or kind in _POSITION_OFFSETS or kind in _OTHER_NAMES

    def _kind(self) -> str | None:
        kind = self._config.get("model_type")
        return kind if isinstance(kind, str) else None

    def _offset(self) -> int:
        return _POSITION_OFFSETS.get(self._kind() or "", 0)

    def _rows(self) -> int | None:
        """Return how many positions the architecture has; some have no table."""
        kind = self._kind()
        usual = _USUAL_POSITIONS if kind in _POSITION_OFFSETS else None
        name = _OTHER_NAMES.get(kind or "", "max_position_embeddings")
        rows = self._config.get(name, usual)
        if rows is None or (rows == -1 and usual is None):  # xlnet says -1
            return None
        return self._files.positive(rows, f"config.json: {name}")

    def padding_position(self) -> int | None:
        """Return the padding's id where the architecture counts positions from it; None where it counts from 0."""
        if not self._offset():
            return None
        padding_id = self._config.get("pad_token_id", 1)
        # MPNet's is no matter of configuration.
        is_stated = isinstance(padding_id, int) and self._kind() != "mpnet"
        return padding_id if is_stated else 1

    def counts_padding(self) -> bool:
        """Return whether the architecture counts positions over padding on the left, too, into a table."""
        kind = self._kind() or ""
        return _POSITION_OFFSETS.get(kind) == 0 or kind in _OTHER_NAMES

    def _position_table(self, *, is_asked: bool) -> int | None:
        if self._kind() is None and not is_asked and self._known is None:
            raise self._files.undecided(
                "has no config.json with a model_type, which a limit is checked by: decide it with --max-tokens"
            )
        rows = self._rows()
        has_a_table = self._kind() in _POSITION_OFFSETS or self._kind() in _OTHER_NAMES
        return rows - self._offset() if rows is not None and has_a_table else None
