"""Texts to token ids, with true counts and truncation: the only file that touches the package `tokenizers`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, normalizers

from embed_worker.errors import ModelError
from embed_worker.model_files.plan import ModelPlan


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """One text as the graph will see it.

    Attributes:
        ids: (tokens,) int64, special tokens included, cut to the model's limit.
        count: The tokens of the whole text, before the cut.
        skipped: Leading tokens that pooling leaves out: those of a prompt that the folder excludes.
    """

    ids: NDArray[np.int64]
    count: int
    skipped: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether the model sees less than the text."""
        return self.count > len(self.ids)


class TextTokenizer:
    """A folder's tokenizer without the truncation and padding that the published file carries.

    Safe to use from several threads: encoding leaves the interpreter lock, and cuts never share state with it.
    """

    def __init__(self, counting: Tokenizer, plan: ModelPlan) -> None:
        self._counting = counting
        self._cutting: Tokenizer | None = None  # most workers never see a text that is too long
        self._plan = plan
        self._max_tokens = plan.max_tokens
        self._include_prompt = plan.include_prompt
        self._skipped_by_prompt: dict[str, int] = {}
        self._lock = threading.Lock()
        self.pad_id = _pad_id(counting, plan)

    @classmethod
    def load(cls, plan: ModelPlan) -> TextTokenizer:
        """Read `tokenizer.json`.

        Raises:
            ModelError: It cannot be read, is damaged, or leaves no room for a text within the model's limit.
        """
        counting = _read(plan.tokenizer_file, plan.name)
        if plan.lowercase:
            _lowercase_first(counting)
        special = counting.num_special_tokens_to_add(is_pair=False)
        if plan.max_tokens <= special:
            raise ModelError(
                f"the model {plan.name!r} has a limit of {plan.max_tokens} tokens, "
                f"and {special} special tokens leave no room for a text"
            )
        return cls(counting, plan)

    @property
    def vocabulary(self) -> int:
        """The number of tokens, added ones included."""
        return int(self._counting.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str], prompt: str) -> list[TokenizedText]:
        """Tokenise texts, each with the prompt put before it verbatim; nothing is stripped."""
        whole = [prompt + text for text in texts] if prompt else list(texts)
        encodings: list[Encoding] = self._counting.encode_batch_fast(whole)
        skipped = 0 if self._include_prompt or not prompt else self._prompt_tokens(prompt)
        return [self._cut(text, encoding, skipped) for text, encoding in zip(whole, encodings, strict=True)]

    def _cut(self, text: str, encoding: Encoding, skipped: int) -> TokenizedText:
        ids = encoding.ids
        count = len(ids)
        if count > self._max_tokens:
            # Encoded again rather than cut here: only the tokenizer knows which special tokens must stay at the end.
            ids = self._tokenizer_that_cuts().encode_batch_fast([text])[0].ids
        return TokenizedText(np.array(ids, np.int64), count, skipped)

    def _tokenizer_that_cuts(self) -> Tokenizer:
        """A second instance, because truncation is a state of the tokenizer that other threads would see."""
        with self._lock:
            if self._cutting is None:
                cutting = Tokenizer.from_str(self._counting.to_str())
                direction = "left" if self._plan.truncate_left else "right"
                cutting.enable_truncation(self._max_tokens, direction=direction)
                self._cutting = cutting
            return self._cutting

    def _prompt_tokens(self, prompt: str) -> int:
        """Count the leading tokens of a prompt, the leading special tokens included.

        Reference: sentence-transformers, which encodes the prompt alone and leaves out a final special token.
        """
        with self._lock:
            known = self._skipped_by_prompt.get(prompt)
        if known is not None:
            return known
        special = self._counting.encode(prompt).special_tokens_mask
        count = len(special) - (1 if special and special[-1] else 0)
        with self._lock:
            if len(self._skipped_by_prompt) >= 256:  # literal prompts come from requests
                self._skipped_by_prompt.clear()
            self._skipped_by_prompt[prompt] = count
        return count


def _read(path: Path, name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"the model {name!r} has a tokenizer.json that cannot be read: {error.strerror}") from error
    except Exception as error:  # the package raises plain Exception for whatever is wrong with the file
        raise ModelError(f"the model {name!r} has a tokenizer.json that cannot be used: {str(error)[:200]}") from error
    # Published files carry settings of whoever saved them: MiniLM's would cut texts at 128 and pad every text to 128.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _lowercase_first(tokenizer: Tokenizer) -> None:
    """Lower-case texts before anything else happens to them.

    Reference: sentence-transformers, the option `do_lower_case` of the module `Transformer`.
    """
    own = tokenizer.normalizer
    lowercase = normalizers.Lowercase()
    tokenizer.normalizer = lowercase if own is None else normalizers.Sequence([lowercase, own])


def _pad_id(tokenizer: Tokenizer, plan: ModelPlan) -> int:
    """Find an id for padding. The mask hides it, so any row of the vocabulary does where the folder names none."""
    found = tokenizer.token_to_id(plan.pad_token) if plan.pad_token is not None else None
    return 0 if found is None else found
