"""Remembers the prompts of one replica, and so which prefixes its cache may contain."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

BLOCK_BYTES: Final = 1024
"""Size of a block of a prompt's canonical form, in bytes: about 256 tokens of English."""


class PrefixIndex:
    """The blocks of recent prompts, the least recently used first.

    A block is a hash of a piece of a prompt and of everything before it, so equal blocks mean equal
    prefixes.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` is the maximum number of blocks."""
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def matched(self, chain: Sequence[int]) -> int:
        """Return the number of blocks, from the beginning of a prompt, that are in the index."""
        number = 0
        for block in chain:
            if block not in self._blocks:
                break
            number += 1
        return number

    def add(self, chain: Sequence[int]) -> None:
        """Make the blocks of a prompt the most recently used ones.

        The first block becomes the most recent one, because vLLM evicts the end of a prompt before
        its beginning.
        """
        blocks = self._blocks
        for block in reversed(chain):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > self.capacity:
            blocks.popitem(last=False)

    def blocks(self) -> list[int]:
        """Return the blocks, the least recently used first."""
        return list(self._blocks)

    def clear(self) -> None:
        self._blocks.clear()
