"""Texts to token ids, with true counts and truncation: the only file that touches the package `tokenizers`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

# Its threads are as many as there are cores, whatever `--threads` says, and even one text would wake one of them. While
# one lane tokenises, the others run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import AddedToken, Encoding, Tokenizer, models, normalizers, processors

from embed_worker.errors import InvalidInput, ModelError, NothingLeft, brief
from embed_worker.inference.chat import ChatTemplate
from embed_worker.model_files.layout import read_file
from embed_worker.model_files.plan import ModelPlan
from embed_worker.model_files.tokenizer_plan import TokenizerPlan


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """One text as the graph will see it.

    Attributes:
        ids: (tokens,) int64, special tokens included, cut to the model's limit.
        count: The tokens of the whole text, before the cut.
        skipped: Leading tokens that pooling leaves out: those of a prompt that the folder excludes.
        ranges: (text tokens, 2) uint32, where it was asked for: where in the text each token of its own begins and
            ends, in code points; special tokens and those of a prompt or a template have none.
    """

    ids: NDArray[np.int64]
    count: int
    skipped: int = 0
    ranges: NDArray[np.uint32] | None = None

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
        self._chat = None if plan.chat is None else ChatTemplate(plan.chat, plan.name)
        self._special_ids = frozenset(counting.token_to_id(token) for token in plan.tokenizer.special)
        self._known: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self.pad_id = _pad_id(counting, plan)

    @classmethod
    def load(cls, plan: ModelPlan) -> TextTokenizer:
        """Make the tokenizer of a plan.

        Raises:
            ModelError: It cannot be read, is damaged, or leaves no room for a text within the model's limit.
        """
        counting = _make(plan.tokenizer, plan.name)
        if plan.lowercase:
            _lowercase_first(counting)
        special = counting.num_special_tokens_to_add(is_pair=False) if plan.adds_special_tokens else 0
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

    def encode(
        self, texts: Sequence[str], prompt: str, *, cuts: bool = True, ranges: bool = False
    ) -> list[TokenizedText]:
        """Tokenise texts, each with the prompt put before it verbatim; nothing is stripped.

        Args:
            texts: Any number.
            prompt: May be empty.
            cuts: Whether to cut what is over the model's limit.
            ranges: Whether to find where in its text each token is.

        Raises:
            InvalidInput: A text cannot be encoded, or does not stand in its chat template as it is.
            NothingLeft: The prompt leaves nothing of any text.
        """
        skipped = self._skipped(prompt)
        whole = self._whole(texts, prompt)
        places = self._places(texts, whole, prompt) if ranges else [None] * len(texts)
        encodings = self._encode(whole, ranges=ranges)
        chat = self._plan.chat
        suffix = self._suffix(prompt) if chat is not None and chat.restores_suffix else ()
        encoded = []
        for text, place, encoding in zip(whole, places, encodings, strict=True):
            count = len(encoding)
            if cuts and count > self._max_tokens:
                encoding = self._cut(text, ranges=ranges)
            # A text that just fits gets it, too, as in sentence-transformers: a token may be of the text and of it.
            replaced = min(len(suffix), len(encoding)) if cuts and count >= self._max_tokens else 0
            ids = np.array(encoding.ids, np.int64)
            ids[len(ids) - replaced :] = suffix[len(suffix) - replaced :]
            found = None if place is None else ranges_of(encoding, place, replaced)
            encoded.append(TokenizedText(ids, count, skipped, found))
        return encoded

    def _whole(self, texts: Sequence[str], prompt: str) -> list[str]:
        if self._chat is not None:
            return self._chat.render_all(texts, prompt)
        return [prompt + text for text in texts] if prompt else list(texts)

    def _places(self, texts: Sequence[str], whole: Sequence[str], prompt: str) -> list[TextPlace]:
        """Find each text in what is tokenised of it.

        Raises:
            InvalidInput: A chat template changes a text.
        """
        if self._chat is None:
            return [TextPlace(len(prompt), len(text)) for text in texts]
        before, behind = self._chat.around(prompt)
        places = []
        for index, (text, rendered) in enumerate(zip(texts, whole, strict=True)):
            stop = len(rendered) - len(behind)
            inner = rendered[len(before) : max(len(before), stop)]
            # Many templates strip what they are given.
            if (before + inner + behind) != rendered or inner not in (text, text.strip()):
                raise InvalidInput("has no offsets: the model's chat template changes the text", index=index)
            stripped = 0 if inner == text else len(text) - len(text.lstrip())
            places.append(TextPlace(len(before), len(inner), stripped))
        return places

    def _encode(self, texts: list[str], *, ranges: bool = False) -> list[Encoding]:
        adds = self._plan.adds_special_tokens
        encode = self._counting.encode_batch if ranges else self._counting.encode_batch_fast
        try:
            return list(encode(texts, add_special_tokens=adds))
        except Exception as error:  # the package raises plain Exception for what a vocabulary has no token for
            for index, text in enumerate(texts):
                self._check_encodes(text, index)
            raise InvalidInput(f"cannot be encoded: {brief(error)}", index=0) from error

    def _check_encodes(self, text: str, index: int) -> None:
        try:
            self._counting.encode(text, add_special_tokens=self._plan.adds_special_tokens)
        except Exception as error:
            raise InvalidInput(f"cannot be encoded: {brief(error)}", index=index) from error

    def _cut(self, text: str, *, ranges: bool) -> Encoding:
        """Encode again rather than cut: only the tokenizer knows which special tokens must stay at the end."""
        cutting = self._tokenizer_that_cuts()
        encode = cutting.encode_batch if ranges else cutting.encode_batch_fast
        return encode([text], add_special_tokens=self._plan.adds_special_tokens)[0]

    def _tokenizer_that_cuts(self) -> Tokenizer:
        """A second instance, because truncation is a state of the tokenizer that other threads would see."""
        with self._lock:
            if self._cutting is None:
                cutting = Tokenizer.from_str(self._counting.to_str())
                cutting.encode_special_tokens = self._counting.encode_special_tokens
                direction = "left" if self._plan.tokenizer.truncate_left else "right"
                cutting.enable_truncation(self._max_tokens, direction=direction)
                self._cutting = cutting
            return self._cutting

    def _skipped(self, prompt: str) -> int:
        """Count the leading tokens that pooling leaves out."""
        if self._plan.include_prompt or not prompt or self._chat is not None:
            return 0
        skipped, count = self._remember("prompt", prompt, self._prompt_tokens)
        if count > self._max_tokens:
            raise NothingLeft(
                f"the prompt has {count} tokens, which this model leaves out of the vector, and its limit is "
                f"{self._max_tokens}: nothing of a text is left"
            )
        return int(skipped)

    def _prompt_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the leading tokens of a prompt, the leading special tokens included, and all of its tokens.

        Reference: sentence-transformers, which encodes the prompt alone and leaves out a final special token.
        """
        ids = self._encode([prompt])[0].ids
        return len(ids) - (1 if ids and ids[-1] in self._special_ids else 0), len(ids)

    def _suffix(self, prompt: str) -> tuple[int, ...]:
        """Return the tokens that a chat template puts behind every text: a cut must not lose them.

        Reference: sentence-transformers, which compares two short texts from the end.
        """

        def find(prompt: str) -> tuple[int, ...]:
            first, second = (encoding.ids for encoding in self._encode(self._whole(["0", "1 2 3 4"], prompt)))
            same = 0
            while same < min(len(first), len(second)) and first[-1 - same] == second[-1 - same]:
                same += 1
            return tuple(first[len(first) - same :]) if 0 < same < min(len(first), len(second)) else ()

        found: tuple[int, ...] = self._remember("suffix", prompt, find)
        return found

    def _remember(self, kind: str, prompt: str, find: Callable[[str], Any]) -> Any:
        with self._lock:
            known = self._known.get((kind, prompt))
        if known is None:
            known = find(prompt)
            with self._lock:
                if len(self._known) >= 256:  # literal prompts come from requests
                    self._known.clear()
                self._known[kind, prompt] = known
        return known


