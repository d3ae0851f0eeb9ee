"""Results as XLSX, written row by row."""

import math
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZipFile

from turnmill.producer.batches.outputs.table import Table, is_formula
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.spreadsheet import MAX_ROWS

if TYPE_CHECKING:
    from openpyxl import Workbook

#: Excel's limit.
MAX_CELL_CHARS = 32_767
#: A spreadsheet's numbers have 15 digits.
_EXACT_BELOW = 10**15
_CUT = " … [cut: a cell holds no more]"


def write_xlsx(path: Path, table: Table) -> None:
    """Write a workbook of one sheet. A text that begins with `=` is a formula only if raw."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet("results")
    sheet.append([_cell(sheet, title, is_raw=False) for title in table.titles])
    for row in table.rows:
        sheet.append([_cell(sheet, value, is_raw=table.is_raw) for value in table.cells(row)])
    sheet.close()
    _save(book, path)


def _save(book: "Workbook", path: Path) -> None:
    """Save as `Workbook.save` does, but close the archive of a full disk.

    Left open, it prints a second error with a traceback when it is collected.
    """
    from openpyxl.writer.excel import ExcelWriter

    archive = ZipFile(path, "w", ZIP_DEFLATED, allowZip64=True)
    try:
        ExcelWriter(book, archive).save()
    except BaseException:
        with suppress(OSError, ValueError):
            archive.close()
        raise


def check_rows(total: int, path: Path) -> None:
    """Raise `InvalidInput` where a sheet has no room for all rows and the header."""
    if total >= MAX_ROWS:
        raise InvalidInput(
            f"'{path.name}': a sheet holds {MAX_ROWS - 1:,} rows, these are {total:,}. "
            "Write .csv, .jsonl or .parquet."
        )


def _is_cell(value: object) -> bool:
    """Whether a cell can hold the value as it is: no text, and nothing that would be rounded."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < _EXACT_BELOW
    if isinstance(value, datetime | time):
        return value.tzinfo is None
    return value is None or isinstance(value, date | timedelta)


def _cell(sheet: object, value: object, *, is_raw: bool) -> object:
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    if _is_cell(value):
        return value
    value = text_of(value)
    text = ILLEGAL_CHARACTERS_RE.sub("\ufffd", value)
    if len(text) > MAX_CELL_CHARS:
        text = text[: MAX_CELL_CHARS - len(_CUT)] + _CUT
    cell = WriteOnlyCell(sheet, text)
    if not is_raw or not text.startswith("="):
        # Not what openpyxl makes of it: a formula of `=…`, an error of `#N/A`.
        cell.data_type = "s"
        cell.quotePrefix = is_formula(text)
    return cell
