"""Lines of server-sent events, however the bytes come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
from hypothesis import given
from hypothesis import strategies as st

from liuyi.infer.sse import lines_of

SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


async def read(pieces: list[bytes]) -> list[str]:
    async def sent() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [line async for line in lines_of(httpx.Response(200, content=sent()))]


@given(
    st.lists(st.text(st.sampled_from(f"a厨 {SEPARATORS}")), max_size=4),
    st.integers(1, 7),
    st.sampled_from(["\n", "\r\n"]),
)
def test_end_with_line_feeds_alone(texts: list[str], size: int, end: str) -> None:
    events = [f"data: {json.dumps(text, ensure_ascii=False)}" for text in texts]
    sent = "".join(event + end for event in events).encode()
    assert asyncio.run(read([sent[at : at + size] for at in range(0, len(sent), size)])) == events


def test_the_last_line_needs_no_end() -> None:
    assert asyncio.run(read([b"a\n\nb", b"c"])) == ["a", "", "bc"]
