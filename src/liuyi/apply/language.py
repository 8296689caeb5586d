"""Requests as text: their language, and a form without differences that mean nothing."""

from __future__ import annotations

import re
import unicodedata

from liuyi.data.desk.facility import Language

_HAN = re.compile(r"[\u3400-\u9fff]")
_WIDE = re.compile(r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff05]+")


def language_of(text: str) -> Language:
    """Chinese if there is a Han character in it, else English."""
    return "zh" if _HAN.search(text) else "en"


def tidy(text: str) -> str:
    """One line, single spaces, full-width digits, letters and percent signs as half-width ones."""
    text = _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide.group()), text)
    return " ".join(text.split())
