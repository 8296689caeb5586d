"""What C4 (Raffel et al. 2020, section 2.2) looks for in the lines of a page, measured instead of cut out.

C4 removes lines that do not end like a sentence. That takes headings, lists, tables and code from documents which are
good as a whole, so nothing is removed here; how much C4 would keep is an attribute.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.data.clean.batch import HAN, Batch, Ints, ratio

ATTRIBUTES = {"c4_lines": pa.float32(), "c4_sentences": pa.int64(), "policy_lines": pa.float32()}

_ENDS = "[.!?\"'。！？”」』]$"
_ELLIPSIS = r"\.\.\.$"
_WORD = rf"{HAN}|[^\s\p{{Han}}]+"
_LEAST_WORDS, _LONGEST_WORD_CHARS = 3, 1000
_SENTENCE_END = "[.!?]+[\"'”’)]*(?:\\s|$)|[。！？]+[”’」』）]*"
_POLICY = (
    "(?i)javascript|terms of use|privacy policy|cookie policy|uses? (?:of )?cookies"
    "|隐私(?:政策|条款|声明)|隱私(?:政策|條款|聲明)|使用条款|使用條款|启用 ?JavaScript"
)


def c4(batch: Batch) -> dict[str, object]:
    """Of each document:

    - c4_lines: the share of characters in lines that C4 keeps: they end with a mark that ends a sentence, have three
      words or more (a Han character is a word), none longer than 1,000 characters, and speak of no policy.
    - c4_sentences: how many sentences those lines hold; C4 keeps pages with five or more.
    - policy_lines: the share of characters in lines that speak of JavaScript, cookies, terms of use or privacy.
    """
    lines = batch.lines
    policy = _matches(lines.distinct, _POLICY)
    kept = _matches(lines.distinct, _ENDS) & ~_matches(lines.distinct, _ELLIPSIS) & ~policy
    ending = lines.distinct.filter(pa.array(kept))
    whole = _counts(ending, _WORD) >= _LEAST_WORDS
    for row in np.flatnonzero(whole & (pc.utf8_length(ending).to_numpy() > _LONGEST_WORD_CHARS)).tolist():
        whole[row] = max(map(len, ending[row].as_py().split())) <= _LONGEST_WORD_CHARS
    sentences = np.zeros(len(kept), np.int64)
    sentences[kept] = _counts(ending, _SENTENCE_END) * whole
    kept[kept] = whole
    chars = batch.per_document(lines, lines.chars)
    return {
        "c4_lines": ratio(batch.per_document(lines, lines.chars * kept[lines.codes]), chars),
        "c4_sentences": batch.per_document(lines, sentences[lines.codes]),
        "policy_lines": ratio(batch.per_document(lines, lines.chars * policy[lines.codes]), chars),
    }


def _matches(lines: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return np.asarray(pc.match_substring_regex(lines, pattern).to_numpy(zero_copy_only=False), bool)


def _counts(lines: pa.Array, pattern: str) -> Ints:
    return np.asarray(pc.count_substring_regex(lines, pattern).to_numpy(zero_copy_only=False), np.int64)
