"""Rules that only make sense for Chinese: punctuation, grammar, words, the phrases of advertising and of web pages.

There are no spaces to tell words by, so a text is known by its characters: running text needs grammatical ones (的了是)
and about half of its neighbouring characters belong to one word. A list of keywords lacks the former, garbled text the
latter. What is made of the phrases of `chinese.yaml` is how much of a text they cover, not that one of them occurs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from liuyi.data.clean.batch import Batch, Class, Floats, Ints, ratio
from liuyi.data.clean.matching import Words

LEAST_HAN_RATIO = 0.1
ATTRIBUTES = ("zh_punctuation", "zh_function_chars", "zh_word_pairs", "zh_advertising", "zh_boilerplate")

_FUNCTION = (
    "的了是在和不就也都而与或这那为其所之把被将从对于因如若则但并且已仍还又才很更最该此某它他她你我们能会可应须要得地着过里没时个种当些"
    "與這為將從對於們會應須著過裡裏沒時個種當還並則"
)
_SENTENCE = "，。！？；：、…,.!?;:"
_PHRASES = Path(__file__).with_suffix(".yaml")
_PAIRS = Path(__file__).with_name("chinese_pairs.txt")


def chinese(batch: Batch) -> dict[str, Floats]:
    """Figures of the documents that are Chinese for a tenth of their letters or more, 0 for the others:

    - zh_punctuation: marks that divide sentences, full-width or not, for each Han character; running text has about
      0.1, keywords have none.
    - zh_function_chars: the share of Han characters that grammar needs; running text has about 0.25.
    - zh_word_pairs: the share of neighbouring Han characters that follow each other in a common word; running text has
      about 0.45, shuffled or wrongly decoded text less than 0.15. 1 where no two are neighbours.
    - zh_advertising, zh_boilerplate: the share of visible characters in phrases of advertising (gambling too), and of
      what web pages put around a text (navigation, footers, notices, comments).
    """
    found = {name: np.zeros(batch.size, np.float32) for name in ATTRIBUTES}
    rows, part = han_documents(batch)
    if len(rows):
        for name, values in _measured(part).items():
            found[name][rows] = values
    return found


def han_documents(batch: Batch) -> tuple[Ints, Batch]:
    """The documents that are Chinese for a tenth of their letters or more: their rows, and a batch of them alone."""
    rows = np.flatnonzero(batch.han_ratio >= LEAST_HAN_RATIO)
    return rows, batch if len(rows) == batch.size else Batch(batch.texts.take(pa.array(rows)))


def _measured(batch: Batch) -> dict[str, Floats]:
    han = batch.counts[:, Class.HAN]
    return {
        "zh_punctuation": ratio(_count(batch, _SENTENCE), han),
        "zh_function_chars": ratio(_count(batch, _FUNCTION), han),
        "zh_word_pairs": _word_pairs(batch),
        "zh_advertising": _covered(batch, "advertising", "gambling"),
        "zh_boilerplate": _covered(batch, "boilerplate"),
    }


def _count(batch: Batch, letters: str) -> Ints:
    wanted = np.zeros(0x10000, bool)
    wanted[list(map(ord, letters))] = True
    return np.bincount(batch.owner[wanted[np.minimum(batch.points, 0xFFFF)]], minlength=batch.size)


def _covered(batch: Batch, *kinds: str) -> Floats:
    """The share of visible characters in phrases of these kinds."""
    words, pattern = _phrases(kinds)
    found = words.find(batch)
    covered = np.bincount(found.owner, found.chars, minlength=batch.size).astype(np.int64)
    without = pc.utf8_length(pc.replace_substring_regex(batch.texts, pattern, ""))
    covered += batch.chars - without.to_numpy(zero_copy_only=False)
    return ratio(np.minimum(covered, batch.visible), batch.visible)


def _word_pairs(batch: Batch) -> Floats:
    numbers, known = _pair_table()
    is_han, owner = batch.classes == Class.HAN, batch.owner
    first = np.flatnonzero(is_han[:-1] & is_han[1:] & (owner[:-1] == owner[1:]))
    codes = numbers[np.minimum(batch.points, 0xFFFF)]
    place = codes[first] * np.int64(numbers.max() + 1) + codes[first + 1]
    common = (known[place >> 3] >> (7 - (place & 7)).astype(np.uint8)) & 1
    pairs = np.bincount(owner[first], minlength=batch.size)
    share = ratio(np.bincount(owner[first], common, minlength=batch.size), pairs)
    share[pairs == 0] = 1
    return share


@cache
def _phrases(kinds: tuple[str, ...]) -> tuple[Words, str]:
    """The words of these kinds, and a pattern for those that hold a number."""
    known = yaml.safe_load(_PHRASES.read_text(encoding="utf-8"))
    words = {word for kind in kinds for line in known[kind]["words"] for word in line.split("|")}
    return Words(sorted(words)), "|".join(pattern for kind in kinds for pattern in known[kind]["patterns"])


@cache
def _pair_table() -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """[code points] the number of each character that occurs in a pair, 0 for all others; and a bit for each two
    numbers, packed, that says whether they are a pair."""
    lines = [line for line in _PAIRS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    letters = sorted(set("".join(lines)))
    numbers = np.zeros(0x10000, np.int32)
    numbers[list(map(ord, letters))] = np.arange(1, len(letters) + 1)
    known = np.zeros((len(letters) + 1, len(letters) + 1), bool)
    for line in lines:
        known[numbers[ord(line[0])], numbers[list(map(ord, line[1:]))]] = True
    return numbers, np.packbits(known)
