"""XLSX, read row by row.

A workbook is a ZIP of XML from anywhere: what it unpacks to is bounded before it is opened, and
defusedxml refuses entities (openpyxl uses it where it is installed, and we depend on it).
"""

import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Reading, Record

if TYPE_CHECKING:
    from openpyxl import Workbook

#: Rows of a sheet: Excel's limit.
MAX_ROWS = 1_048_576

#: Unpacked sizes. Sheets are read as streams; openpyxl holds all different texts in memory.
MAX_SHEET_BYTES = 4 << 30
MAX_OTHER_BYTES = 256 << 20


def read(reading: Reading) -> Iterator[Record]:
    _check_size(reading.path)
    try:
        yield from _records(reading)
    except (zipfile.BadZipFile, LookupError, ValueError, TypeError, SyntaxError) as error:
        cause = error.__cause__ or error
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise InvalidInput(
            f"'{reading.path.name}' is not readable as XLSX: {reason[:200]}. Open it in a "
            "spreadsheet program and save it again as .xlsx or CSV."
        ) from None


def _check_size(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        raise InvalidInput(
            f"'{path.name}' is not an XLSX file (no ZIP archive). An older .xls, or a file with a "
            "password? Save it as .xlsx or CSV."
        ) from None
    for member in members:
        is_sheet = member.filename.startswith("xl/worksheets/")
        limit = MAX_SHEET_BYTES if is_sheet else MAX_OTHER_BYTES
        if member.file_size > limit:
            raise InvalidInput(
                f"'{path.name}': {member.filename[:80]} unpacks to {member.file_size >> 20:,} MiB; "
                f"{limit >> 20:,} are read. Save the sheet as CSV."
            )


def _records(reading: Reading) -> Iterator[Record]:
    from openpyxl import load_workbook

    # Of drop-downs, colours and other things that no row needs.
    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")
    with reading.path.open("rb") as file:
        book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
        sheet = _sheet(book, reading)
        # What the sheet says of its own size is often wrong.
        sheet.reset_dimensions()
        rows = enumerate(islice(sheet.iter_rows(values_only=True), MAX_ROWS), start=1)
        first = reading.layout.header or 0
        filled = ((line, cells) for line, cells in rows
                  if line >= first and any(c not in (None, "") for c in cells))  # fmt: skip
        head = next(filled, None)
        if head is None:
            return
        below = ((line, _titles(cells)) for line, cells in filled)
        names = reading.name_columns(_titles(head[1]), head[0], below, _others(book, sheet.title))
        if names is None:
            return
        for line, cells in filled:
            width = max(n for n, cell in enumerate(cells, start=1) if cell is not None)
            # Notes beside the table are carried along like columns without a title.
            names += [reading.add_column() for _ in range(len(names), width)]
            padded = (*cells, *[None] * (len(names) - len(cells)))
            yield line, dict(zip(names, padded, strict=False))


def _sheet(book: "Workbook", reading: Reading) -> Any:
    """The named sheet, or the first one. The class of sheets that are read has no public name."""
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if not sheets:
        raise InvalidInput(f"'{reading.path.name}' has no sheet with cells.")
    name = reading.layout.sheet or next(iter(sheets))
    if name not in sheets:
        known = ", ".join(repr(title) for title in sheets)
        raise InvalidInput(f"'{reading.path.name}' has no sheet '{name[:80]}'. It has {known}.")
    reading.layout = replace(reading.layout, sheet=name)
    return sheets[name]


def _others(book: "Workbook", name: str) -> str:
    """Name the other sheets, where the columns may be; an empty text without any."""
    others = [repr(each.title) for each in book.worksheets if each.title != name]
    if not others:
        return ""
    return f". This is sheet {name!r}; with --sheet NAME, also: {', '.join(others)[:200]}"


def _titles(cells: tuple[object, ...]) -> list[str]:
    """The header without the empty cells at its end."""
    width = max(n for n, cell in enumerate(cells, start=1) if cell is not None)
    return ["" if cell is None else str(cell) for cell in cells[:width]]
