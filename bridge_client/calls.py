"""What calls ask of the worker, and how its answers are checked and joined again: vectors, and tokens.

No I/O, no threads, no clock; `chunks.py` says when which of it happens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypedDict

import numpy as np
from numpy.typing import NDArray

from bridge_client.chunks import Answer, Call, Chunk, InputType, TextParameters
from bridge_client.embeddings import Embeddings, Matrix, Precision, Tokenization
from bridge_client.errors import PoisonedInputError
from bridge_client.futures import Outlet
from bridge_client.handshake import Served
from embed_worker import protocol
from embed_worker.protocol import EncodingFormat, ErrorCode

_ENCODINGS = {
    "float32": EncodingFormat.BASE64,
    "float16": EncodingFormat.BASE64_FLOAT16,
    "ubinary": EncodingFormat.BASE64_UBINARY,
}
_DTYPES = {"float32": "<f4", "float16": "<f2", "ubinary": "u1"}

# Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(TextParameters):
    """What an `embed` asks for beside its inputs. None: what the model's folder says."""

    normalize: bool | None = None
    dimensions: int | None = None
    precision: Precision = "float32"


class EmbedKeywords(TypedDict, total=False):
    """The names and types of `Parameters`, for the checkers of hosts; a test keeps the two equal."""

    normalize: bool | None
    dimensions: int | None
    precision: Precision
    prompt_name: str | None
    prompt: str | None
    input_type: InputType | None
    truncate: bool
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbedAnswer(Answer):
    """The checked answer to a chunk: (B, D) vectors and what belongs to them."""

    vectors: Matrix
    dimension: int
    timing_ms: Mapping[str, float]


