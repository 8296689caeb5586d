"""Quality by counting, after Gopher (Rae et al. 2021, §A.1.1) and C4 (Raffel et al. 2020), made fair to Chinese.

Word lengths are taken over words that are not Han characters, and stop words are asked of English only, so no rule
here presumes spaces between words.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.data.clean.batch import HAN, Batch, Class, Ints, ratio

ATTRIBUTES = {
    "chars": pa.int64(),
    "words": pa.int64(),
    "mean_word_chars": pa.float32(),
    "han_ratio": pa.float32(),
    "alpha_ratio": pa.float32(),
    "alpha_words": pa.float32(),
    "digit_ratio": pa.float32(),
    "symbol_ratio": pa.float32(),
    "broken_ratio": pa.float32(),
    "stop_words": pa.int64(),
    "gopher_stop_words": pa.int64(),
    "hashes_per_word": pa.float32(),
    "ellipses_per_word": pa.float32(),
    "newlines_per_word": pa.float32(),
    "curly_brackets": pa.int64(),
    "longest_word_chars": pa.int64(),
}
GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP_WORDS = (*GOPHER_STOP_WORDS, "is", "for", "a", "in")
_MOJIBAKE = "锟斤拷|烫烫烫|屯屯屯|Ã[\u0080-\u00bf]|â€[\u0090-\u009f™œ]|ï¿½"


def quality(batch: Batch) -> dict[str, object]:
    """Counts and ratios of one document each:

    - chars, words: how long it is; a Han character is a word. Gopher keeps 50 to 100,000 words.
    - mean_word_chars, longest_word_chars: over words that are not Han; 0 where there is none. Gopher: 3 to 10.
    - alpha_ratio, digit_ratio, symbol_ratio: letters (Han too), digits, and ASCII punctuation with symbols, among
      visible characters.
    - broken_ratio: characters that only a wrong decoding leaves, and their well-known strings.
    - alpha_words: the share of words with a letter in them. Gopher: 0.8 or more.
    - stop_words: how many different English stop words occur; `gopher_stop_words`: of the eight in Gopher, at least 2.
    - hashes_per_word, ellipses_per_word: `#`, and `...` or `…`. Gopher: 0.1 at most, each.
    - newlines_per_word: FineWeb (Penedo et al. 2024) has 0.3 at most; it finds lists.
    - curly_brackets: `{` says that a page is code; C4 keeps pages without any.
    """
    counts, words = batch.counts, batch.words
    number = batch.per_document(words)
    latin = ~_flags(pc.match_substring_regex(words.distinct, f"^{HAN}$"))[words.codes]
    lettered = _flags(pc.match_substring_regex(words.distinct, r"\pL"))[words.codes]
    latin_chars = batch.per_document(words, words.chars * latin)
    broken = counts[:, Class.BROKEN] + 2 * _occurrences(batch, _MOJIBAKE)
    stop_words = _stop_words(batch)
    return {
        "chars": batch.chars,
        "words": number,
        "mean_word_chars": ratio(latin_chars, batch.per_document(words, latin)),
        "han_ratio": batch.han_ratio,
        "alpha_ratio": ratio(counts[:, Class.LETTER] + counts[:, Class.HAN], batch.visible),
        "alpha_words": ratio(batch.per_document(words, lettered), number),
        "digit_ratio": ratio(counts[:, Class.DIGIT], batch.visible),
        "symbol_ratio": ratio(counts[:, Class.ASCII_PUNCTUATION] + counts[:, Class.OTHER], batch.visible),
        "broken_ratio": ratio(broken, batch.visible),
        "stop_words": stop_words.sum(1),
        "gopher_stop_words": stop_words[:, : len(GOPHER_STOP_WORDS)].sum(1),
        "hashes_per_word": ratio(_count(batch, "#"), number),
        "ellipses_per_word": ratio(_count(batch, "...") + _count(batch, "…"), number),
        "newlines_per_word": ratio(_count(batch, "\n"), number),
        "curly_brackets": _count(batch, "{"),
        "longest_word_chars": _longest(batch, words.chars * latin),
    }


def _stop_words(batch: Batch) -> NDArray[np.bool_]:
    """[docs, stop words] whether each occurs."""
    words = batch.words
    place = pc.index_in(words.distinct, value_set=pa.array(STOP_WORDS, words.distinct.type)).fill_null(-1).to_numpy()
    found = place[words.codes]
    present = np.zeros((batch.size, len(STOP_WORDS)), bool)
    present[words.owner[found >= 0], found[found >= 0]] = True
    return present


def _longest(batch: Batch, chars: Ints) -> Ints:
    longest = np.zeros(batch.size, np.int64)
    np.maximum.at(longest, batch.words.owner, chars)
    return longest


def _count(batch: Batch, text: str) -> Ints:
    return np.asarray(pc.count_substring(batch.texts, text).to_numpy(zero_copy_only=False), np.int64)


def _occurrences(batch: Batch, pattern: str) -> Ints:
    found = pc.count_substring_regex(batch.texts, pattern).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.int64)


def _flags(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
