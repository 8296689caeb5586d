"""What an engine has done and holds now, in numbers that a server can show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """A picture of one moment. Counters only grow."""

    running: int
    """Requests that have a slot."""
    waiting: int
    """Requests that have none yet, or lost theirs."""
    blocks_used: int
    """Blocks of keys and values that running requests use."""
    blocks_total: int
    queried_tokens: int
    """Counter: tokens that requests began with, again after a preemption."""
    hit_tokens: int
    """Counter: those of them that were found in the cache."""
    preemptions: int
    """Counter: requests that had to give up their blocks, to go on later."""
