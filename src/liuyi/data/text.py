"""Bytes to text: which encoding a file is in, and whether it is text at all."""

from __future__ import annotations

import codecs
import re

from liuyi.core.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DAMAGE = 0.05
_UNPAIRED = re.compile("[\ud800-\udfff]")
_COMMON_HAN = frozenset(
    "的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"
)


def decode(data: bytes) -> str:
    """The text of a file: by its byte-order mark, else UTF-8, GB 18030 if that reads as Chinese, else Windows-1252.

    UTF-8 with a few damaged bytes stays UTF-8, each of them as U+FFFD.
    Raises DataError where the bytes are not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strict(data, encoding)
    if b"\x00" in data:
        raise DataError("binary, not text (it holds NUL bytes)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        wrong = error
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        text = ""
    if _reads_as_chinese(text):
        return text
    mended = data.decode(errors="replace")
    foreign = sum(letter > "\x7f" for letter in mended)
    if mended.count("\ufffd") <= _DAMAGE * foreign:
        return mended
    return _strict(data, "cp1252", because=f"not UTF-8 (byte {wrong.start}: {wrong.reason})")


def mend(text: str) -> str:
    """Text that can be stored anywhere: no NUL, no unpaired surrogate, every line end `\\n`."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNPAIRED.sub("\ufffd", text.replace("\x00", ""))


def _strict(data: bytes, encoding: str, because: str = "") -> str:
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        raise DataError(because or f"not {encoding}: {error}") from None


def _reads_as_chinese(text: str) -> bool:
    han = [letter for letter in text[:100_000] if "\u4e00" <= letter <= "\u9fff"]
    return len(han) >= 4 and sum(letter in _COMMON_HAN for letter in han) >= 0.05 * len(han)
