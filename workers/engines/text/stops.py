"""From token ids to text that may be shown: whole characters, and never a piece of a stop string.

What has been shown cannot be taken back, so both classes hold back the end of the text as
long as a later token may still change it.
"""

from collections.abc import Callable, Sequence

from turnmill.workers.engines.base import Chunk

#: What a decoder puts where bytes are missing.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: A character has four bytes at most; after this many tokens the bytes are simply wrong.
MAX_HELD_TOKENS = 6


class StopFilter:
    """Lets text through up to the first stop string, whole tokens at a time.

    Whole, because another attempt may have to go on from there: a model goes on badly in the
    middle of a token, and half a token cannot be counted.
    """

    def __init__(self, stops: Sequence[str], shown: str = "") -> None:
        """`shown` is the text before; a stop string may begin in it."""
        self._stops = tuple(stops)
        self._reach = max((len(stop) for stop in stops), default=1) - 1
        self._shown = self._end_of(shown)
        self._held: list[Chunk] = []
        #: A stop string was found: nothing more comes.
        self.is_stopped = False
        #: The text from there on, as far as it had come.
        self.rest = ""

    def push(self, text: str, token_count: int = 1, *, is_last: bool = False) -> Chunk:
        """What is certain to belong to the reply, of this text and what was held back before."""
        if not self._stops:
            return Chunk(text, token_count)
        if self.is_stopped:
            return Chunk("")
        self._held.append(Chunk(text, token_count))
        text = self._shown + "".join(chunk.text for chunk in self._held)
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.is_stopped, self.rest = True, text[min(found) :]
            token_count = sum(chunk.token_count for chunk in self._held)
            return Chunk(text[len(self._shown) : min(found)], token_count)
        end = len(text) if is_last else len(text) - self._undecided_length(text)
        return self._release(end - len(self._shown))

    def _release(self, length: int) -> Chunk:
        """The tokens within the next `length` characters."""
        text, token_count = "", 0
        while self._held and len(text) + len(self._held[0].text) <= length:
            chunk = self._held.pop(0)
            text, token_count = text + chunk.text, token_count + chunk.token_count
        self._shown = self._end_of(self._shown + text)
        return Chunk(text, token_count)

    def _end_of(self, text: str) -> str:
        """As much of the text as a stop string may begin in."""
        return text[max(0, len(text) - self._reach) :]

    def _undecided_length(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._reach, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


class Detokenizer:
    """Decodes a growing list of tokens piece by piece.

    Tokens are decoded together with the last piece before them: some tokenizers write a
    token differently at the start of a text, and a character may span several tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._shown = list(context)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes."""
        self._held.append(token)
        text = self._new_text()
        is_incomplete = not text or text.endswith(REPLACEMENT)
        if is_incomplete and len(self._held) < MAX_HELD_TOKENS:
            return ""
        self._shown, self._held = self._held, []
        return text

    def flush(self) -> str:
        """What is left when no more tokens follow; bytes that make no character are dropped."""
        text = self._new_text().rstrip(REPLACEMENT) if self._held else ""
        self._held = []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._shown)
        return self._decode([*self._shown, *self._held])[len(before) :]
