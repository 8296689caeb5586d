"""Personal data: what has a checksum is found exactly when it holds, what is nobody's is left alone."""

from __future__ import annotations

import datetime
import itertools
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.clean.batch import Batch
from liuyi.data.clean.pii import PLACEHOLDERS, Span, apart, find, is_identity_card, luhn, mask, spans_column

EXAMPLES = 80
DATES = st.dates(min_value=datetime.date(1930, 1, 1), max_value=datetime.date(2020, 12, 31))


def identity_number(region: int, born: str, order: int) -> str:
    """GB 11643-1999 by its own formula: the sum of a_i · 2^(18−i) mod 11, i from 1, is 1 with the check digit."""
    digits = f"{region:06d}{born}{order:03d}"
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(digits))
    check = (12 - total % 11) % 11
    return digits + ("X" if check == 10 else str(check))


def card_number(prefix: str, length: int, seed: int) -> str:
    body = prefix + "".join(random.Random(seed).choices("0123456789", k=length - 1 - len(prefix)))
    for check in "0123456789":
        doubled = [int(d) if place % 2 else sum(divmod(2 * int(d), 10)) for place, d in enumerate(reversed(body))]
        if (sum(doubled) + int(check)) % 10 == 0:
            return body + check
    raise AssertionError


def kinds(text: str) -> list[tuple[str, str]]:
    return [(text[span.start : span.end], span.kind) for span in find(text)]


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.integers(110000, 659999), DATES, st.integers(0, 999))
def test_identity_cards(region: int, born: datetime.date, order: int) -> None:
    number = identity_number(region, f"{born:%Y%m%d}", order)
    assert is_identity_card(number)
    assert kinds(f"证件号码：{number}，请核对。") == [(number, "identity_card")]
    for check in "0123456789X":
        assert is_identity_card(number[:-1] + check) == (check == number[-1])


def test_identity_cards_that_cannot_be() -> None:
    assert is_identity_card("11010519491231002X")
    for wrong in (
        "110105194912310020",
        "11010519491331002X",
        "11010519490230002X",
        "00010519491231002X",
        "1101051949123100",
    ):
        assert not is_identity_card(wrong)


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    st.sampled_from([("4", 16), ("52", 16), ("37", 15), ("62", 19), ("6228", 16), ("6011", 16), ("3530", 16)]),
    st.integers(0, 9999),
)
def test_bank_cards(issuer: tuple[str, int], seed: int) -> None:
    number = card_number(*issuer, seed)
    assert luhn(number)
    assert kinds(f"card {number}.") == [(number, "bank_card")]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert not luhn(wrong)
    assert kinds(f"card {wrong}.") == []
    if len(number) == 16:
        spaced = " ".join(number[place : place + 4] for place in range(0, 16, 4))
        assert kinds(f"card {spaced} please") == [(spaced, "bank_card")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("write to mal@lemburg.com.", [("mal@lemburg.com", "email")]),
        ("Ada <ada.l+x@mail.cs.uni-bonn.de>, Bob", [("ada.l+x@mail.cs.uni-bonn.de", "email")]),
        ("邮箱zhang_san@163.com，谢谢", [("zhang_san@163.com", "email")]),
        ("手机13812345678，微信同号", [("13812345678", "phone")]),
        ("tel +86 138-1234-5678 now", [("+86 138-1234-5678", "phone")]),
        ("座机 010-62771234 转 3", [("010-62771234", "phone")]),
        ("call (415) 555-2671 or 415-555-2671", [("(415) 555-2671", "phone"), ("415-555-2671", "phone")]),
        ("phone: +44 20 7946 0958;", [("+44 20 7946 0958", "phone")]),
        ("E.164 +4915123456789 too", [("+4915123456789", "phone")]),
        ("from 203.0.114.7 to 93.184.216.34", [("203.0.114.7", "ip_address"), ("93.184.216.34", "ip_address")]),
        ("host 2606:4700:4700::1111 up", [("2606:4700:4700::1111", "ip_address")]),
        ("key AKIAIOSFODNN7EXAMPLQ leaked", [("AKIAIOSFODNN7EXAMPLQ", "secret")]),
        ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", [("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "secret")]),
        ("sk-proj-4fKq82LmZx0PwTy7RbVn3cDe", [("sk-proj-4fKq82LmZx0PwTy7RbVn3cDe", "secret")]),
        ("k=sk_live_4fKq82LmZx0PwTy7RbVn3cDe", [("sk_live_4fKq82LmZx0PwTy7RbVn3cDe", "secret")]),
        (
            "bot 123456789:AAH4fKq82LmZx0PwTy7RbVn3cDe_hJ8gFdS",
            [("123456789:AAH4fKq82LmZx0PwTy7RbVn3cDe_hJ8gFdS", "secret")],
        ),
        ("邮箱是li.wei@163.com请回复", [("li.wei@163.com", "email")]),
        ("手机１３８１２３４５６７８，谢谢", [("１３８１２３４５６７８", "phone")]),
        ("(13812345678)", [("13812345678", "phone")]),
        ("（021）62771234", [("（021）62771234", "phone")]),
        ("(400-813-4567)", [("400-813-4567", "phone")]),
        ("卡号(4111111111111111)", [("4111111111111111", "bank_card")]),
    ],
)
def test_found(text: str, found: list[tuple[str, str]]) -> None:
    assert kinds(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.parametrize and C = A@B.T, x@w.view(1)",
        "user@example.com, you@example.org, git@github.com:pallets/click.git, a@b.test, root@localhost",
        "0.1234567890123456 and 3.4111111111111111, 1e-4111111111111111",
        "array([4111111111111112, 12345678901, 20200101123000])",
        "2020-01-01 12:00:00, ISBN 978-3-16-148410-0, 10000000000 bytes",
        "127.0.0.1, 10.0.0.8, 192.168.1.1, 172.16.0.1, 192.0.2.1, 255.255.255.0, 0.0.0.0",
        "12.6.2.2 of the manual, multicast to 224.0.0.251",
        "section 3.1.4.2, version 12.0.14.1, v10.11.12.13, numpy==21.22.23.24",
        "::1, fe80::1, 2001:db8::1, 00:1B:44:11:3A:B7, 12:30:45",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx, hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, risk-free-rate-of-return-model",
        "tensor([1381234567890, 913812345678])",
    ],
)
def test_left_alone(text: str) -> None:
    assert kinds(text) == []


