"""Personal data as spans: mail, phone, Chinese identity card, bank card, IP address, keys and tokens.

Where a number has a checksum, it decides; what is reserved for examples (`example.com`, 192.0.2.1) is nobody's.
"""

from __future__ import annotations

import ipaddress
import re
import string
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from liuyi.data.clean.batch import Batch


class Span(NamedTuple):
    """Characters `start` to `end` of a text and what they are."""

    start: int
    end: int
    kind: str


SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("kind", pa.string())]))
PLACEHOLDERS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "identity_card": "[IDENTITY_CARD]",
    "bank_card": "[BANK_CARD]",
    "ip_address": "[IP_ADDRESS]",
    "secret": "[SECRET]",
}

_AT = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+([A-Za-z]{2,10}))(?![A-Za-z0-9_@]|\.[A-Za-z0-9]|-)")
_LOCAL_PART = re.compile(r"[A-Za-z0-9_](?:[\w.+%-]{0,62}[\w+-])?\Z", re.ASCII)
_TOP_LEVEL = re.compile(
    "[a-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|pro|dev|app|xyz|online|site|tech|cloud|email|club|top|wang|shop"
    "|vip|museum|aero|coop|jobs|mobi|travel|asia"
)
_RESERVED_HOST = re.compile(
    r"(?:.*\.)?(?:example\.(?:com|org|net|edu|io)|(?:your|my)?(?:domain|company|email|host|server)\.com|test\.com)"
)
_NOBODY = frozenset({"git", "hg", "svn", "noreply", "no-reply", "user", "username", "you", "your.name", "name"})

_NUMBER = re.compile(
    r"(?<![\w.,\-+/*^%$#])(?:\+?\(?|（)\d(?:[ \-)）(（]{0,2}\d){7,20}[Xx]?(?![\w/*^%\-]|[.,:]\d)", re.ASCII
)
_MOBILE = re.compile(r"(?:(?:\+|00)?86[- ]?)?1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])([- ]?)\d{4}\1\d{4}")
_COUNTRY = (
    r"1|7|2(?:0|7|1[1-368]|[2-6]\d|9\d)|3(?:[0-469]|[578]\d)|4(?:[013-9]|2[0-3])|5(?:[1-8]|[09]\d)|6(?:[0-6]|[7-9]\d)"
    r"|8(?:[1246]|[578]\d)|9(?:[0-58]|[679]\d)"
)
_PHONES = re.compile(
    rf"\+(?:{_COUNTRY})(?:[- ]?\(?\d{{1,4}}\)?(?:[- ]\d{{2,8}}){{1,4}}|\d{{8,12}})"
    r"|(?:1[- ])?\([2-9]\d\d\) ?[2-9]\d\d-\d{4}|(?:1-)?[2-9]\d\d-[2-9]\d\d-\d{4}"
    r"|[(（]?0(?:10|2\d|[3-9]\d\d)(?:[)）] ?|[- ])[2-8]\d{6,7}|[48]00-\d{3}-\d{4}|400\d{7}"
)
_CARD = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|3[47]\d\d([ -])\d{6}\2\d{5}")
_CARD_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|62\d{14,17}|(?:6011|65\d\d|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
)
_IPV4 = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?![\w\-]|\.\d)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4})*)?(?![\w:])", re.ASCII
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_VERSION_BEFORE = re.compile(r"(?:version|release|ver\.?|v\.?|[<>=~!]=|[<>])\s*\Z", re.IGNORECASE)
_SECRET = re.compile(
    r"(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{36,}|github_pat_\w{40,}|glpat-[\w-]{20,}|xox[abeoprs]-[\w-]{20,}"
    r"|sk-(?:[\w]+-)*\w{20,}|[sr]k_live_[A-Za-z0-9]{20,}|https://hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{20,}"
    r"|\d{8,10}:AA[\w-]{33}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-AgEI[\w-]{40,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?![\w-])",
    re.ASCII,
)
_KEY_BEGINS = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_KEY_ENDS = re.compile(r"-----END (?:[A-Z]+ )?PRIVATE KEY-----")
_LARGEST_SECTION = 31
_DISTINCT_IN_SECRET = 9
_FULL_WIDTH = "[０-９＠]"
_NARROW = {ord(sign) + 0xFEE0: sign for sign in string.digits + string.ascii_letters + "@.-+_"}
"""Full-width forms of ASCII, which people use to write numbers in Chinese, to ASCII: one character each."""
_IDENTITY_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_SEPARATORS = re.compile(r"\D")


def spans_column(batch: Batch) -> dict[str, list[list[dict[str, int | str]]]]:
    """The spans of each document, in order, not overlapping."""
    found: list[list[Span]] = [[] for _ in range(batch.size)]
    texts, strings = batch.texts, batch.strings
    wide = _rows_with(_FULL_WIDTH, texts)
    if wide:
        strings = strings.copy()
        for row in wide:
            strings[row] = strings[row].translate(_NARROW)
        texts = pa.array(strings, texts.type)
    for hint, detect in _DETECTORS:  # most documents hold nothing alike, and RE2 sees that many times faster
        for row in _rows_with(hint, texts):
            found[row] += detect(strings[row])
    return {"pii": [[span._asdict() for span in apart(spans)] for spans in found]}


