"""The prefix cache: keys and values of ended turns, found by their tokens.

A conversation's next prompt begins with the last one and its reply, and many conversations
begin with the same system prompt; neither needs another prefill. A turn finds only prefixes of its
own namespace.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from turnmill.workers.engines.torch.kv_rows import RowStates

#: Shorter prefixes cost more to copy than to compute.
MIN_TOKENS = 8


@dataclass(frozen=True, eq=False, slots=True)
class Remembered:
    tokens: list[int]
    states: RowStates
    #: As `Prompt.cache_namespace`.
    namespace: str

    def shared_length(self, tokens: Sequence[int], namespace: str) -> int:
        """How many tokens from the first on a prompt of that namespace may take from here."""
        return shared_length(self.tokens, tokens) if namespace == self.namespace else 0

    @property
    def column_count(self) -> int:
        """Tokens that the memory of the states has room for."""
        return int(self.states[0][0].shape[1])


class PrefixStore:
    """An LRU cache, bounded by the tokens that its states have room for."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, Remembered] = OrderedDict()
        #: Tokens that the memory of all states has room for.
        self.column_count = 0

    def longest(self, tokens: Sequence[int], namespace: str) -> tuple[Remembered | None, int]:
        """Find the entry with the longest common prefix; return it and the prefix's length."""
        best, length = None, 0
        for entry in self._entries.values():
            shared = entry.shared_length(tokens, namespace)
            if shared > length:
                best, length = entry, shared
        if best is not None:
            self._entries.move_to_end(id(best))
        return best, length

    def add(self, tokens: list[int], states: RowStates, namespace: str) -> None:
        """Cache a row, and drop the entries that are prefixes of it."""
        for key, entry in list(self._entries.items()):
            if entry.shared_length(tokens, namespace) == len(entry.tokens):
                self._drop(key)
        entry = Remembered(tokens, states, namespace)
        self._entries[id(entry)] = entry
        self.column_count += entry.column_count

    def take(self, entry: Remembered) -> RowStates:
        """Remove an entry and return its states, whose memory the caller reuses."""
        if id(entry) in self._entries:
            self._drop(id(entry))
        return entry.states

    def shrink_to(self, column_count: int) -> None:
        """Evict entries until the states have room for at most `column_count` tokens."""
        while self._entries and self.column_count > column_count:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: int) -> None:
        self.column_count -= self._entries.pop(key).column_count


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix, in tokens."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)
