"""The words of a text as a search compares them, in any script, with no dictionary.

Words of scripts with spaces are folded and lose an English plural's ending; Chinese, Japanese and
Korean become overlapping pairs of characters, which find more than a dictionary's words do
(Nie and Ren 1999, https://doi.org/10.1016/S0306-4573(98)00051-6).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

#: Han, Hiragana, Katakana and Hangul, which are written without spaces or in long words.
_PAIRED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUNS = re.compile(rf"[{_PAIRED}]+|[^\W_{_PAIRED}]+")
_IS_PAIRED = re.compile(rf"[{_PAIRED}]")

#: PostgreSQL takes lexemes of 2 KB (https://www.postgresql.org/docs/current/textsearch-limitations.html);
#: what is longer than this is no word.
MAX_CHARS = 64
#: Of a lexeme, and the last position of a text.
MAX_POSITIONS, LAST_POSITION = 255, 16383


def lexemes(text: str) -> list[str]:
    """The lexemes of a text, in their order, each as often as it stands there."""
    return list(_lexemes(unicodedata.normalize("NFKC", text).casefold()))


def is_paired(lexeme: str) -> bool:
    """Whether it is of a script that is written without spaces: a pair of its characters."""
    return _IS_PAIRED.match(lexeme) is not None


def _lexemes(text: str) -> Iterator[str]:
    for run in _RUNS.findall(text):
        if not _IS_PAIRED.match(run):
            yield _singular(run[:MAX_CHARS])
        elif len(run) == 1:
            yield run
        else:
            yield from (run[at : at + 2] for at in range(len(run) - 1))


def _singular(word: str) -> str:
    """Without a plural's ending: the S stemmer of Harman 1991, "How effective is suffixing?"."""
    if len(word) < 4 or not word.endswith("s"):
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]


def as_tsvector(found: Sequence[str]) -> str:
    """Lexemes as the text of a `tsvector` that keeps how often each stands in its text."""
    places: dict[str, list[str]] = {}
    for position, lexeme in enumerate(found, start=1):
        mine = places.setdefault(lexeme, [])
        if len(mine) < MAX_POSITIONS:
            mine.append(str(min(position, LAST_POSITION)))
    return " ".join(f"'{lexeme}':{','.join(at)}" for lexeme, at in places.items())


def passage_terms(title: str, heading: str, content: str) -> tuple[str, int]:
    """The text of a passage's `tsvector`, and the number of its lexemes.

    What a passage is about often stands in its headings alone.
    """
    words = lexemes(f"{title}\n{heading}\n{content}")
    return as_tsvector(words), len(words)
