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
