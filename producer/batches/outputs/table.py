"""What all writers are given: the file's own columns, ours beside them, and the rows."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turnmill.producer.batches.shapes import Shape
from turnmill.schemas.batches import BatchResult
from turnmill.schemas.records.columns import text_of

if TYPE_CHECKING:
    import pyarrow

#: What a person wants to see beside a row.
BRIEF = ("reply", "state", "error")

#: What every result knows, in the order of the columns.
FULL = tuple(BatchResult.model_fields)

#: First characters from which a spreadsheet makes a formula of a text.
#: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?[\d.,\u00a0 ]*\d%?")

#: The cells of a row by the file's column names, and its result.
Row = tuple[Mapping[str, object], BatchResult]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows on their way into a file."""

    rows: Iterator[Row]
    #: The file's own columns: the name used for each, and the title that the file has.
    own: Mapping[str, str] = field(default_factory=dict)
    #: Fields of the result.
    added: tuple[str, ...] = FULL
    delimiter: str = ","
    is_raw: bool = False
    is_gzipped: bool = False
    #: The Arrow schema of the own columns, where the backlog is Parquet too.
    schema: "pyarrow.Schema | None" = None
    #: What the replies' columns are made of, before the other fields.
    shape: Shape | None = None

    @property
    def names(self) -> dict[str, str]:
        """The title of each added column: its name, or another where the file has that name."""
        taken = {*self.own, *self.own.values()}
        added = [*(self.shape.titles if self.shape else ()), *self.added]
        return {n: n if n not in taken else f"turnmill_{n}" for n in added}

    @property
    def titles(self) -> list[str]:
        return [*self.own.values(), *self.names.values()]

    def values(self, result: BatchResult) -> dict[str, Any]:
        """The fields of a result, and the columns of its reply."""
        shaped: dict[str, object] = {}
        if self.shape:
            result, shaped = self.shape.read(result)
        return result.model_dump(mode="json") | shaped

    def cells(self, row: Row) -> list[object]:
        """The cells under `titles`, an error as one text."""
        cells, result = row
        values = self.values(result)
        if error := values["error"]:
            values["error"] = f"{error['code']}: {error['message']}"
        return [*(cells.get(name) for name in self.own), *(values[n] for n in self.names)]


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would compute this text. Signed numbers are what they seem."""
    return text.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text)


def flat(value: object) -> str:
    """A cell of a text table."""
    return "" if value is None else text_of(value)


def defused(value: object) -> str:
    """A cell of a text table, behind an apostrophe where a spreadsheet would compute it."""
    text = flat(value)
    return f"'{text}" if isinstance(value, str) and is_formula(text) else text
