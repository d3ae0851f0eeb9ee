"""An export of a help desk, as CSV and as a workbook, and tables read back."""

import csv
from datetime import datetime
from pathlib import Path
from typing import Any

from openpyxl import Workbook, load_workbook

#: As a help desk exports it: own names, one of them empty, one twice, a column without a value.
TITLES = ["Ticket", "Datum", "Kunde", "Notiz", "Notiz", "Betreff", "Beschreibung", "Leer", ""]


def help_desk_row(number: int) -> list[str]:
    return [
        f"T-{number:04}", f"{number % 28 + 1:02}.11.2026", f"Müller & Söhne, Köln {number}",
        "", "-5,30", "Größe; Lieferung", f'Wo ist "{number}"?\nIch warte, seit Tagen – danke',
        "", "x",
    ]  # fmt: skip


def help_desk_csv(path: Path, count: int = 300) -> Path:
    with path.open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([TITLES, *(help_desk_row(n) for n in range(1, count + 1))])
    return path


def help_desk_xlsx(path: Path, count: int = 300) -> Path:
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Export")
    sheet.append([title or None for title in TITLES])
    for number in range(1, count + 1):
        cells: list[Any] = [cell or None for cell in help_desk_row(number)]
        cells[1], cells[4] = datetime(2026, 11, number % 28 + 1, 9, 30), -5.3  # noqa: DTZ001
        sheet.append(cells)
    book.save(path)
    return path


def csv_rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter))


def xlsx_rows(path: Path) -> list[list[Any]]:
    return [list(row) for row in load_workbook(path).active.iter_rows(values_only=True)]
