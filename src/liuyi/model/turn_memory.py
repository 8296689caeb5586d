"""Where the assistant's turns lie in a rendered conversation, remembered from one request to the next.

What a turn adds to the prompt before it shows only when both are rendered. Done for every turn, that grows with the
square of a conversation's length; but of a conversation that goes on, all turns but the last are known already.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_CLOCK = re.compile("%[-_0^#]?[HIMSTRXcpr]")
"""The formats of `strftime` that tell more than a day."""


@dataclass(frozen=True)
class Turn:
    """What the assistant says, as characters of the rendered conversation."""

    begins: int
    ends: int


@dataclass(frozen=True)
class _Known:
    turn: Turn | None
    """None if the template does not render it as something that is added to the prompt."""
    length: int
    hash: int
    """Of the text as far as the turn's message."""


class TurnMemory:
    """The turns that were met last. Safe to use from several threads."""

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: bytes, whole: str, look: Callable[[], tuple[Turn | None, str]]) -> Turn | None:
        """Where the turn lies in `whole`; None if that does not begin with the text as far as the turn's message.

        `look` finds turn and text, and is called only if nothing is known under `key`.
        """
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
        if known is None:
            turn, through = look()
            known = _Known(turn, len(through), hash(through))
            with self._lock:
                self._known[key] = known
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        return known.turn if hash(whole[: known.length]) == known.hash else None


def keys_of(messages: Sequence[Mapping[str, Any]], template: str, *rendered_with: Any) -> Iterator[bytes]:
    """A key for each message: SHA-256 of it, of all messages before it, and of what they are rendered with."""
    state = hashlib.sha256(_json([_told_time(template), template, *rendered_with]))
    for message in messages:
        state.update(_json(message))
        yield state.digest()


def _told_time(template: str) -> str:
    """What changes whenever the text of a template that tells the time can change: the date, or the second."""
    tells_clock = "strftime_now" in template and _CLOCK.search(template)
    now = datetime.now()
    return now.isoformat(timespec="seconds") if tells_clock else now.date().isoformat()


def _json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()
