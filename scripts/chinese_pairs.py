"""Write src/liuyi/data/clean/chinese_pairs.txt: pairs of characters that follow each other in common Chinese words.

    pip download --no-deps --no-binary :all: jieba==0.42.1 && tar xf jieba-0.42.1.tar.gz
    python scripts/chinese_pairs.py jieba-0.42.1/jieba/dict.txt

The words and how often they occur are from jieba's dictionary (MIT licence). The most frequent pairs within words are
taken, in simplified characters and, through OpenCC, in traditional ones. A line is a character and all that follow it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from opencc import OpenCC

PAIRS = 40_000
TARGET = Path(__file__).parents[1] / "src/liuyi/data/clean/chinese_pairs.txt"
HEAD = """\
# Pairs of characters within common Chinese words: a character, then all that follow it. scripts/chinese_pairs.py makes
# them from the dictionary of jieba 0.42.1, https://github.com/fxsjy/jieba, MIT licence, Copyright (c) 2013 Sun Junyi.
"""


def read_words(dictionary: Path) -> dict[str, int]:
    """The words of Han characters in jieba's dictionary, and how often each occurs."""
    rows = (line.split(" ") for line in dictionary.read_text(encoding="utf-8").splitlines())
    return {row[0]: int(row[1]) for row in rows if re.fullmatch(r"[\u3400-\u9fff]{2,}", row[0])}


def common_pairs(words: dict[str, int]) -> set[str]:
    """The most frequent pairs, in both scripts."""
    counts: Counter[str] = Counter()
    traditional: dict[str, set[str]] = defaultdict(set)
    convert = OpenCC("s2t").convert
    for word, count in words.items():
        other = convert(word)
        for place, pair in enumerate(map("".join, pairwise(word))):
            counts[pair] += count
            if len(other) == len(word):
                traditional[pair].add(other[place : place + 2])
    chosen = {pair for pair, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]}
    return chosen.union(*(traditional[pair] for pair in chosen))


def main() -> None:
    followers: dict[str, list[str]] = defaultdict(list)
    for first, second in sorted(common_pairs(read_words(Path(sys.argv[1])))):
        followers[first].append(second)
    lines = (first + "".join(seconds) for first, seconds in followers.items())
    TARGET.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
