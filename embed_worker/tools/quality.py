"""Whether vectors are good: held against reference vectors, and what pairs of texts that mean the same come to.

It judges whatever a worker answers, and knows no process, file of a model or clock. B and D are batch and dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embed_worker.inference.pooling import cosine_distances, norms
from embed_worker.model_files.known_models import Quality
from embed_worker.tools.references import Float32, References, ReferenceSet
from embed_worker.tools.texts import SIMILAR_PAIRS

# Of the graph's precision, to references in float32. Wrong pooling differs by more: its smallest cosines on the sample
# texts are 0.22 (MiniLM), 0.84 (bge-small) and 0.85 (e5-small), its means 0.45, 0.93 and 0.91.
MIN_COSINE = 0.9999
MIN_COSINE_FLOAT16 = 0.999
# The hub's int8 of bge-small, a coarse one: smallest 0.968 (a full stop), mean 0.994.
MIN_COSINE_QUANTIZED = 0.9
MIN_MEAN_QUANTIZED = 0.98
_MAX_NORM_ERROR = 0.01
_QUANTIZED = ("int", "uint", "float8")
# What `info` says and a file of references may say of the folder, in the order in which they are told.
_SETTINGS = ("dimension", "pooling", "normalize", "max_tokens", "default_prompt_name")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedded:
    """An answer: (B, D) float32, the tokens of each text before truncation, and the indexes of those that were cut."""

    vectors: Float32
    tokens: tuple[int, ...]
    truncated: tuple[int, ...]


class EmbedTexts(Protocol):
    """Turns texts into vectors as a request with these members asks (`prompt_name` …)."""

    def __call__(self, texts: Sequence[str], **request: Any) -> Embedded:
        """Return the answer, in the order of the texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One requirement: `measured` must be so to `limit`.

    Attributes:
        measured: A number or a setting; None could not be measured, and has not passed.
        comparison: `>`, `<` or `=`; empty for a figure that nothing is known to hold against.
        passed: None for a figure.
    """

    name: str
    measured: float | str | None
    comparison: str = ""
    limit: float | str | None = None
    passed: bool | None = None
    note: str = ""

    @classmethod
    def of(cls, name: str, measured: float, comparison: str, limit: float, *, digits: int = 4, note: str = "") -> Gate:
        """Compare. NaN passes nothing."""
        passed = bool(measured > limit if comparison == ">" else measured < limit)
        rounded = round(measured, digits)
        return cls(name=name, measured=rounded, comparison=comparison, limit=limit, passed=passed, note=note)


# Pairs --------------------------------------------------------------------------------------------------------------


def judge_pairs(embed: EmbedTexts, quality: Quality | None, *, normalizes: bool) -> list[Gate]:
    """Embed pairs of texts that mean the same, and compare; the first of a pair as a query, the second as a document.

    Args:
        embed: The model.
        quality: What is required of it; None gives figures: how near unrelated texts lie, and in which languages they
            are understood, belongs to the model.
        normalizes: Whether it says that its vectors have length 1.
    """
    queries, documents = zip(*SIMILAR_PAIRS, strict=True)
    left = embed(queries, prompt_name="query").vectors
    right = embed(documents, prompt_name="document").vectors
    gates = []
    if normalizes:
        lengths = norms(np.concatenate([left, right]))
        gates.append(Gate.of("norm_error", float(np.abs(lengths - 1).max()), "<", _MAX_NORM_ERROR, digits=7))
    similarities = (left / norms(left)[:, None]) @ (right / norms(right)[:, None]).T
    similar = float(similarities.diagonal().min())
    different = float(similarities[~np.eye(len(similarities), dtype=bool)].max())
    measured = {"similar_pairs_min": similar, "different_pairs_max": different, "separation": similar - different}
    if quality is None:
        return [*gates, *(Gate(name=name, measured=round(value, 4)) for name, value in measured.items())]
    limits = ((">", quality.similar_min), ("<", quality.different_max), (">", quality.separation_min))
    return [
        *gates,
        *(Gate.of(name, value, *limit) for (name, value), limit in zip(measured.items(), limits, strict=True)),
    ]


# Reference vectors --------------------------------------------------------------------------------------------------


def judge_references(embed: EmbedTexts, references: References, info: Mapping[str, Any]) -> list[Gate]:
    """Compare a model's settings, vectors, lengths and counts with a file's, each under its own name.

    Args:
        embed: The model.
        references: What it is held against.
        info: What the worker says of the model, as the protocol names it.
    """
    is_quantized = info["precision"].startswith(_QUANTIZED)
    gates = list(_compare_settings(info, references))
    answers = [embed(item.texts, **item.request) for item in references.sets]
    judged = [(item, answer) for item, answer in zip(references.sets, answers, strict=True)]
    for item, answer in judged:
        if answer.vectors.shape != item.vectors.shape:
            note = f"{answer.vectors.shape[1]} components, and the references have {item.vectors.shape[1]}"
            return [*gates, Gate(name="references", measured=None, comparison=">", limit=0, passed=False, note=note)]
    smallest = references.min_cosine or (MIN_COSINE if info["precision"] == "float32" else MIN_COSINE_FLOAT16)
    if is_quantized:
        smallest = min(smallest, MIN_COSINE_QUANTIZED)
    for name, found in _cosines_by_name(judged):
        gates.append(Gate.of(name, float(found.min()), ">", smallest, digits=7))
    if is_quantized:
        mean = float(np.mean(np.concatenate([cosines(answer.vectors, item.vectors) for item, answer in judged])))
        gates.append(Gate.of("references_mean", mean, ">", MIN_MEAN_QUANTIZED))
    ratios = [norms(answer.vectors) / norms(item.vectors) for item, answer in judged]
    wrong = float(np.abs(np.concatenate(ratios) - 1).max())
    gates.append(Gate.of("vector_length", wrong, "<", _MAX_NORM_ERROR if not is_quantized else 0.1, digits=7))
    return [*gates, *_compare_counts(judged)]


def _compare_settings(info: Mapping[str, Any], references: References) -> Iterator[Gate]:
    settings = references.settings
    pairs = [(name, info[name], settings[name]) for name in _SETTINGS if name in settings]
    prompts = settings.get("prompts", {})
    pairs += [(f"prompt_{name}", info["prompts"].get(name), prompt) for name, prompt in prompts.items()]
    for name, measured, limit in pairs:
        yield Gate(name=name, measured=_said(measured), comparison="=", limit=_said(limit), passed=measured == limit)


def _said(setting: object) -> str:
    if isinstance(setting, list):
        return " + ".join(map(str, setting))
    return repr(setting) if isinstance(setting, str) else str(setting)


def _cosines_by_name(
    judged: Sequence[tuple[ReferenceSet, Embedded]],
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield smallest cosines apart for each prompt, and for texts that are cut: which is wrong says what is wrong."""
    cut: list[NDArray[np.float64]] = []
    for item, answer in judged:
        found = cosines(answer.vectors, item.vectors)
        is_cut = np.isin(np.arange(len(found)), [*(item.truncated or ()), *answer.truncated])
        if not is_cut.all():
            yield f"references_{item.name}".rstrip("_"), found[~is_cut]
        cut.append(found[is_cut])
    if (of_cut := np.concatenate(cut)).size:
        yield "references_cut", of_cut


def _compare_counts(judged: Sequence[tuple[ReferenceSet, Embedded]]) -> Iterator[Gate]:
    for name in ("tokens", "truncated"):
        known = [(getattr(item, name), getattr(answer, name)) for item, answer in judged]
        differing = [(right, found) for right, found in known if right is not None and right != found]
        if any(right is not None for right, _ in known):
            yield Gate.of(f"wrong_{name}", len(differing), "<", 1, note="in how many sets of texts")


def cosines(a: Float32, b: Float32) -> NDArray[np.float64]:
    """Compute cosines row by row in float64, (B, D) → (B,); NaN where a vector has no length."""
    return 1 - cosine_distances(a, b)
