"""Lines of a stream of server-sent events, which end with a line feed and with nothing else.

`httpx.Response.aiter_lines` also cuts at U+2028, U+0085 and others, which JSON may hold as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


async def lines_of(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a response as they come, without their ends. Raises as `aiter_bytes` does."""
    begun = bytearray()
    async for piece in response.aiter_bytes():
        *whole, rest = piece.split(b"\n")
        for line in whole:
            begun += line
            yield begun.removesuffix(b"\r").decode(errors="replace")
            begun.clear()
        begun += rest
    if begun:
        yield begun.decode(errors="replace")
