"""Mistral: `[TOOL_CALLS]` and a list of objects with `name` and `arguments`, or a name and its arguments each time.

The list is the form of the v3 tokenizers (Mistral 7B v0.3, Nemo, Small 2409). From v11 on it is a tag for each call,
`[TOOL_CALLS]name[ARGS]{…}`, with `[CALL_ID]id` before the arguments or neither mark in some.
"""

from __future__ import annotations

from liuyi.infer.tools.reader import Call, NoCall, Reading, ToolReader

TAG, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class MistralReader(ToolReader):
    """Any text, with calls after a tag."""

    def _read(self) -> Reading[None]:
        while True:
            yield from self._text_until(TAG)
            yield from self._attempt(self._tagged())

    def _tagged(self) -> Reading[None]:
        if (yield from self._space_then()) == "[":
            yield from self._list()
        else:
            yield from self._named()

    def _list(self) -> Reading[None]:
        while True:
            yield from self._call(marked=True)
            character = yield from self._space_then()
            if character == "]":
                return
            if character != ",":
                raise NoCall

    def _named(self) -> Reading[None]:
        name = self._held[-1]
        while _in_name(name[-1]):
            name += yield from self._char()
        if name[-1] == "[" and (yield from self._tag()) == CALL_ID:
            while (yield from self._char()) != "[":
                pass
            yield from self._tag()
        if self._held[-1] != "{":
            yield from self._char()
        if self._held[-1] != "{" or len(name) == 1:
            raise NoCall
        call = Call(self, None)
        call.names(name[:-1])
        yield from self._balanced(call)

    def _tag(self) -> Reading[str]:
        """The tag whose bracket has been read, `[CALL_ID]` or `[ARGS]`. Raises NoCall if it is none of them."""
        tag = "["
        while tag not in (CALL_ID, ARGS):
            tag += yield from self._char()
            if not (CALL_ID.startswith(tag) or ARGS.startswith(tag)):
                raise NoCall
        return tag


def _in_name(character: str) -> bool:
    return character.isalnum() or character in "_-."
