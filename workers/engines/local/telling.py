"""Log-probabilities of a reply's tokens, by their text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from turnmill.schemas.content import TokenLogprob, token_text
from turnmill.workers.engines.local.scheduling import Generation, Token


class Text(Protocol):
    """What telling needs of a `TextSide`."""

    @property
    def decode(self) -> Callable[[list[int]], str]: ...
    @property
    def bytes_of(self) -> Callable[[int], bytes | None]: ...


class Telling:
    """Passes tokens on, and tells the log-probabilities of those that have been passed on.

    A token whose bytes are not known is decoded after the one before it: some tokenizers write a
    token differently at the start of a text. One that is a part of a character is U+FFFD then.
    """

    def __init__(self, tokens: Iterable[Token], text: Text, generation: Generation) -> None:
        self._tokens = tokens
        self._text = text
        self._before = list(generation.prompt_ids[-1:])
        self._top_count = generation.params.logprobs or 0
        self._untold: list[TokenLogprob] = []

    def __iter__(self) -> Iterator[Token]:
        for token in self._tokens:
            # The model's end token has no text.
            if token.logprobs and token.finish_reason != "stop":
                self._untold.append(self._of(token))
                self._before = [token.id]
            yield token

    def told(self) -> tuple[TokenLogprob, ...]:
        """Return those since the last call."""
        told, self._untold = tuple(self._untold), []
        return told

    def _of(self, token: Token) -> TokenLogprob:
        texts = [(self._written(id), logprob) for id, logprob in token.logprobs]
        (text, logprob), top = texts[0], texts[1 : self._top_count + 1]
        return TokenLogprob(text=text, logprob=logprob, top=tuple(top))

    def _written(self, id: int) -> str:
        raw = self._text.bytes_of(id)
        if raw is not None:
            return token_text(raw)
        start = len(self._text.decode(self._before))
        return self._text.decode([*self._before, id])[start:]
