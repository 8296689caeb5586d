"""Text comes out as whole characters, and never beyond a stop string."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from liuyi.infer.text import TextStream


def stream(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    text = TextStream(stop)
    out = []
    for piece in pieces:
        out.append(text.push(piece))
        if text.stopped:
            break
    return [*out, text.finish()], text.stopped


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_any_cut_gives_the_same_text_in_whole_characters(text: str, cuts: list[int]) -> None:
    out, _ = stream(split(text.encode(), cuts), [])
    assert "".join(out) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in out)


@given(
    st.text("ab\n", max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=20),
)
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str], cuts: list[int]) -> None:
    out, stopped = stream(split(text.encode(), cuts), stop)
    joined = "".join(out)
    found = [at for at in (text.find(word) for word in stop) if at >= 0]
    assert stopped == bool(found)
    # Text is read piece by piece: of several stop strings the one that is complete first counts.
    assert joined == text[: len(joined)]
    assert not any(word in joined for word in stop)
    if not found:
        assert joined == text


@given(
    st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
)
def test_stop_strings_that_end_too_soon_are_passed_over(pieces: list[str], stop: list[str], first: int) -> None:
    text = TextStream(stop)
    out = ""
    for at, piece in enumerate(pieces):
        out += text.push(piece.encode(), may_stop=at >= first)
        if text.stopped:
            break
    whole, passed = "".join(pieces), len("".join(pieces[:first]))
    ends = [(at + len(word), at) for word in stop for at in range(len(whole)) if whole.startswith(word, at)]
    counted = [(end, at) for end, at in ends if end > passed]
    assert text.stopped == bool(counted)
    if not counted:
        assert out + text.finish() == whole
        return
    known = next(len("".join(pieces[:at])) for at in range(first, 13) if len("".join(pieces[:at])) >= min(counted)[0])
    assert out == whole[: min(at for end, at in counted if end <= known)]


def test_a_beginning_of_a_stop_string_waits() -> None:
    text = TextStream(["<end>"])
    assert text.push(b"a<e") == "a"
    assert text.push(b"x<") == "<ex"
    assert text.push(b"end>b") == ""
    assert text.stopped
    assert text.finish() == ""


def test_bytes_that_are_no_text_are_replaced() -> None:
    out, _ = stream([b"a\xff", b"b\xe5\x8e"], [])
    assert "".join(out) == "a\ufffdb\ufffd"
