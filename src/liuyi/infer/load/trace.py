"""Requests as they came to a real service, from a trace in Mooncake's format.

A line is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}`, where each hash id
stands for a block of 512 tokens of the prompt together with all before it (arXiv:2407.00079, section 4.1 and the
traces published beside it). Equal ids become equal blocks, so that a prefix cache meets what it met there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from liuyi.core.errors import DataError
from liuyi.infer.load.workload import Alphabet, Ask, json_lines

BLOCK_TOKENS = 512
_NUMBERS = ("timestamp", "input_length", "output_length")


def read_trace(
    path: Path,
    alphabet: Alphabet,
    *,
    speed: float = 1.0,
    scale: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
) -> list[Ask]:
    """The first `limit` requests of a trace, in the order of time, the first of them due at once.

    `speed` 2 sends them twice as fast; `scale` 0.25 makes prompts, answers and blocks a quarter as long.
    Raises DataError, naming the line that is not as it should be.
    """
    rows = []
    for where, row in json_lines(path):
        numbers = [row.get(name) for name in _NUMBERS]
        if not all(map(_is_amount, numbers)):
            raise DataError(f"{', '.join(_NUMBERS)} are not all numbers of 0 or more", where=where)
        hashes = row.get("hash_ids")
        if not isinstance(hashes, list) or not all(isinstance(name, int) and _is_amount(name) for name in hashes):
            raise DataError("hash_ids is no list of whole numbers of 0 or more", where=where)
        blocks = -(-int(row["input_length"]) // BLOCK_TOKENS)
        if len(hashes) != blocks:
            raise DataError(
                f"has {len(hashes)} hash_ids; {row['input_length']} tokens are {blocks} blocks", where=where
            )
        rows.append(row)
    rows = sorted(rows, key=lambda row: row["timestamp"])[:limit]
    began = rows[0]["timestamp"]

    def one(row: dict[str, Any]) -> Ask:
        numbers = _tokens(alphabet, row["hash_ids"], int(row["input_length"]), scale, seed)
        return Ask(
            alphabet.prompt(numbers),
            max_tokens=max(1, round(row["output_length"] * scale)),
            due_s=(row["timestamp"] - began) / 1000 / speed,
            prompt_tokens=len(numbers),
        )

    return [one(row) for row in rows]


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _tokens(alphabet: Alphabet, hashes: list[int], input_length: int, scale: float, seed: int) -> list[int]:
    """The prompt's tokens: each block drawn from its id, the last one cut to the prompt's length."""
    size = max(1, round(BLOCK_TOKENS * scale))
    rest = input_length - BLOCK_TOKENS * (len(hashes) - 1)
    tokens: list[int] = []
    for at, name in enumerate(hashes):
        block = alphabet.draw(np.random.default_rng((seed, name)), size)
        tokens += block if at < len(hashes) - 1 else block[: max(1, round(rest * scale))]
    return tokens
