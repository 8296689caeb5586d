"""Reads an answer character by character and tells calls from text as soon as it can.

    reader = HermesReader({"get_weather"})
    for text in stream:
        pieces += reader.push(text)
    pieces += reader.finish()

However the text is cut into pushes, the pieces put together are the same. Nothing is lost: what turns out to be no
call comes back as text, tags included. A call is one from the moment that its function and the beginning of its
arguments are known; if the text ends or breaks off after that, the call keeps the arguments that were written, and what
follows is text. White space beside calls is dropped.

A format is a coroutine that asks for one character after the other (`_char`) and says what it has read.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Generator
from typing import TypeAlias, TypeVar

from liuyi.infer.tools.calls import CallPiece, Piece, Text

T = TypeVar("T")
Reading: TypeAlias = Generator[None, str, T]
"""A coroutine that is sent characters and returns what it made of them."""

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class NoCall(Exception):
    """What is being read is no call, or not one any more; its last character is what tells."""


class ToolReader:
    """What all formats share. A format is a subclass with a `_read`, which never ends by itself."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the functions on offer; where nothing else marks a call, only their names do."""
        self._names = names
        self._pieces: list[Piece] = []
        self._held = ""
        """Characters read that are neither said nor part of a call yet."""
        self._again: deque[str] = deque()
        self._closing = False
        """What is held belongs to a call or to its end, and is nothing to say if the answer ends here."""
        self._space = ""
        self._said = False
        self._calls = 0
        self._machine = self._read()
        next(self._machine)

    def push(self, text: str) -> list[Piece]:
        """Take more of the answer; the pieces that are certain now."""
        for character in text:
            self._machine.send(character)
        return self._take()

    def finish(self) -> list[Piece]:
        """The answer has ended; the rest of its pieces."""
        self._machine.close()
        if not self._closing:
            self._say(self._held)
        if self._space and not self._calls:
            self._pieces.append(Text(self._space))
        self._held = self._space = ""
        return self._take()

    def _read(self) -> Reading[None]:
        raise NotImplementedError

    def _char(self) -> Reading[str]:
        """The next character, which is held from now on."""
        character = self._again.popleft() if self._again else (yield)
        self._held += character
        return character

    def _put_back(self) -> None:
        """The last character is read once more."""
        self._again.appendleft(self._held[-1])
        self._held = self._held[:-1]

    def _text(self) -> Reading[None]:
        """Nothing but text, to the end."""
        while True:
            self._say((yield from self._char()))
            self._held = ""

    def _text_until(self, tag: str) -> Reading[None]:
        """Text as far as a tag, which is held."""
        while self._held != tag:
            yield from self._char()
            while not tag.startswith(self._held):
                self._say(self._held[0])
                self._held = self._held[1:]

    def _skip(self, tag: str) -> Reading[bool]:
        """Whether this tag comes next, after white space; it is dropped then. Otherwise all is read once more."""
        self._closing = True
        found = yield from self._space_then()
        while tag.startswith(found) and found != tag:
            found += yield from self._char()
        self._closing = False
        if found != tag:
            self._again.extendleft(reversed(self._held))
        self._held = ""
        return found == tag

    def _space_then(self) -> Reading[str]:
        """The next character that is no white space."""
        while (character := (yield from self._char())) in _SPACE:
            pass
        return character

    def _attempt(self, call: Reading[None]) -> Reading[bool]:
        """Whether what comes is a call. If not, it is said, but for its last character, which is read once more."""
        try:
            yield from call
            found = True
        except NoCall:
            self._put_back()
            self._say(self._held)
            found = False
        self._held, self._closing = "", False
        return found

    def _call(self, *, marked: bool) -> Reading[None]:
        """A call as a JSON object with `name` and `arguments` or `parameters`, perhaps inside `function`.

        `marked`: a tag has said that it is a call, whatever function it names. Raises NoCall.
        """
        if (yield from self._space_then()) != "{":
            raise NoCall
        call = Call(self, None if marked else self._names)
        yield from self._members(call)
        call.end()

    def _members(self, call: Call) -> Reading[None]:
        """The members of a JSON object whose brace has been read, and its closing brace."""
        character = yield from self._space_then()
        while character != "}":
            if character != '"':
                raise NoCall
            key = yield from self._string()
            if (yield from self._space_then()) != ":":
                raise NoCall
            character = yield from self._space_then()
            if key == "name" and character == '"':
                call.names((yield from self._string()))
            elif key in _ARGUMENTS:
                yield from self._arguments(call, character)
            elif key == "function" and character == "{":
                yield from self._members(call)
            else:
                yield from self._other(character)
            character = yield from self._space_then()
            if character == ",":
                character = yield from self._space_then()
            elif character != "}":
                raise NoCall

    def _arguments(self, call: Call, character: str) -> Reading[None]:
        """The arguments: an object, passed on as it comes, or a string that holds one."""
        if character == '"':
            call.gives((yield from self._string()))
        elif character == "{":
            yield from self._balanced(call)
        else:
            yield from self._other(character)

    def _balanced(self, call: Call | None) -> Reading[None]:
        """From the bracket just read to the one that closes it, passed on to `call`.

        What stands between is not checked, but for `<` outside strings: that is no JSON, and most likely a tag.
        """
        depth, quoted = 0, False
        character = self._held[-1]
        while True:
            if quoted:
                if character == "\\":
                    if call is not None:
                        call.gives(character)
                    character = yield from self._char()
                elif character == '"':
                    quoted = False
            elif character == "<":
                raise NoCall
            else:
                quoted = character == '"'
                depth += (character in "{[") - (character in "}]")
            if call is not None:
                call.gives(character)
            if not depth:
                return
            character = yield from self._char()

    def _other(self, character: str) -> Reading[None]:
        """A value that does not matter."""
        if character == '"':
            yield from self._string()
        elif character in "{[":
            yield from self._balanced(None)
        else:
            while character not in ",}]" + _SPACE:
                if not (character.isalnum() or character in "+-."):
                    raise NoCall
                character = yield from self._char()
            self._put_back()

    def _string(self) -> Reading[str]:
        """The rest of a JSON string whose quote has been read."""
        raw = '"'
        while (character := (yield from self._char())) != '"':
            raw += character
            if character == "\\":
                raw += yield from self._char()
        try:
            text = json.loads(raw + '"', strict=False)
            text.encode()
        except ValueError:
            raise NoCall from None
        return str(text)

    def _say(self, text: str) -> None:
        """Text beside the calls; white space waits for what follows it."""
        said = text.rstrip(_SPACE)
        if said:
            before = self._space if self._said or not self._calls else ""
            self._pieces.append(Text(before + said))
            self._said, self._space = True, ""
        self._space += text[len(said) :]

    def begin(self, name: str) -> int:
        """A call has begun; its number."""
        self._held, self._space, self._closing = "", "", True
        self._pieces.append(CallPiece(self._calls, name, ""))
        self._calls += 1
        return self._calls - 1

    def argue(self, index: int, arguments: str) -> None:
        """More of a call's arguments."""
        self._held = ""
        self._pieces.append(CallPiece(index, None, arguments))

    def _take(self) -> list[Piece]:
        """The pieces so far, those that belong together joined."""
        pieces: list[Piece] = []
        for piece in self._pieces:
            last = pieces[-1] if pieces else None
            if isinstance(piece, Text) and isinstance(last, Text):
                pieces[-1] = Text(last.text + piece.text)
            elif isinstance(piece, CallPiece) and piece.name is None and isinstance(last, CallPiece):
                pieces[-1] = CallPiece(last.index, last.name, last.arguments + piece.arguments)
            else:
                pieces.append(piece)
        self._pieces = []
        return pieces


class Call:
    """One call being read: it begins once its function and the first of its arguments are there."""

    def __init__(self, reader: ToolReader, names: Collection[str] | None) -> None:
        """`names` are the functions that it may name; None for any."""
        self._reader = reader
        self._names = names
        self._name: str | None = None
        self._index: int | None = None
        self._waiting = ""

    def names(self, name: str) -> None:
        """The function is known. Raises NoCall if it cannot be this one."""
        if self._name is not None or not name or (self._names is not None and name not in self._names):
            raise NoCall
        self._name = name
        self.gives("")

    def gives(self, arguments: str) -> None:
        """More of the arguments."""
        self._waiting += arguments
        if self._name is not None and self._waiting:
            if self._index is None:
                self._index = self._reader.begin(self._name)
            self._reader.argue(self._index, self._waiting)
            self._waiting = ""

    def end(self) -> None:
        """The call is whole. Raises NoCall if no function was named."""
        if self._name is None:
            raise NoCall
        if self._index is None:
            self.gives("{}")