@dataclass(frozen=True, slots=True)
class TextPlace:
    """Where a text stands in what is tokenised: from `start`, `length` code points, the first `stripped` left out."""

    start: int
    length: int
    stripped: int = 0


def ranges_of(encoding: Encoding, place: TextPlace, replaced: int = 0) -> NDArray[np.uint32]:
    """Return where in a text its own tokens are: (tokens, 2), in their order.

    A token that is partly the prompt's and partly the text's is the text's, and its range is the part in the text.

    Args:
        encoding: With offsets.
        place: Where the text stands in what was encoded.
        replaced: So many tokens at the end have been replaced by a template's.
    """
    kept = len(encoding) - replaced
    pieces = [np.zeros((0, 2), np.int64)]
    offsets, special = encoding.offsets, encoding.special_tokens_mask
    for first in range(0, kept, _PIECE_TOKENS):
        last = min(kept, first + _PIECE_TOKENS)
        ranges = np.array(offsets[first:last], np.int64)
        begins, ends = ranges[:, 0] - place.start, ranges[:, 1] - place.start
        is_own = np.array(special[first:last]) == 0
        is_own &= (ends > 0) | (begins >= 0)
        is_own &= (begins < place.length) | (ends <= place.length)
        own = np.stack((begins[is_own], ends[is_own]), axis=1)
        pieces.append(own.clip(0, place.length) + place.stripped)
    return np.concatenate(pieces).astype(np.uint32)


