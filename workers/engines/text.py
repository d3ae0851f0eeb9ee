"""From token ids to text that may be shown: whole characters, and never a piece of a stop string.

What has been shown cannot be taken back, so both classes hold back the end of the text as
long as a later token may still change it.
"""

from collections.abc import Callable, Sequence

#: What a decoder puts where bytes are missing.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: A character has four bytes at most; after this many tokens the bytes are simply wrong.
MAX_HELD_TOKENS = 6


class StopFilter:
    """Lets text through up to the first stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        #: A stop string was found: nothing more comes.
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that is now certain."""
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        cut = len(text) - self._held_length(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, once no more text can follow."""
        text, self._held = self._held, ""
        return text

    def _held_length(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
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
