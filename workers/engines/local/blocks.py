"""Which prompt tokens an engine need not compute again, where the engine does not say.

Engines with paged KV caches (arXiv 2309.06180) find a prompt's beginning by the hashes of its
blocks. This is a record of the blocks that were computed, forgotten in the same order.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

#: Of the texts that ended in the middle of a block, so many are known.
MOST_ENDS = 1 << 16


class BlockRecord:
    """The whole blocks of tokens whose keys and values an engine has, as far as we know."""

    def __init__(self, block_size: int, capacity: int) -> None:
        """`capacity` in blocks."""
        self._block_size = block_size
        self._capacity = capacity
        self._known: OrderedDict[int, None] = OrderedDict()
        self._ends: OrderedDict[int, None] = OrderedDict()

    @property
    def block_size(self) -> int:
        return self._block_size

    def known_tokens(self, tokens: Sequence[int]) -> int:
        """How many tokens from the first on lie in known blocks; one is always computed."""
        count = 0
        for key in self._keys(tokens[:-1]):
            if key not in self._known:
                break
            self._known.move_to_end(key)
            count += self._block_size
        return count

    def open_end(self, tokens: Sequence[int]) -> int | None:
        """Which computed text these tokens continue in the middle of a block, by number; None:
        none that is known.
        """
        key = start = 0
        for whole in self._keys(tokens):
            if whole not in self._known:
                break
            key, start = whole, start + self._block_size
        for end in range(start + 1, min(start + self._block_size, len(tokens))):
            if (text := hash((key, tuple(tokens[start:end])))) in self._ends:
                return text
        return None

    def add(self, tokens: Sequence[int], *, ends_here: bool = True) -> None:
        """`ends_here`: whether no next token is being computed."""
        key = start = 0
        for key in self._keys(tokens):
            start += self._block_size
            _note(self._known, key, self._capacity)
        if ends_here and self._capacity and start < len(tokens):
            _note(self._ends, hash((key, tuple(tokens[start:]))), MOST_ENDS)

    def _keys(self, tokens: Sequence[int]) -> Iterator[int]:
        """Each block's key stands for the whole text up to its end."""
        key = 0
        for start in range(0, len(tokens) - self._block_size + 1, self._block_size):
            key = hash((key, tuple(tokens[start : start + self._block_size])))
            yield key


def _note(keys: OrderedDict[int, None], key: int, most: int) -> None:
    """As the newest; the oldest is forgotten."""
    keys[key] = None
    keys.move_to_end(key)
    if len(keys) > most:
        keys.popitem(last=False)
