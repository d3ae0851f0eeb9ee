"""Words that the bot's owner does not want."""

import re
from collections.abc import Sequence

from turnmill.schemas.safety.findings import Finding
from turnmill.schemas.safety.policy import Safety
from turnmill.workers.checks.base import Check

_NO_LETTER_BEFORE = r"(?<![A-Za-z0-9_\u00c0-\u1fff])"


class WordsCheck(Check):
    """Finds the words of `safety.words` in either case; whole, where a script has spaces."""

    def __init__(self, safety: Safety) -> None:
        words = sorted(safety.words, key=len, reverse=True)
        # One look behind for all words: in a long list it costs more than the words do.
        spaced = "|".join(_ended(word) for word in words if word[0].isascii())
        others = [_ended(word) for word in words if not word[0].isascii()]
        each = ([f"{_NO_LETTER_BEFORE}(?:{spaced})"] if spaced else []) + others
        self._pattern = re.compile("|".join(each) or r"(?!)", re.IGNORECASE)

    def examine(self, text: str) -> Sequence[Finding]:
        return [Finding(*found.span(), "word") for found in self._pattern.finditer(text)]


def _ended(word: str) -> str:
    """Letters of scripts with spaces do not stand behind it."""
    after = r"(?![A-Za-z0-9_\u00c0-\u1fff])" if word[-1].isascii() else ""
    return r"\s+".join(map(re.escape, word.split())) + after
