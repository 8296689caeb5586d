"""The rules: each a reason to drop a document, from its attributes and a threshold. The first that holds is given.

A rule judges each document by itself, so a corpus is decided in pieces of any size. What `data.clean` does not measure
is judged by an `optional` rule: it applies once its threshold is set, and its attribute must be there then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.data.select.published import PUBLISHED, Limit, Published
from liuyi.data.select.thresholds import Thresholds
from liuyi.data.spdx import allows

Mask = NDArray[np.bool_]
KEPT = ""


class Attributes:
    """The columns of `attributes.parquet` and the documents' licences, as arrays [documents].

    `cut_ratio` is the share of each document's characters that selection will cut out; none where it is not given.
    """

    def __init__(
        self, table: pa.Table, licences: pa.ChunkedArray, cut_ratio: NDArray[np.float64] | float = 0.0
    ) -> None:
        self._table = table
        self.licences = licences
        self.words_left = self["words"] * (1 - cut_ratio)

    def __contains__(self, name: str) -> bool:
        return name in self._table.column_names

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._table[name].to_numpy()  # type: ignore[no-any-return]

    def column(self, name: str) -> pa.ChunkedArray:
        """The attribute as Arrow has it, such as a list a document."""
        return self._table[name]

    def among(self, name: str, values: tuple[str, ...]) -> Mask:
        """Whether the attribute is one of `values`."""
        return _among(self._table[name], values)


@dataclass(frozen=True)
class Rule:
    """A reason, and whether it holds for each document."""

    reason: str
    holds: Callable[[Attributes, Thresholds], Mask]
    needs: str = ""
    """The attribute that only some corpora have; empty where `data.clean` measures all that the rule asks for."""
    measured_by: str = ""
    """The step that measures it."""
    threshold: str = ""
    """The threshold that makes the rule apply when it is set: neither None, False nor empty."""

    def applies(self, attributes: Attributes, thresholds: Thresholds) -> bool:
        """Whether the rule has anything to say. Raises DataError where it is asked for but nobody has measured."""
        if not self.needs:
            return True
        wanted = getattr(thresholds, self.threshold)
        if wanted is None or wanted is False or wanted == ():
            return False
        if self.needs not in attributes:
            raise DataError(
                f"{self.threshold} is set, but the corpus has no attribute '{self.needs}'",
                hint=f"run {self.measured_by} on it first, or leave {self.threshold} out",
            )
        return True


def optional(
    reason: str, holds: Callable[[Attributes, Thresholds], Mask], *, needs: str, measured_by: str, threshold: str
) -> Rule:
    """A rule over the attribute `needs`, which the step `measured_by` gives; it applies once `threshold` is set."""
    return Rule(reason, holds, needs, measured_by, threshold)


def reasons(attributes: Attributes, thresholds: Thresholds) -> NDArray[np.object_]:
    """[documents] the first reason to drop each document; empty where it is kept.

    Raises DataError where a threshold is set whose attribute the corpus lacks.
    """
    chosen = np.full(len(attributes), KEPT, dtype=object)
    for rule in RULES:
        if rule.applies(attributes, thresholds):
            chosen[(chosen == KEPT) & rule.holds(attributes, thresholds)] = rule.reason
    return chosen


def _among(column: pa.ChunkedArray, values: tuple[str, ...]) -> Mask:
    return np.asarray(pc.is_in(column, value_set=pa.array(values, column.type)).to_numpy(), bool)


def _chinese(attributes: Attributes, thresholds: Thresholds) -> Mask:
    return np.asarray(attributes["han_ratio"] >= thresholds.min_han_ratio)


def _above(name: str, threshold: str) -> Callable[[Attributes, Thresholds], Mask]:
    return lambda attributes, thresholds: attributes[name] > getattr(thresholds, threshold)


def _below(name: str, threshold: str) -> Callable[[Attributes, Thresholds], Mask]:
    return lambda attributes, thresholds: attributes[name] < getattr(thresholds, threshold)


def _wrong_language(attributes: Attributes, thresholds: Thresholds) -> Mask:
    if not thresholds.languages:
        return np.zeros(len(attributes["words"]), bool)
    sure = attributes["lang_score"] >= max(thresholds.min_language_score, 1e-6)
    return sure & ~attributes.among("lang", thresholds.languages)


def _wrong_licence(attributes: Attributes, thresholds: Thresholds) -> Mask:
    if not thresholds.licenses:
        return np.zeros(len(attributes["words"]), bool)
    stated = [name for name in attributes.licences.unique().to_pylist() if name is not None]
    allowed = tuple(name for name in stated if allows(thresholds.licenses, name))
    return ~_among(attributes.licences, allowed)


def _near_duplicate(attributes: Attributes, thresholds: Thresholds) -> Mask:
    similar = attributes["duplicate_similarity"] >= thresholds.min_similarity
    return thresholds.drop_duplicates & similar & attributes.among("duplicate_kind", ("near",))


def _semantic_duplicate(attributes: Attributes, thresholds: Thresholds) -> Mask:
    similar = attributes["duplicate_similarity"] >= thresholds.min_semantic_similarity
    return thresholds.drop_duplicates & similar & attributes.among("duplicate_kind", ("semantic",))


def _contaminated(attributes: Attributes, thresholds: Thresholds) -> Mask:
    if not (thresholds.drop_contaminated and "contaminated_by" in attributes):
        return np.zeros(len(attributes), bool)
    return np.asarray(pc.list_value_length(attributes.column("contaminated_by")).to_numpy() > 0)


def _odd_words(attributes: Attributes, thresholds: Thresholds) -> Mask:
    mean = attributes["mean_word_chars"]
    odd = (mean < thresholds.min_mean_word_chars) | (mean > thresholds.max_mean_word_chars)
    return odd & ~_chinese(attributes, thresholds)


def _no_sentences(attributes: Attributes, thresholds: Thresholds) -> Mask:
    return attributes.among("lang", ("en",)) & (attributes["stop_words"] < thresholds.min_stop_words)


def _top_ngram(attributes: Attributes, thresholds: Thresholds) -> Mask:
    """Two or three Han characters are one word, and a short text may well say one word often."""
    phrases = np.maximum(attributes["top_2gram"], attributes["top_3gram"]) * ~_chinese(attributes, thresholds)
    return np.asarray(np.maximum(phrases, attributes["top_4gram"]) > thresholds.max_top_ngram)


def _chinese_keywords(attributes: Attributes, thresholds: Thresholds) -> Mask:
    marks = attributes["zh_punctuation"]
    odd = (marks < thresholds.min_zh_punctuation) | (marks > thresholds.max_zh_punctuation)
    few = attributes["zh_function_chars"] < thresholds.min_zh_function_chars
    return _chinese(attributes, thresholds) & (odd | few)


def _chinese_phrases(attributes: Attributes, thresholds: Thresholds) -> Mask:
    excess = attributes["zh_advertising"] + attributes["zh_boilerplate"] - attributes["zh_function_chars"]
    return np.asarray(_chinese(attributes, thresholds) & (excess > thresholds.max_zh_phrases))


def _chinese_without_words(attributes: Attributes, thresholds: Thresholds) -> Mask:
    return _chinese(attributes, thresholds) & (attributes["zh_word_pairs"] < thresholds.min_zh_word_pairs)


def _mixed_script(attributes: Attributes, thresholds: Thresholds) -> Mask:
    return _chinese(attributes, thresholds) & (attributes["mixed_script"] > thresholds.max_mixed_script)


def _blocked(attributes: Attributes, thresholds: Thresholds) -> Mask:
    if not (thresholds.drop_blocked_urls and "url_blocked" in attributes):
        return np.zeros(len(attributes), bool)
    return np.asarray(attributes["url_blocked"], bool)


def _published(name: Published, limit: Limit) -> Rule:
    def outside(attributes: Attributes, thresholds: Thresholds) -> Mask:
        if name not in thresholds.published:
            return np.zeros(len(attributes), bool)
        values = attributes[limit.attribute].astype(np.float32)
        wrong = np.zeros(len(values), bool)
        if limit.low is not None:
            wrong |= values < np.float32(limit.low)
        if limit.high is not None:
            wrong |= values > np.float32(limit.high)
        if limit.spaced:
            wrong &= ~_chinese(attributes, thresholds)
        if limit.english:
            wrong &= attributes.among("lang", ("en",))
        return np.asarray(wrong, bool)

    return optional(
        f"{name}: {limit.attribute}", outside, needs=limit.attribute, measured_by="data.clean", threshold="published"
    )


RULES: tuple[Rule, ...] = (
    Rule("exact duplicate", lambda a, t: t.drop_duplicates & a.among("duplicate_kind", ("exact",))),
    Rule("near duplicate", _near_duplicate),
    Rule("semantic duplicate", _semantic_duplicate),
    Rule("contaminated by an eval item", _contaminated),
    Rule("licence not allowed", _wrong_licence),
    Rule("blocked address", _blocked),
    Rule("other language", _wrong_language),
    Rule("wrongly decoded", _above("broken_ratio", "max_broken_ratio")),
    Rule("licence text", _above("licence_ratio", "max_licence_ratio")),
    Rule("written by a program", lambda a, t: t.drop_generated & a["is_generated"]),
    Rule("placeholder text", lambda a, t: t.drop_placeholder & a["is_placeholder"]),
    Rule("too short", lambda a, t: a["words"] < t.min_words),
    Rule("little left once repeated text is cut out", lambda a, t: a.words_left < t.min_words),
    Rule("code", _above("code_lines", "max_code_lines")),
    Rule("tables", _above("table_lines", "max_table_lines")),
    Rule("lists", _above("bullet_lines", "max_bullet_lines")),
    Rule("policies", _above("policy_lines", "max_policy_lines")),
    Rule("links", _above("link_lines", "max_link_lines")),
    Rule("cut-off lines", _above("ellipsis_lines", "max_ellipsis_lines")),
    Rule("short lines", _above("short_lines", "max_short_lines")),
    Rule("numbers", _above("digit_ratio", "max_digit_ratio")),
    Rule("symbols", lambda a, t: (a["symbol_ratio"] > t.max_symbol_ratio) | (a["alpha_ratio"] < t.min_alpha_ratio)),
    Rule("odd words", _odd_words),
    Rule("no sentences", _no_sentences),
    Rule("one character over and over", _above("run_ratio", "max_run_ratio")),
    Rule("repeated lines", _above("repeated_lines", "max_repeated_lines")),
    Rule("repeated paragraphs", _above("repeated_paragraphs", "max_repeated_paragraphs")),
    Rule("repeated phrases", lambda a, t: _top_ngram(a, t) | (a["repeated_10grams"] > t.max_repeated_ngrams)),
    Rule("Chinese without words", _chinese_without_words),
    Rule("Chinese advertisement or navigation", _chinese_phrases),
    Rule("both Chinese scripts mixed", _mixed_script),
    Rule("Chinese keywords, not sentences", _chinese_keywords),
    optional(
        "low quality",
        _below("quality_score", "min_quality_score"),
        needs="quality_score",
        measured_by="data.score",
        threshold="min_quality_score",
    ),
    optional(
        "not among the best",
        lambda a, t: a["quality_rank"] >= t.max_quality_rank,
        needs="quality_rank",
        measured_by="data.score",
        threshold="max_quality_rank",
    ),
    optional(
        "too predictable",
        _below("perplexity", "min_perplexity"),
        needs="perplexity",
        measured_by="data.perplexity",
        threshold="min_perplexity",
    ),
    optional(
        "too surprising",
        _above("perplexity", "max_perplexity"),
        needs="perplexity",
        measured_by="data.perplexity",
        threshold="max_perplexity",
    ),
    optional(
        "words of a list",
        _above("bad_words", "max_bad_words"),
        needs="bad_words",
        measured_by="data.lists",
        threshold="max_bad_words",
    ),
    optional(
        "words of a list",
        _above("bad_word_ratio", "max_bad_word_ratio"),
        needs="bad_word_ratio",
        measured_by="data.lists",
        threshold="max_bad_word_ratio",
    ),
    *(_published(name, limit) for name, limits in PUBLISHED.items() for limit in limits),
)
