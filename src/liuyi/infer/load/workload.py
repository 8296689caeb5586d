"""What is asked: prompts of given lengths made up from a seed, or read from a file, and when each is due."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from liuyi.core.errors import DataError

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, token ids, or the messages of a conversation."""

# Each of them is one token, with the space before it, in the vocabularies of the usual models.
_COMMON = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much before go
good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last never
us left end along while might next sound below saw something thought both few those always looked show large often
together asked house world going want school important until form food keep children feet land side without boy once
animals life enough took sometimes four head above kind began almost live page got earth need far hand high year
mother light parts country father let night following picture being study second eyes soon times story boys since
white days ever paper hard near sentence better best across during today
"""
WORDS = tuple(_COMMON.split())


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: Prompt
    max_tokens: int
    due_s: float = 0.0
    """When to send it, in seconds after the beginning; without meaning where lanes take turns."""
    prompt_tokens: int = 0
    """What a made-up prompt is meant to have; 0 for one that was given."""


@dataclass(frozen=True)
class Alphabet:
    """How numbers drawn at random become a prompt: token ids below `vocab_size`, or common words without one."""

    vocab_size: int | None = None

    def draw(self, rng: Generator, tokens: int) -> list[int]:
        """So many numbers; those of a vocabulary leave out its first tenth, where special tokens are."""
        low, high = (0, len(WORDS)) if self.vocab_size is None else (self.vocab_size // 10, self.vocab_size)
        return [int(number) for number in rng.integers(low, high, size=tokens)]

    def prompt(self, numbers: Sequence[int]) -> Prompt:
        """The prompt that they stand for: the ids themselves, or the words as a text."""
        return list(numbers) if self.vocab_size is not None else " ".join(WORDS[number] for number in numbers)


def made_up(
    count: int,
    alphabet: Alphabet,
    rng: Generator,
    *,
    input_tokens: int,
    output_tokens: int,
    spread: float = 0.0,
    prefix_tokens: int = 0,
) -> list[Ask]:
    """Requests with random prompts of `prefix_tokens` shared and `input_tokens` of their own.

    Lengths are drawn evenly from `(1 ± spread)` times what is given, at least one token.
    """
    prefix = alphabet.draw(rng, prefix_tokens)

    def length(typical: int) -> int:
        return max(1, round(typical * rng.uniform(1 - spread, 1 + spread)))

    def one() -> Ask:
        numbers = prefix + alphabet.draw(rng, length(input_tokens))
        return Ask(alphabet.prompt(numbers), length(output_tokens), prompt_tokens=len(numbers))

    return [one() for _ in range(count)]


def read_prompts(path: Path, output_tokens: int, *, chat: bool = False) -> list[Ask]:
    """The requests of a file of JSON lines with `prompt` or `messages`, and `max_tokens` if it differs.

    Raises DataError, naming the line; also for messages where completions are asked for, not chats.
    """
    asks = []
    for where, row in json_lines(path):
        prompt, tokens = row.get("prompt", row.get("messages")), row.get("max_tokens", output_tokens)
        if not isinstance(prompt, str | list) or not prompt:
            raise DataError("has neither 'prompt' (a text or token ids) nor 'messages'", where=where)
        if not chat and isinstance(prompt[0], dict):
            raise DataError("has messages, which are for chats", where=where, hint="give --chat")
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise DataError("max_tokens is no positive whole number", where=where)
        asks.append(Ask(prompt, tokens))
    return asks


def json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, object) for each line of a file. Raises DataError where a line holds none, or the file has no line."""
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"is no JSON: {error}", where=where) from error
        if not isinstance(row, dict):
            raise DataError("is no JSON object", where=where)
        rows.append((where, row))
    if not rows:
        raise DataError("has no requests", where=str(path))
    return rows


def due(asks: Sequence[Ask], rate: float, rng: Generator | None) -> list[Ask]:
    """The requests, `rate` a second on average: as a Poisson process drawn from `rng`, or evenly without it."""
    gaps = np.full(len(asks), 1 / rate) if rng is None else rng.exponential(1 / rate, size=len(asks))
    times = np.cumsum(gaps) - gaps[:1]
    return [replace(ask, due_s=float(time)) for ask, time in zip(asks, times, strict=True)]
