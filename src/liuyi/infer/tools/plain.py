"""For models whose template knows no tools: calls as bare JSON, one object a line, as OpenAI's API writes them.

The functions are described in a system message, and calls and results in the conversation are told as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from liuyi.infer.tools.reader import NoCall, Reading, ToolReader

_INTRODUCTION = """\
You may call these functions, given as JSON Schema, one a line:
{functions}
To call one, answer with nothing but {{"name": "its name", "arguments": {{its arguments}}}}, one call a line.
Otherwise answer in words."""


class PlainReader(ToolReader):
    """Calls, in lines or in a list, or text."""

    def _read(self) -> Reading[None]:
        if (yield from self._space_then()) == "[":
            yield from self._attempt(self._list())
        else:
            self._put_back()
            while (yield from self._attempt(self._call(marked=False))):
                pass
        yield from self._text()

    def _list(self) -> Reading[None]:
        while True:
            yield from self._call(marked=False)
            character = yield from self._space_then()
            if character == "]":
                return
            if character != ",":
                raise NoCall


def told(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation with tools as one of system, user and assistant alone."""
    functions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    introduction = _INTRODUCTION.format(functions=functions) if tools else ""
    plain: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "system" and introduction:
            content, introduction = f"{content}\n\n{introduction}", ""
        elif role == "assistant":
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            lines = [json.dumps({"name": c["name"], "arguments": c["arguments"]}, ensure_ascii=False) for c in calls]
            content = "\n".join([content, *lines] if content else lines)
        elif role == "tool":
            content = f"Result: {content}"
        if role == "tool" and after_result:
            # Many templates want roles to alternate.
            plain[-1]["content"] += f"\n{content}"
        else:
            name = {"name": message["name"]} if "name" in message and role != "tool" else {}
            plain.append({"role": "user" if role == "tool" else role, "content": content, **name})
        after_result = role == "tool"
    return [{"role": "system", "content": introduction}, *plain] if introduction else plain
