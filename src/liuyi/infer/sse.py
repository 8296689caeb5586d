"""Lines of a stream of server-sent events, which end with a line feed and with nothing else.

`httpx.Response.aiter_lines` also cuts at U+2028, U+0085 and others, which JSON may hold as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


class Lines:
    """Puts lines together from pieces that are cut anywhere."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def of(self, piece: bytes) -> Iterator[str]:
        """The lines that end in this piece, without their ends; what follows them is kept for the next."""
        *whole, rest = piece.split(b"\n")
        for line in whole:
            self._begun += line
            yield self._begun.removesuffix(b"\r").decode(errors="replace")
            self._begun.clear()
        self._begun += rest

    def rest(self) -> str:
        """The last line, where the stream ended without an end of line; else nothing."""
        return self._begun.decode(errors="replace")


async def lines_of(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a response as they come, without their ends. Raises as `aiter_bytes` does."""
    lines = Lines()
    async for piece in response.aiter_bytes():
        for line in lines.of(piece):
            yield line
    if rest := lines.rest():
        yield rest
