"""Blocks against a plain account of who holds what."""

from __future__ import annotations

import random

import pytest

from liuyi.infer.blocks import BlockKeys, BlockPool
from liuyi.infer.runner import BLOCK_TOKENS


def test_keys_are_equal_where_prefixes_are() -> None:
    text = list(range(5 * BLOCK_TOKENS))
    other = [*text[: 3 * BLOCK_TOKENS], 7, *text[3 * BLOCK_TOKENS + 1 :]]
    one, two = BlockKeys(text, b""), BlockKeys(other, b"")
    assert [one[at] == two[at] for at in range(5)] == [True, True, True, False, False]
    assert BlockKeys(text, b"an adapter")[0] != one[0]


def test_keys_follow_a_text_that_grows() -> None:
    text = list(range(40))
    keys = BlockKeys(text, b"")
    first = keys[0]
    text += range(40, 64)
    assert keys[1] == BlockKeys(list(range(64)), b"")[1]
    assert keys[0] == first


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_never_lost_nor_given_twice(seed: int) -> None:
    chance = random.Random(seed)
    pool = BlockPool(12)
    holders: list[list[int]] = []
    content: dict[int, bytes] = {}
    """What was last written into each block, as its key."""
    fresh = iter(range(10**6))
    for _ in range(2000):
        in_use = {block for blocks in holders for block in blocks}
        assert pool.used == len(in_use)
        assert pool.available == 12 - len(in_use)
        match chance.randrange(4):
            case 0 if pool.available:
                block = pool.take()
                assert block not in in_use
                content[block] = b"%d" % next(fresh)
                holders.append([block])
            case 1 if holders:
                block = chance.choice(chance.choice(holders))
                pool.keep(block, content[block])
            case 2 if content:
                key = chance.choice(list(content.values()))
                found = pool.find(key)
                if found is not None:
                    assert content[found] == key
                    holders.append([found])
            case 3 if holders:
                pool.release(holders.pop(chance.randrange(len(holders))))
    for blocks in holders:
        pool.release(blocks)
    pool.clear()
    assert (pool.used, pool.available) == (0, 12)
    assert not any(pool.has(key) for key in content.values())


def test_what_lay_idle_longest_is_forgotten_first_and_an_end_before_its_beginning() -> None:
    pool = BlockPool(4)
    for name in (b"a", b"b"):
        blocks = [pool.take(), pool.take()]
        pool.keep(blocks[0], name)
        pool.keep(blocks[1], name * 2)
        pool.release(blocks)
    again = pool.find(b"a")
    assert again is not None
    forgotten = []
    for _ in range(3):
        pool.take()
        forgotten.append([key for key in (b"a", b"aa", b"b", b"bb") if not pool.has(key)])
    assert forgotten == [[b"aa"], [b"aa", b"bb"], [b"aa", b"b", b"bb"]]


def test_of_two_blocks_with_the_same_tokens_one_is_kept() -> None:
    pool = BlockPool(2)
    first, second = pool.take(), pool.take()
    pool.keep(first, b"same")
    pool.keep(second, b"same")
    pool.release([first, second])
    assert pool.find(b"same") == first
    assert pool.take() == second
