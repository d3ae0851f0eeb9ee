"""Finds documents that repeat a text: what judges must be new to what was trained on it."""

from collections.abc import Iterator

#: Characters of a piece. Texts that share a run of twice as many share a whole piece of each.
_PIECE = 100


class Passages:
    """The passages of a text, told apart by their characters; any white space counts as one."""

    def __init__(self, text: str) -> None:
        text = _plain(text)
        self._pieces = {
            hash(text[start : start + _PIECE]) for start in range(len(text) - _PIECE + 1)
        }

    def are_in(self, document: str) -> bool:
        """Tell whether the document shares a run of at least 200 characters with the text.

        Shorter runs, from 100 characters on, are found where they fill a piece of the document.
        """
        return any(hash(piece) in self._pieces for piece in _apart(_plain(document)))


def _apart(text: str) -> Iterator[str]:
    for start in range(0, len(text) - _PIECE + 1, _PIECE):
        yield text[start : start + _PIECE]


def _plain(text: str) -> str:
    return " ".join(text.split())
