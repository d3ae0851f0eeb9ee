"""Find the lines of keys in a TOML file, which `tomllib` does not tell."""

import tomllib
from collections.abc import Sequence
from typing import Any

KeyPath = Sequence[str | int]


class TOMLLines:
    """The lines of one valid file.

    What the parser makes of the first n lines decides: the statement that brings a key ends at the
    first n where the key is there. So every way to write a key is found, and none is parsed here.
    """

    def __init__(self, text: str) -> None:
        lines = text.splitlines(keepends=True)
        #: What each beginning of the file holds that is a whole file itself, with the number of
        #: the line that its last statement begins in.
        self._beginnings: list[tuple[int, dict[str, object]]] = []
        start = 1
        for end in range(1, len(lines) + 1):
            try:
                content = tomllib.loads("".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                continue
            self._beginnings.append((start, content))
            start = end + 1

    def line_of(self, path: KeyPath) -> int:
        """Return the line of a key, or of the innermost of its tables where the key is missing."""
        for length in range(len(path), 0, -1):
            for line, content in self._beginnings:
                if _has(content, path[:length]):
                    return line
        return 1


def _has(content: Any, path: KeyPath) -> bool:
    for key in path:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
