"""Functions that a model may call, and the pieces in which its calls are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Function:
    """A function that a model may call."""

    name: str
    """Letters, digits, `_` and `-`."""
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON Schema of the arguments, an object."""
    strict: bool = False
    """Refuse the request if the schema cannot be enforced, rather than ask for any JSON object then."""


@dataclass(frozen=True)
class Text:
    """A piece of what is said beside the calls."""

    text: str


@dataclass(frozen=True)
class CallPiece:
    """A piece of a call: its beginning, which names the function, or more of its arguments."""

    index: int
    """Number of the call in its answer."""
    name: str | None
    """Set in the first piece of each call."""
    arguments: str
    """JSON, as the model wrote it."""


Piece = Text | CallPiece


@dataclass
class Message:
    """An answer put together from its pieces."""

    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(function, arguments) of each call."""

    def add(self, pieces: Iterable[Piece]) -> Message:
        """Take in more pieces; the message itself."""
        for piece in pieces:
            if isinstance(piece, Text):
                self.content += piece.text
            elif piece.name is not None:
                self.calls.append((piece.name, piece.arguments))
            else:
                name, arguments = self.calls[piece.index]
                self.calls[piece.index] = (name, arguments + piece.arguments)
        return self
