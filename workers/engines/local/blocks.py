"""Which prompt tokens an engine need not compute again, where the engine does not say.

Engines with paged KV caches (arXiv 2309.06180) find a prompt's beginning by the hashes of its
blocks. This is a record of the blocks that were computed, forgotten in the same order.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence


class BlockRecord:
    """The whole blocks of tokens whose keys and values an engine has, as far as we know."""

    def __init__(self, block_size: int, capacity: int) -> None:
        """`capacity` in blocks."""
        self._block_size = block_size
        self._capacity = capacity
        self._known: OrderedDict[int, None] = OrderedDict()

    def known_tokens(self, tokens: Sequence[int]) -> int:
        """How many tokens from the first on lie in known blocks; one is always computed."""
        count = 0
        for key in self._keys(tokens[:-1]):
            if key not in self._known:
                break
            self._known.move_to_end(key)
            count += self._block_size
        return count

    def add(self, tokens: Sequence[int]) -> None:
        for key in self._keys(tokens):
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def _keys(self, tokens: Sequence[int]) -> Iterator[int]:
        """Each block's key stands for the whole text up to its end."""
        key = 0
        for start in range(0, len(tokens) - self._block_size + 1, self._block_size):
            key = hash((key, tuple(tokens[start : start + self._block_size])))
            yield key
