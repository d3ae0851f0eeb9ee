"""What the readers of all formats share: rows, problems, the layout of a file, its columns."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.columns import Columns

#: One line is held in memory at a time. No request to the API may be larger either.
MAX_LINE_BYTES = 4 * 1024 * 1024

#: Lines below a header that are looked at where it lacks a column.
_LOOKED_AT = 20

#: Columns of a file, as many as a spreadsheet has.
MAX_COLUMNS = 16_384


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line."""

    #: From 1; in Parquet, which has no lines, the number of the row.
    line: int
    column: str | None
    message: str


Report = Callable[[Problem], None]
#: Line number and cells, by column.
Record = tuple[int, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is written. None: the format has no such thing, or the reader finds out."""

    delimiter: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    #: The line of a table's header, from 1; those above it are left out.
    header: int | None = None


@dataclass(slots=True)
class Reading:
    """One pass over a file: what its reader is given, and what the reader finds out."""

    path: Path
    report: Report
    columns: Columns = field(default_factory=Columns)
    #: As the user says; a reader replaces it by what it took.
    layout: Layout = field(default_factory=Layout)
    #: The file's columns in their order: the name used for each, and the title that the file has.
    titles: dict[str, str] = field(default_factory=dict)

    def name_columns(
        self,
        titles: Sequence[str],
        line: int,
        below: Iterable[tuple[int, Sequence[str]]] = (),
        elsewhere: str = "",
    ) -> list[str] | None:
        """Name the columns of a header, each differently. None: a problem was reported.

        Titles that nobody reads may be empty or appear twice. `below` has the next lines: titles
        of groups, or of the whole sheet, may stand above the header. `elsewhere` says where the
        columns may be if not there.
        """
        good = True
        for title in titles:
            if (name := title.strip()) in self.titles and self.columns.reads(name):
                self.report(Problem(line, name[:80], "appears twice"))
                good = False
            self.titles[self._free_name(name)] = title
        faults = list(self.columns.find_faults(list(self.titles)))
        hint = ""
        if faults and self.columns.names_header:
            hint = self._find_header(below) or elsewhere or self._ask_for_header()
        for column, message in faults:
            self.report(Problem(line, column[:80] or None, message + hint))
            good = False
        return list(self.titles) if good else None

    def _find_header(self, below: Iterable[tuple[int, Sequence[str]]]) -> str:
        """Say which of the lines below a header without fault has all that is read."""
        for line, cells in islice(below, _LOOKED_AT):
            if not any(self.columns.find_faults([cell.strip() for cell in cells])):
                return f". Line {line} has what is read. If it is the header: --header {line}"
        return ""

    def _ask_for_header(self) -> str:
        if len(self.titles) == 1:
            return ". Where other lines stand above the header, name its own: --header LINE"
        return ""

    def add_column(self) -> str:
        """Name a column beyond the header's."""
        name = self._free_name("")
        self.titles[name] = ""
        return name

    def note_columns(self, cells: dict[str, object]) -> None:
        """Remember the columns of a row, in formats without a header.

        Raises:
            InvalidInput: they are more than a table can have.
        """
        if not cells.keys() <= self.titles.keys():
            self.titles.update((name, name) for name in cells if name not in self.titles)
            if len(self.titles) > MAX_COLUMNS:
                raise InvalidInput(
                    f"'{self.path.name}' has more than {MAX_COLUMNS:,} different keys. "
                    "Results have a column for each: put what varies into one key."
                )

    def _free_name(self, name: str) -> str:
        name = name or f"column {len(self.titles) + 1}"
        tries = (f"{name} ({number})" for number in range(2, MAX_COLUMNS + 2))
        return name if name not in self.titles else next(n for n in tries if n not in self.titles)


Reader = Callable[[Reading], Iterator[Record]]


def without_nan(value: object) -> object:
    """What data frames write for an absent cell is None."""
    return None if isinstance(value, float) and math.isnan(value) else value
