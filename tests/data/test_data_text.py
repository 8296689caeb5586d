"""Encodings: what comes out is what was written, or an error that says what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.text import decode, encoding_of, mend

EXAMPLES = 80
CHINESE = "我们在这里写下一段中文，用来看看编码是不是能够被认出来。这是第二句话，它说的是天气很好。"
FRENCH = "Où est l'été ? Le café est à côté de la forêt, mais il est fermé jusqu'à Noël."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "gbk"])
def test_chinese_in_any_encoding(encoding: str) -> None:
    assert decode(CHINESE.encode(encoding)) == CHINESE


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_french_in_any_encoding(encoding: str) -> None:
    assert decode(FRENCH.encode(encoding)) == FRENCH


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufeff")))
def test_utf8_comes_back(text: str) -> None:
    assert decode(text.encode()) == text


def test_a_damaged_byte_does_not_change_the_encoding() -> None:
    data = bytearray((CHINESE * 5).encode())
    data[10] = 0xFF
    text = decode(bytes(data))
    assert text.count("\ufffd") <= 3
    assert CHINESE in text


def test_what_is_not_text() -> None:
    with pytest.raises(DataError, match="binary"):
        decode(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(DataError, match="neither"):
        decode(b"\x81\x8d\x8f\x90\x9d " * 20)


def test_a_beginning_may_end_inside_a_character() -> None:
    for encoding in ("utf-8", "gb18030"):
        data = (CHINESE * 3).encode(encoding)
        for cut in range(60, 70):
            assert encoding_of(data[:cut], final=False) == encoding


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.text())
def test_mended_text_can_be_stored(text: str) -> None:
    mended = mend(text)
    assert mended.encode().decode() == mended
    assert "\r" not in mended
    assert "\x00" not in mended