def _rows_with(pattern: str, texts: pa.Array) -> list[int]:
    rows = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).nonzero()[0]
    return rows.tolist()  # type: ignore[no-any-return]


def find(text: str) -> list[Span]:
    """Every span of personal data in `text`, in order; of two that overlap the longer one, then the earlier."""
    text = text.translate(_NARROW)
    return apart([span for _, detect in _DETECTORS for span in detect(text)])


def apart(spans: Iterable[Span]) -> list[Span]:
    """The spans in order without overlaps: of two that overlap the longer one stays, then the earlier."""
    taken: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start - one.end, one.start)):
        place = bisect(taken, span)
        is_after = not place or taken[place - 1].end <= span.start
        if is_after and (place == len(taken) or span.end <= taken[place].start):
            taken.insert(place, span)
    return taken


def mask(text: str, spans: Iterable[Span]) -> str:
    """`text` with each span replaced by the placeholder of its kind. Spans are in order and do not overlap."""
    parts, position = [], 0
    for start, end, kind in spans:
        parts += [text[position:start], PLACEHOLDERS[kind]]
        position = end
    return "".join([*parts, text[position:]])


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_identity_card(text: str) -> bool:
    """Whether these 18 characters are a Chinese identity number: region, date of birth, check digit (GB 11643-1999)."""
    if not re.fullmatch(r"[1-9]\d{16}[\dXx]", text, re.ASCII) or not 11 <= int(text[:2]) <= 91:
        return False
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text, _IDENTITY_WEIGHTS, strict=False))
    return born.year >= 1900 and "10X98765432"[total % 11] == text[17].upper()


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for match in _AT.finditer(text):
        host, top = match.group(1).lower(), match.group(2).lower()
        local = _LOCAL_PART.search(text, max(0, match.start() - 64), match.start())
        if not local or not _TOP_LEVEL.fullmatch(top):
            continue
        if not _RESERVED_HOST.fullmatch(host) and local.group().lower() not in _NOBODY:
            yield Span(local.start(), match.end(), "email")


def _numbers(text: str) -> Iterator[Span]:
    for match in _NUMBER.finditer(text):
        number, start = match.group(), match.start()
        if number[0] in "(（" and not re.search(r"[)）]", number):  # itself in brackets, not its area code
            number, start = number[1:], start + 1
        kind = _kind_of(number)
        if kind:
            yield Span(start, match.end(), kind)


def _kind_of(number: str) -> str:
    if is_identity_card(number):
        return "identity_card"
    if _MOBILE.fullmatch(number) or _PHONES.fullmatch(number):
        return "phone"
    digits = _SEPARATORS.sub("", number)
    if _CARD.fullmatch(number) and _CARD_ISSUERS.fullmatch(digits) and luhn(digits):
        return "bank_card"
    return ""


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_somebodys(match.group()) and not _VERSION_BEFORE.search(
                text, max(0, match.start() - 12), match.start()
            ):
                yield Span(match.start(), match.end(), "ip_address")


def _is_somebodys(address: str) -> bool:
    """Whether an address is public; `12.6.2.2` is more often a section or a version than a machine."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        return parsed in _GLOBAL_UNICAST and parsed.is_global
    return parsed.is_global and not parsed.is_multicast and max(parsed.packed) > _LARGEST_SECTION


def _secrets(text: str) -> Iterator[Span]:
    for match in _SECRET.finditer(text):
        if len(set(match.group())) >= _DISTINCT_IN_SECRET:
            yield Span(match.start(), match.end(), "secret")
    yield from _private_keys(text)


def _private_keys(text: str) -> Iterator[Span]:
    """Blocks from a beginning to the next end. One pattern for both would read to the end of a text from every
    beginning that has none."""
    begins = _KEY_BEGINS.search(text)
    while begins and (ends := _KEY_ENDS.search(text, begins.end())):
        yield Span(begins.start(), ends.end(), "secret")
        begins = _KEY_BEGINS.search(text, ends.end())


_DETECTORS: tuple[tuple[str, Callable[[str], Iterator[Span]]], ...] = (
    (r"@[A-Za-z0-9]", _emails),
    (r"\d(?:[ \-)(）（]{0,2}\d){7}", _numbers),
    (r"\d\.\d{1,3}\.\d{1,3}\.\d|(?:[0-9A-Fa-f]{1,4}:){2}", _addresses),
    (
        r"(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{36}|github_pat_\w{40}|glpat-[\w-]{20}|xox[abeoprs]-[\w-]{20}"
        r"|sk-[\w-]{20}|k_live_\w{20}|hooks\.slack\.com/services/T|\d{8}:AA[\w-]{33}"
        r"|AIza[\w-]{35}|hf_[A-Za-z0-9]{30}|npm_[A-Za-z0-9]{36}|pypi-AgEI|eyJ[\w-]{10,}\.eyJ|PRIVATE KEY-----",
        _secrets,
    ),
)
"""(a pattern without which there is nothing to find, what finds it)"""
