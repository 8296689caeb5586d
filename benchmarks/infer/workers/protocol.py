"""How a benchmark talks to an engine in another process: a JSON object a line, asked on stdin, answered on stdout.

An engine implements `Engine` and calls `serve(engine)`. It depends on the standard library alone, so that it runs in
the venv of any peer. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Protocol

_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # from here on, what libraries print is no answer


class Engine(Protocol):
    """What is measured; all of it greedy, without stopping early, and with no prefix remembered from before."""

    def decode(self, prompt: list[int], tokens: int) -> dict:
        """One stream: `first_s` to the first token, `rest_s` of the `tokens - 1` after it, and the `ids`."""

    def prefill(self, prompt: list[int]) -> dict:
        """`seconds` to the first token."""

    def streams(self, prompts: list[list[int]], tokens: int) -> dict:
        """All prompts at once: `seconds` until each has `tokens` new tokens."""


def serve(engine: Engine) -> None:
    """Answer until stdin ends."""
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        _say(getattr(engine, asked.pop("job"))(**asked))


def _say(answer: dict) -> None:
    _ANSWERS.write(json.dumps(answer) + "\n")
    _ANSWERS.flush()
