"""What the engine remembers of turns that have ended: keys and values by their tokens.

A conversation's next prompt begins with the last one and its reply, and many conversations
begin with the same system prompt; neither needs to be computed again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from turnmill.workers.engines.kv_rows import RowStates

#: Shorter ones are not worth their copying.
MIN_TOKENS = 8


@dataclass(frozen=True, eq=False, slots=True)
class Remembered:
    tokens: list[int]
    states: RowStates


class PrefixStore:
    """The states used least recently go first when they no longer fit."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, Remembered] = OrderedDict()
        self.token_count = 0

    def longest(self, tokens: Sequence[int]) -> tuple[Remembered | None, int]:
        """What shares the longest beginning with `tokens`, and how long that is."""
        best, length = None, 0
        for entry in self._entries.values():
            shared = shared_length(entry.tokens, tokens)
            if shared > length:
                best, length = entry, shared
        if best is not None:
            self._entries.move_to_end(id(best))
        return best, length

    def add(self, tokens: list[int], states: RowStates) -> None:
        """Remember a row; what it only continues need not be kept besides."""
        for key, entry in list(self._entries.items()):
            if shared_length(entry.tokens, tokens) == len(entry.tokens):
                self._drop(key)
        entry = Remembered(tokens, states)
        self._entries[id(entry)] = entry
        self.token_count += len(tokens)

    def shrink_to(self, token_count: int) -> None:
        """Forget until no more than so many tokens are kept."""
        while self._entries and self.token_count > token_count:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: int) -> None:
        self.token_count -= len(self._entries.pop(key).tokens)


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)
