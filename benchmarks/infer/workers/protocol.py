"""How a benchmark talks to an engine in another process: a JSON object a line, asked on stdin, answered on stdout.

An engine implements `Engine` and calls `serve(engine)`. It depends on the standard library alone, so that it runs in
the venv of any peer. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Protocol


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
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(getattr(engine, asked.pop("job"))(**asked)) + "\n")
        answers.flush()
