"""Which block of keys and values holds what: free ones, ones in use, and ones kept because their tokens may come again.

    pool = BlockPool(1024)
    keys = BlockKeys(tokens, root=b"base")
    held = pool.find(keys[0]) or pool.take()     # computed before, by anyone, or to be computed now
    pool.keep(held, keys[0])                     # its tokens are computed: from now on others may use it
    pool.release([held])                         # idle, but found again until its room is needed

A block's key is a hash over its tokens and all before them, so that equal keys mean equal prefixes (chained hashes, as
in vLLM). A block is findable as soon as it is computed, while its sequence still runs.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from liuyi.infer.runner import BLOCK_TOKENS


def blocks_for(tokens: int) -> int:
    """How many blocks so many tokens need."""
    return -(-tokens // BLOCK_TOKENS)


class BlockKeys:
    """The keys of a sequence's full blocks, made when they are asked for.

    The hash is cryptographic, so that nobody can make a prompt that finds the blocks of another's.
    """

    def __init__(self, tokens: Sequence[int], root: bytes) -> None:
        """`tokens` may grow; `root` stands for all else that decides about keys and values, such as an adapter."""
        self._tokens = tokens
        self._keys: list[bytes] = []
        self._root = root

    def __getitem__(self, block: int) -> bytes:
        while len(self._keys) <= block:
            at = BLOCK_TOKENS * len(self._keys)
            before = self._keys[-1] if self._keys else self._root
            own = array("i", self._tokens[at : at + BLOCK_TOKENS]).tobytes()
            self._keys.append(blake2b(before + own, digest_size=16).digest())
        return self._keys[block]


class BlockPool:
    """A fixed number of blocks, counted by who uses them."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._users = [0] * blocks
        self._key: list[bytes | None] = [None] * blocks
        self._found: dict[bytes, int] = {}
        self._free = list(range(blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones, and idle ones that would be forgotten."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that some sequence uses."""
        return self.blocks - self.available

    def take(self) -> int:
        """An empty block; the one that lay idle longest is forgotten for it. There must be one `available`."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._found[self._forget(block)]
        self._users[block] = 1
        return block

    def has(self, key: bytes) -> bool:
        """Whether a block with that key would be found."""
        return key in self._found

    def is_idle(self, key: bytes) -> bool:
        """Whether the block with that key is there and used by none, so that using it makes one less available."""
        return self._found.get(key, -1) in self._idle

    def find(self, key: bytes) -> int | None:
        """A block with these tokens, which the caller uses from now on; None if there is none."""
        block = self._found.get(key)
        if block is not None:
            self._users[block] += 1
            self._idle.pop(block, None)
        return block

    def keep(self, block: int, key: bytes) -> None:
        """The tokens of a block are computed: let it be found. If another has the same tokens, that one stays."""
        if key not in self._found and self._key[block] is None:
            self._found[key] = block
            self._key[block] = key

    def release(self, blocks: Iterable[int]) -> None:
        """The caller no longer uses these blocks of one sequence, named in its order.

        The last lie idle longest, for a prefix can be of use without what followed it.
        """
        for block in reversed(list(blocks)):
            self._users[block] -= 1
            if not self._users[block]:
                if self._key[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def clear(self) -> None:
        """Forget what idle blocks hold."""
        for block in self._idle:
            del self._found[self._forget(block)]
        self._free += reversed(self._idle)
        self._idle.clear()

    def _forget(self, block: int) -> bytes:
        key = self._key[block]
        if key is None:
            raise ValueError(f"block {block} has no key")
        self._key[block] = None
        return key
