"""Hermes and Qwen: `<tool_call>`, an object with `name` and `arguments`, `</tool_call>`; text may stand before.

The format of NousResearch's Hermes 2 Pro, which Qwen2.5 and Qwen3 speak.
"""

from __future__ import annotations

from liuyi.infer.tools.reader import Reading, ToolReader

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesReader(ToolReader):
    """Any text, with calls between their tags."""

    def _read(self) -> Reading[None]:
        while True:
            yield from self._text_until(OPEN)
            if (yield from self._attempt(self._call(marked=True))):
                yield from self._skip(CLOSE)
