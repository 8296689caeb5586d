"""From tokens to text while they come: whole characters only, and nothing beyond a stop string.

stream = TextStream(stop=["\n\n"])
for token in tokens:
    send(stream.push(pieces[token]))
    if stream.stopped:
        break
send(stream.finish())
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of tokens into text that may be published at once.

    Bytes of a character that is not complete yet wait for the rest. Text that may become a stop string waits until
    it has, or cannot. Bytes that are no UTF-8 come out as U+FFFD, as Python's decoder replaces them.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        """A stop string was found; the text before it is out, nothing will follow."""

    def push(self, piece: bytes, *, may_stop: bool = True) -> str:
        """Take the bytes of one token; the text that is certain now. Stop strings that end in it are passed over
        unless it `may_stop`."""
        return self._release(self._decoder.decode(piece), may_stop=may_stop)

    def finish(self) -> str:
        """No token will follow; the text that was still held back."""
        return self._release(self._decoder.decode(b"", final=True), last=True)

    def _release(self, text: str, *, may_stop: bool = True, last: bool = False) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        known = len(self._held)
        text = self._held + text
        # What is held may be a stop string that was passed over: one that counts ends in what is new.
        found = [at for at in (text.find(stop, max(0, known + 1 - len(stop))) for stop in self._stop) if at >= 0]
        if found and may_stop:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = 0 if last else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
