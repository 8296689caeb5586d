"""Simplified and traditional Chinese: which of the two a document is written in, and the one put into the other.

The characters and phrases are OpenCC's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liuyi.data.clean.batch import Batch, Class, Floats, ratio
from liuyi.data.clean.chinese import han_documents

ATTRIBUTES = {"traditional_ratio": pa.float32(), "mixed_script": pa.float32()}

_UNIFIED = "".join(map(chr, range(0x4E00, 0xA000)))


def script(batch: Batch) -> dict[str, Floats]:
    """What characters say that only one of the two scripts has; 0 where there is none, or little Chinese:

    - traditional_ratio: those of traditional Chinese among those of either.
    - mixed_script: those of the script that has fewer of them, among Han characters. A text is written in one script;
      advertisements mix them so that lists of words do not find them.
    """
    found = {name: np.zeros(batch.size, np.float32) for name in ATTRIBUTES}
    rows, part = han_documents(batch)
    if len(rows):
        kinds = _only_in()[np.minimum(part.points, 0xFFFF)]
        counts = np.bincount(3 * part.owner + kinds, minlength=3 * part.size).reshape(part.size, 3)
        simplified, traditional = counts[:, 1], counts[:, 2]
        found["traditional_ratio"][rows] = ratio(traditional, traditional + simplified)
        found["mixed_script"][rows] = ratio(np.minimum(traditional, simplified), part.counts[:, Class.HAN])
    return found


def to_simplified(text: str) -> str:
    """`text` in simplified characters; by phrases, so that a character of two readings becomes the right one."""
    return _converter("t2s").convert(text) if not text.isascii() else text


@cache
def _only_in() -> NDArray[np.uint8]:
    """[code points] 1 for characters of simplified Chinese alone, 2 for those of traditional Chinese alone.

    Such a character changes when it is converted, and the character set of the other script lacks it: GB 2312 has
    simplified Chinese, Big5 traditional.
    """
    kinds = np.zeros(0x10000, np.uint8)
    for kind, direction, other in ((1, "s2t", "big5"), (2, "t2s", "gb2312")):
        converter = _converter(direction)
        for letter in _UNIFIED:
            if converter.convert(letter) != letter and not _has(other, letter):
                kinds[ord(letter)] = kind
    return kinds


def _has(charset: str, letter: str) -> bool:
    return bool(letter.encode(charset, "ignore"))


@cache
def _converter(direction: str) -> Any:
    from opencc import OpenCC

    return OpenCC(direction)