class EmbedCall(Call[Embeddings, EmbedAnswer]):
    """A call for vectors.

    Raises:
        ValueError: A precision that there is not; and what `Call` raises.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        parameters: Parameters,
        *,
        timeout_s: float,
        deadline: float | None = None,
        waits_for_room: bool = False,
        outlet: Outlet[Embeddings] | None = None,
    ) -> None:
        super().__init__(
            inputs, parameters, timeout_s=timeout_s, deadline=deadline, waits_for_room=waits_for_room, outlet=outlet
        )
        if parameters.precision not in _ENCODINGS:
            known = ", ".join(map(repr, _ENCODINGS))
            raise ValueError(f"`precision` must be one of {known}, not {parameters.precision!r}")
        self.parameters = parameters
        self._vectors: Matrix | None = None
        self._dimension = 0
        self._timing_ms: dict[str, float] = {}

    def request(self, start: int, stop: int, prompts: Mapping[str, str]) -> protocol.Embed:
        """Return the request for a range of the inputs, to a model with these prompts."""
        wanted = self.parameters
        prompt_name, prompt = wanted.chosen_prompt(prompts)
        return protocol.Embed(
            inputs=list(self.inputs[start:stop]),
            normalize=wanted.normalize,
            dimensions=wanted.dimensions,
            prompt_name=prompt_name,
            prompt=prompt,
            model=wanted.model,
            truncate=wanted.truncate,
            encoding_format=_ENCODINGS[wanted.precision],
        )

    def read(self, members: Mapping[str, Any], chunk: Chunk, served: Served) -> EmbedAnswer:
        """Check and decode an answer; see `Call.read`."""
        wanted = self.parameters
        if wanted.model is not None:
            served = _another_model(members, served)
            served = replace(served, dimension=_dimension_of(members))
        count, dimension = len(chunk), wanted.dimensions or served.dimension
        encoding = _ENCODINGS[wanted.precision]
        flat = np.frombuffer(protocol.decode_matrix(members, count, dimension, encoding), _DTYPES[wanted.precision])
        if not np.isfinite(flat).all():
            _refuse("a vector is not finite")
        tokens, truncated = _lengths(members, count, served)
        timing_ms = members.get("timing_ms")
        told = timing_ms.items() if isinstance(timing_ms, dict) else ()
        width = dimension if wanted.precision != "ubinary" else encoding.row_bytes(dimension)
        return EmbedAnswer(
            vectors=flat.reshape(count, width),
            dimension=dimension,
            tokens=tokens,
            truncated=truncated,
            timing_ms={name: value for name, value in told if isinstance(value, (int, float))},
            served=served,
        )

    def _keep(self, chunk: Chunk, answer: EmbedAnswer) -> None:
        if self._vectors is None:
            shape = (len(self.inputs), answer.vectors.shape[1])
            self._vectors = np.zeros(shape, answer.vectors.dtype.newbyteorder("="))
            self._dimension = answer.dimension
        self._vectors[chunk.start : chunk.stop] = answer.vectors
        if answer.timing_ms.get("total", 0.0) >= self._timing_ms.get("total", 0.0):
            self._timing_ms = dict(answer.timing_ms)

    def _poisoned(self, blamed: tuple[int, ...]) -> PoisonedInputError:
        return PoisonedInputError(blamed, self._result() if self._served is not None else None)

    def _result(self) -> Embeddings:
        assert self._vectors is not None
        assert self._served is not None
        blamed = set(self._blamed)
        kept = [index for index in range(len(self.inputs)) if index not in blamed]
        row = {index: number for number, index in enumerate(kept)} if blamed else None
        return Embeddings(
            vectors=self._vectors if row is None else self._vectors[kept],
            dimension=self._dimension,
            tokens=tuple(self._tokens if row is None else (self._tokens[index] for index in kept)),
            truncated=tuple(sorted(self._truncated if row is None else (row[index] for index in self._truncated))),
            model=self._served.model,
            fingerprint=self._served.fingerprint,
            timing_ms=self._timing_ms,
        )


# Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeParameters(TextParameters):
    """What a `tokenize` asks for beside its inputs."""

    offsets: bool = False


class TokenizeKeywords(TypedDict, total=False):
    """The names and types of `TokenizeParameters`, for the checkers of hosts; a test keeps the two equal."""

    offsets: bool
    prompt_name: str | None
    prompt: str | None
    input_type: InputType | None
    truncate: bool
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizeAnswer(Answer):
    """The checked answer to a chunk: where the tokens of each input are, (tokens, 2), where it was asked for."""

    offsets: list[NDArray[np.int64]]


class TokenizeCall(Call[Tokenization, TokenizeAnswer]):
    """A call for counts and places of tokens."""

    def __init__(
        self,
        inputs: Sequence[str],
        parameters: TokenizeParameters,
        *,
        timeout_s: float,
        deadline: float | None = None,
        outlet: Outlet[Tokenization] | None = None,
    ) -> None:
        super().__init__(inputs, parameters, timeout_s=timeout_s, deadline=deadline, waits_for_room=True, outlet=outlet)
        self.parameters = parameters
        self._offsets: dict[int, NDArray[np.int64]] = {}

    def request(self, start: int, stop: int, prompts: Mapping[str, str]) -> protocol.Tokenize:
        """Return the request for a range of the inputs, to a model with these prompts."""
        wanted = self.parameters
        prompt_name, prompt = wanted.chosen_prompt(prompts)
        return protocol.Tokenize(
            inputs=list(self.inputs[start:stop]),
            prompt_name=prompt_name,
            prompt=prompt,
            model=wanted.model,
            truncate=wanted.truncate,
            offsets=wanted.offsets,
        )

    def read(self, members: Mapping[str, Any], chunk: Chunk, served: Served) -> TokenizeAnswer:
        """Check and decode an answer; see `Call.read`."""
        if self.parameters.model is not None:
            served = _another_model(members, served)
        if members.get("count") != len(chunk):
            _refuse(f"count {members.get('count')!a}, expected {len(chunk)}")
        tokens, truncated = _lengths(members, len(chunk), served)
        offsets: list[NDArray[np.int64]] = []
        if self.parameters.offsets:
            told = members.get("offsets")
            if not isinstance(told, list) or len(told) != len(chunk):
                _refuse("`offsets` are not one list for each input")
            offsets = [_ranges(each, len(text)) for each, text in zip(told, chunk.texts, strict=True)]
        return TokenizeAnswer(tokens=tokens, truncated=truncated, served=served, offsets=offsets)

    def _keep(self, chunk: Chunk, answer: TokenizeAnswer) -> None:
        self._offsets.update(enumerate(answer.offsets, chunk.start))

    def _result(self) -> Tokenization:
        assert self._served is not None
        found = self._offsets
        return Tokenization(
            tokens=tuple(self._tokens),
            truncated=tuple(sorted(self._truncated)),
            offsets=tuple(found[index] for index in range(len(self.inputs))) if self.parameters.offsets else None,
            model=self._served.model,
            fingerprint=self._served.fingerprint,
        )


# Both


def _lengths(members: Mapping[str, Any], count: int, served: Served) -> tuple[list[int], list[int]]:
    """Return what an answer of the model that is served says of the lengths of its inputs."""
    if (members.get("model"), members.get("fingerprint")) != (served.model, served.fingerprint):
        _refuse("the model or the fingerprint is not the one of `info`")
    tokens, truncated = members.get("tokens"), members.get("truncated")
    if not isinstance(tokens, list) or len(tokens) != count or not all(type(n) is int and n >= 0 for n in tokens):
        _refuse("`tokens` are not one number for each input")
    if not isinstance(truncated, list) or not all(type(index) is int and 0 <= index < count for index in truncated):
        _refuse("`truncated` are not indexes of inputs")
    return tokens, truncated


def _ranges(told: Any, length: int) -> NDArray[np.int64]:
    """Return the ranges of the tokens of a text of so many code points."""
    try:
        found = np.array(told)
    except ValueError:
        _refuse("`offsets` are not pairs")
    if told == []:
        return np.zeros((0, 2), np.int64)
    # By their types in JSON: numpy takes true among integers for 1.
    if found.ndim != 2 or found.shape[1] != 2 or set(map(type, itertools.chain.from_iterable(told))) != {int}:
        _refuse("`offsets` are not pairs of integers")
    if found.min() < 0 or found.max() > length or (found[:, 0] > found[:, 1]).any():
        _refuse("`offsets` are not ranges of the input")
    return found.astype(np.int64, copy=False)


def _another_model(members: Mapping[str, Any], served: Served) -> Served:
    """Return what an answer says of its model, of which the worker promised nothing."""
    model, fingerprint = members.get("model"), members.get("fingerprint")
    if not (isinstance(model, str) and isinstance(fingerprint, str) and model and fingerprint):
        _refuse("no model or no fingerprint is named")
    return replace(served, model=model, fingerprint=fingerprint)


def _dimension_of(members: Mapping[str, Any]) -> int:
    dimension = members.get("dimension")
    if type(dimension) is not int or dimension < 1:
        _refuse("no dimension is named")
    return dimension


def _refuse(message: str) -> NoReturn:
    raise protocol.ProtocolError(ErrorCode.PARSE_ERROR, message)
