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
"""Foreign characters that may be damaged in a text that is still UTF-8."""
_COMMON_HAN = frozenset(
    "的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"
)
_COMMON_TRADITIONAL = frozenset(
    "的一是不了在人有我他這中大來上個國到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可她裡後"
)
_COMMON_SHARE = 0.05
_UNPAIRED = re.compile("[\ud800-\udfff]")


def decode(data: bytes) -> str:
    """The text of a file, in the encoding that `encoding_of` finds.

    Raises DataError where the bytes are not text.
    """
    encoding = encoding_of(data)
    return data.decode(encoding, "replace" if encoding == "utf-8" else "strict")


def encoding_of(data: bytes, *, final: bool = True) -> str:
    """By the byte-order mark, else UTF-8, GB 18030 or Big5 if that reads as Chinese, UTF-8 with damaged bytes, or
    Windows-1252.

    `final=False` says that `data` is the beginning of a file and may end inside a character.
    Raises DataError where the bytes are not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            _decoded(data, encoding, final)
            return encoding
    if b"\x00" in data:
        raise DataError("binary, not text (it holds NUL bytes)")
    if _decodes(data, "utf-8", final):
        return "utf-8"
    for encoding, common in (("gb18030", _COMMON_HAN), ("big5hkscs", _COMMON_TRADITIONAL)):
        if _decodes(data, encoding, final) and _reads_as_chinese(_decoded(data, encoding, final), common):
            return encoding
    mended = data.decode("utf-8", "replace")
    if mended.count("\ufffd") <= _DAMAGE * sum(letter > "\x7f" for letter in mended):
        return "utf-8"
    if not _decodes(data, "cp1252", final):
        raise DataError("neither UTF-8, GB 18030, Big5 nor Windows-1252")
    return "cp1252"


def mend(text: str) -> str:
    """Text that can be stored anywhere: no NUL, no unpaired surrogate, every line end `\\n`."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return mend_surrogates(text.replace("\x00", ""))


def mend_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: an unpaired surrogate, which JSON may have, is replaced by U+FFFD."""
    return _UNPAIRED.sub("\ufffd", text)


def _decoded(data: bytes, encoding: str, final: bool) -> str:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data, final)
    except UnicodeError as error:
        raise DataError(f"not {encoding}: {error}") from None


def _decodes(data: bytes, encoding: str, final: bool) -> bool:
    try:
        _decoded(data, encoding, final)
    except DataError:
        return False
    return True


def _reads_as_chinese(text: str, common: frozenset[str]) -> bool:
    han = [letter for letter in text[:100_000] if "\u4e00" <= letter <= "\u9fff"]
    return len(han) >= 4 and sum(letter in common for letter in han) >= _COMMON_SHARE * len(han)
