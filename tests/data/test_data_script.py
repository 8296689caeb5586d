"""Simplified and traditional Chinese: told apart by the character sets of the two, converted by phrases."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.clean.batch import Batch
from liuyi.data.clean.script import script, to_simplified

SIMPLIFIED = "为了让系统能够正常运行，管理员必须先建立一个用户账号，并且设置适当的权限。"
TRADITIONAL = "為了讓系統能夠正常運行，管理員必須先建立一個用戶賬號，並且設置適當的權限。"


def measured(*texts: str) -> list[tuple[float, float]]:
    columns = script(Batch(pa.array(texts)))
    pairs = zip(columns["traditional_ratio"], columns["mixed_script"], strict=True)
    return [(round(float(ratio), 3), round(float(mixed), 3)) for ratio, mixed in pairs]


def test_each_script_alone() -> None:
    assert measured(SIMPLIFIED, TRADITIONAL, "in English", "", "山水人口") == [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]


def test_both_mixed() -> None:
    ((ratio, mixed),) = measured(SIMPLIFIED + TRADITIONAL)
    assert 0.4 < ratio < 0.6
    assert mixed > 0.1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(SIMPLIFIED)))
def test_counted_character_by_character(cut: int) -> None:
    text = SIMPLIFIED[:cut] + TRADITIONAL[cut:]
    differ = [(one, other) for one, other in zip(SIMPLIFIED, TRADITIONAL, strict=True) if one != other]
    simplified = sum(letter in {one for one, _ in differ if not one.encode("big5", "ignore")} for letter in text)
    traditional = sum(
        letter in {other for _, other in differ if not other.encode("gb2312", "ignore")} for letter in text
    )
    han = sum("\u4e00" <= letter <= "\u9fff" for letter in text)
    expected = (traditional / (traditional + simplified), min(traditional, simplified) / han)
    assert measured(text)[0] == pytest.approx(expected, abs=1e-3)


def test_to_simplified() -> None:
    assert to_simplified(TRADITIONAL) == SIMPLIFIED
    assert to_simplified(SIMPLIFIED) == SIMPLIFIED
    assert to_simplified("頭髮與發展、乾淨與乾坤") == "头发与发展、干净与乾坤"
    assert to_simplified("ASCII only {}") == "ASCII only {}"
