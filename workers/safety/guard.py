"""The guard: lets a reply through as far as no later text can change what its filters make of it.

What has left cannot be taken back. So the end of the text waits while it may be the beginning of
something that a filter changes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from turnmill.schemas.content import TokenLogprob
from turnmill.workers.engines.base import Chunk
from turnmill.workers.safety.links import MAX_OPEN_CHARS

#: Characters of the text before that filters see.
CONTEXT_CHARS = 1000


class Filter(Protocol):
    """Changes text before it is shown."""

    def open_at(self, text: str) -> int:
        """Return where the part of the text begins that more text may change."""
        ...

    def rewrite(self, text: str, before: str = "") -> str:
        """Return the text as it may be shown after the text before."""
        ...


class Guard:
    """Applies filters to one reply."""

    def __init__(self, filters: Sequence[Filter], shown: str = "") -> None:
        """`shown`: the text of earlier attempts, which has been through a guard."""
        self._filters = filters
        self._shown = shown[-CONTEXT_CHARS:]
        self._held = ""
        #: Tokens of the text that waits.
        self._token_count = 0
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._is_changed = False

    def read(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks with the text that may be shown; without any, they are signs of life."""
        for chunk in chunks:
            self._held += chunk.text
            self._token_count += chunk.token_count
            self._logprobs += chunk.logprobs
            end = len(self._held) if chunk.finish_reason else self._released()
            yield self._shown_part(chunk, end)

    def _released(self) -> int:
        """How much of the text that waits may go."""
        end = min(each.open_at(self._held) for each in self._filters)
        if len(self._held) - end <= MAX_OPEN_CHARS:
            return end
        self._held += " "  # what follows is another word
        return len(self._held)

    def _shown_part(self, chunk: Chunk, end: int) -> Chunk:
        raw, self._held = self._held[:end], self._held[end:]
        text = raw
        for each in self._filters:
            text = each.rewrite(text, self._shown)
        self._shown = (self._shown + text)[-CONTEXT_CHARS:]
        self._is_changed = self._is_changed or text != raw
        # The token whose text waits belongs to what comes.
        count = self._token_count - (chunk.token_count if self._held else 0) if raw else 0
        is_last = chunk.finish_reason is not None
        count = self._token_count if is_last else max(0, count)
        self._token_count -= count
        # They tell the text; what was changed must not be told.
        logprobs = self._logprobs if is_last and not self._is_changed else ()
        return replace(chunk, text=text, token_count=count, logprobs=logprobs)
