"""Quality by counting, after Gopher (Rae et al. 2021, §A.1.1) and C4 (Raffel et al. 2020), made fair to Chinese.

Word lengths are taken over words that are not Han characters, and stop words are asked of English only, so no rule
here presumes spaces between words.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from liuyi.data.clean.batch import HAN, Batch, Class, Ints, ratio

ATTRIBUTES = {
    "chars": pa.int64(),
    "words": pa.int64(),
    "mean_word_chars": pa.float32(),
    "han_ratio": pa.float32(),
    "alpha_ratio": pa.float32(),
    "digit_ratio": pa.float32(),
    "symbol_ratio": pa.float32(),
    "broken_ratio": pa.float32(),
    "stop_words": pa.int64(),
    "longest_word_chars": pa.int64(),
}
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with", "is", "for", "a", "in")
_MOJIBAKE = "锟斤拷|烫烫烫|屯屯屯|Ã[\u0080-\u00bf]|â€[\u0090-\u009f™œ]|ï¿½"


def quality(batch: Batch) -> dict[str, object]:
    """Counts and ratios of one document each:

    - chars, words: how long it is; a Han character is a word.
    - mean_word_chars, longest_word_chars: over words that are not Han; 0 where there is none.
    - alpha_ratio, digit_ratio, symbol_ratio: letters (Han too), digits, and ASCII punctuation with symbols, among
      visible characters.
    - broken_ratio: characters that only a wrong decoding leaves, and their well-known strings.
    - stop_words: how many different English stop words occur.
    """
    counts, words = batch.counts, batch.words
    latin = ~_flags(pc.match_substring_regex(words.distinct, f"^{HAN}$"))[words.codes]
    latin_chars = batch.per_document(words, words.chars * latin)
    broken = counts[:, Class.BROKEN] + 2 * _occurrences(batch, _MOJIBAKE)
    return {
        "chars": batch.chars,
        "words": batch.per_document(words),
        "mean_word_chars": ratio(latin_chars, batch.per_document(words, latin)),
        "han_ratio": batch.han_ratio,
        "alpha_ratio": ratio(counts[:, Class.LETTER] + counts[:, Class.HAN], batch.visible),
        "digit_ratio": ratio(counts[:, Class.DIGIT], batch.visible),
        "symbol_ratio": ratio(counts[:, Class.ASCII_PUNCTUATION] + counts[:, Class.OTHER], batch.visible),
        "broken_ratio": ratio(broken, batch.visible),
        "stop_words": _stop_words(batch),
        "longest_word_chars": _longest(batch, words.chars * latin),
    }


def _stop_words(batch: Batch) -> Ints:
    words = batch.words
    place = pc.index_in(words.distinct, value_set=pa.array(STOP_WORDS, words.distinct.type)).to_numpy(False)
    found = place[words.codes]
    present = ~np.isnan(found)
    pairs = np.unique(words.owner[present] * len(STOP_WORDS) + found[present].astype(np.int64))
    return np.bincount(pairs // len(STOP_WORDS), minlength=batch.size)


def _longest(batch: Batch, chars: Ints) -> Ints:
    longest = np.zeros(batch.size, np.int64)
    np.maximum.at(longest, batch.words.owner, chars)
    return longest


def _occurrences(batch: Batch, pattern: str) -> Ints:
    found = pc.count_substring_regex(batch.texts, pattern).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.int64)


def _flags(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
