"""What an engine has done and holds now, in numbers that a server can show."""

from __future__ import annotations

import msgspec


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """A picture of one moment. Counters only grow."""

    running: int = 0
    """Requests that have a slot."""
    waiting: int = 0
    """Requests that have none yet, or lost theirs."""
    blocks_used: int = 0
    """Blocks of keys and values that running requests use."""
    blocks_total: int = 0
    queried_tokens: int = 0
    """Counter: tokens that requests began with, again after a preemption."""
    hit_tokens: int = 0
    """Counter: those of them that were found in the cache."""
    preemptions: int = 0
    """Counter: requests that had to give up their blocks, to go on later."""
    drafted_tokens: int = 0
    """Counter: tokens that were read because a draft had them."""
    accepted_tokens: int = 0
    """Counter: those of them that the model said."""
