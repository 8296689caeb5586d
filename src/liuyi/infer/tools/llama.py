"""Llama 3.1 to 3.3: the whole answer is an object with `name` and `parameters`, perhaps after `<|python_tag|>`.

Meta's JSON-based tool calling; several calls stand one after the other, with `;` between them. Without the tag an
object is a call only if it names a function on offer.
"""

from __future__ import annotations

from liuyi.infer.tools.reader import Reading, ToolReader

PYTHON_TAG = "<|python_tag|>"


class LlamaReader(ToolReader):
    """Calls, or text."""

    def _read(self) -> Reading[None]:
        yield from self._calls_in_a_row(marked=False)
        while True:
            yield from self._text_until(PYTHON_TAG)
            yield from self._calls_in_a_row(marked=True)

    def _calls_in_a_row(self, *, marked: bool) -> Reading[None]:
        while (yield from self._attempt(self._call(marked=marked))):
            yield from self._skip(";")
