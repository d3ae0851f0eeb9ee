"""Where ids and turns of a backlog file stand: in a temporary file, not in memory.

A row is only appended. What stands where it must not is found at the end, by sorting all rows.
"""

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Self

#: Rows that are appended at once.
_APPENDED_ROWS = 5000

#: Of SQLite's pages in memory, KiB; the others are in a file that nobody else sees.
_CACHE_KIB = 8 * 1024

_TABLE = "CREATE TABLE rows (line INTEGER, id TEXT, conversation TEXT, turn INTEGER)"

_DOUBLE_IDS = """
SELECT line, id, first FROM (
    SELECT line, id, first_value(line) OVER same AS first, row_number() OVER same AS place
    FROM rows WINDOW same AS (PARTITION BY id ORDER BY rowid)
) WHERE place > 1 ORDER BY line
"""

#: Turns that are there twice, and rows that have a turn where the first of their conversation has
#: none, or none where it has one.
_WRONG_TURNS = """
SELECT line, conversation, turn, first, is_like_first FROM (
    SELECT line, conversation, turn, first_value(line) OVER same AS first,
        row_number() OVER same AS place,
        (turn IS NULL) = first_value(turn IS NULL) OVER (
            PARTITION BY conversation ORDER BY rowid) AS is_like_first
    FROM rows WHERE conversation IS NOT NULL
    WINDOW same AS (PARTITION BY conversation, turn ORDER BY rowid)
) WHERE NOT is_like_first OR (turn IS NOT NULL AND place > 1) ORDER BY line
"""

_DISORDERED = """
SELECT conversation, turn FROM rows WHERE conversation IN (
    SELECT conversation FROM (
        SELECT conversation, turn,
            lag(turn) OVER (PARTITION BY conversation ORDER BY rowid) AS before
        FROM rows WHERE conversation IS NOT NULL AND turn IS NOT NULL
    ) WHERE turn < before
) ORDER BY conversation, turn
"""

#: A line of the file, its column, and what is wrong.
Misplaced = tuple[int, str, str]


class Places:
    """The rows of a file by their ids and conversations. A million of them take 100 MB of disk."""

    def __init__(self) -> None:
        # An empty name is a private database on disk: https://sqlite.org/inmemorydb.html
        self._link = sqlite3.connect("", isolation_level=None)
        for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._link.execute(f"PRAGMA {setting}")
        self._link.execute(_TABLE)
        self._link.execute("BEGIN")
        self._new: list[tuple[int, str, str | None, int | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._link.close()

    def add(self, line: int, id: str, conversation: str | None, turn: int | None) -> None:
        self._new.append((line, id, conversation, turn))
        if len(self._new) >= _APPENDED_ROWS:
            self._append()

    def misplaced(self, unit: str) -> Iterator[Misplaced]:
        """What is wrong between rows: ids and turns that are there twice. First ids, then turns."""
        self._append()
        for line, name, first in self._link.execute(_DOUBLE_IDS):
            yield line, "id", f"'{name[:80]}' is the id of {unit} {first} already"
        for line, conversation, turn, first, is_like_first in self._link.execute(_WRONG_TURNS):
            if is_like_first:
                which = f"{turn} of conversation '{conversation[:80]}'"
                yield line, "turn", f"{which} is in {unit} {first} already"
            else:
                what = "is given in some rows of the conversation and missing in others"
                yield line, "turn", what

    def disordered(self) -> dict[str, tuple[int, ...]]:
        """The sorted turns of the conversations whose rows are not in their order."""
        self._append()
        rows = self._link.execute(_DISORDERED)
        return {
            name: tuple(turn for _, turn in members)
            for name, members in groupby(rows, key=itemgetter(0))
        }

    def _append(self) -> None:
        self._link.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", self._new)
        self._new = []