def test_private_key_blocks() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA75xk\n-----END RSA PRIVATE KEY-----"
    assert kinds(f"before\n{key}\nafter") == [(key, "secret")]
    cut_off = "-----BEGIN PRIVATE KEY-----\nMIIE"
    assert kinds(f"{key}\n{key} {cut_off}") == [(key, "secret"), (key, "secret")]
    assert kinds(f"{cut_off} {key}") == [(f"{cut_off} {key}", "secret")]


def test_pages_made_to_be_slow_are_not() -> None:
    """These would take many minutes if the work grew with the square of their length."""
    assert find("-----BEGIN PRIVATE KEY-----\n" * 50_000) == []
    found = find("".join(f"user{number}@lemburg.com\n" for number in range(20_000)))
    assert len(found) == 20_000


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=12))
def test_of_spans_that_overlap_the_longer_then_the_earlier_stays(places: list[tuple[int, int]]) -> None:
    spans = [Span(start, start + size, "phone") for start, size in places]
    expected: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start - one.end, one.start)):
        if not any(max(span.start, other.start) < min(span.end, other.end) for other in expected):
            expected.append(span)
    assert apart(spans) == sorted(expected)


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.text(max_size=80))
def test_spans_are_in_order_and_apart(text: str) -> None:
    spans = find(text + " a@b.com 13812345678")
    assert spans == sorted(spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    st.lists(
        st.sampled_from(["a@lemburg.com", "13812345678", "93.184.216.34", "text ", "字", "4", "@", ":"]), max_size=12
    )
)
def test_masking_leaves_nothing_to_find(parts: list[str]) -> None:
    text = " ".join(parts)
    masked = mask(text, find(text))
    assert find(masked) == []
    assert sum(masked.count(placeholder) for placeholder in PLACEHOLDERS.values()) == len(find(text))


def test_mask() -> None:
    text = "a mail b@lemburg.com 结束"
    assert mask(text, find(text)) == "a mail [EMAIL] 结束"
    assert mask("nothing", []) == "nothing"
    assert mask("xyz", [Span(0, 1, "phone"), Span(2, 3, "secret")]) == "[PHONE]y[SECRET]"


def test_the_column_agrees_with_single_texts() -> None:
    texts = [
        "a@lemburg.com",
        "nothing here",
        "",
        "call (415) 555-2671",
        "93.184.216.34 ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "电话１３８１２３４５６７８：a@lemburg.com",
    ]
    column = spans_column(Batch(pa.array(texts)))["pii"]
    assert column == [[span._asdict() for span in find(text)] for text in texts]