_PIECE_TOKENS = 32_768  # some milliseconds of work with the interpreter lock


def _make(plan: TokenizerPlan, name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(_document(plan))
        for token in plan.tokens:
            tokenizer.add_tokens([AddedToken(**token)])
        if plan.template is not None:
            tokenizer.post_processor = _template(tokenizer, plan.template)
        tokenizer.encode_special_tokens = plan.splits_special
    except OSError as error:
        raise ModelError(
            f"the model {name!r} has a {plan.file.name} that cannot be read: {error.strerror or error}"
        ) from error
    except BaseException as error:  # plain Exception for whatever is wrong with the file, and Rust's panics are none
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        problem = f"has a {plan.file.name} that cannot be used: {str(error)[:200]}"
        raise ModelError(f"the model {name!r} {problem}") from error
    # Published files carry settings of whoever saved them: MiniLM's would cut texts at 128 and pad every text to 128.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _document(plan: TokenizerPlan) -> str:
    """Return tokenizer.json with the sections of the plan in place of its own, or one made for a vocabulary."""
    if plan.file.suffix == ".txt":
        document: dict[str, Any] = {"version": "1.0", "added_tokens": [], **plan.sections}
        members = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        document["model"] = {**members, **plan.sections["model"], "vocab": models.WordPiece.read_file(str(plan.file))}
        return orjson.dumps(document).decode()
    content = read_file(plan.file).decode()
    if not plan.sections and plan.keeps_tokens:
        return content
    document = orjson.loads(content)
    model = {**document["model"], **plan.sections.get("model", {})}
    document |= {**plan.sections, "model": model}
    if not plan.keeps_tokens:
        document["added_tokens"] = []
    return orjson.dumps(document).decode()


def _template(tokenizer: Tokenizer, names: Sequence[str | None]) -> Any:
    special = []
    for name in dict.fromkeys(name for name in names if name is not None):
        if (index := tokenizer.token_to_id(name)) is None:
            raise ValueError(f"its template has {name!a}, which is no token")
        special.append((name, index))
    pieces = ["$A" if name is None else name for name in names]
    return processors.TemplateProcessing(single=pieces, pair=[*pieces, "$B"], special_tokens=special)


def _lowercase_first(tokenizer: Tokenizer) -> None:
    """Lower-case texts before anything else happens to them, where nothing does.

    Reference: sentence-transformers, the option `do_lower_case` of the module `Transformer`.
    """
    own = tokenizer.normalizer
    steps = [own[place] for place in range(len(own))] if isinstance(own, normalizers.Sequence) else [own]
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return
    lowercase = normalizers.Lowercase()
    tokenizer.normalizer = lowercase if own is None else normalizers.Sequence([lowercase, own])


def _pad_id(tokenizer: Tokenizer, plan: ModelPlan) -> int:
    """Find an id for padding. The mask hides it, so any row of the vocabulary does where the folder names none."""
    token = plan.tokenizer.pad_token
    found = tokenizer.token_to_id(token) if token is not None else None
    return 0 if found is None else found
