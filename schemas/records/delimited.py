"""CSV and its kin: tables as text, whatever stands between the cells."""

import csv
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Protocol

from turnmill.schemas.records import base
from turnmill.schemas.records.base import Problem, Reading, Record
from turnmill.schemas.records.encodings import find_encoding
from turnmill.schemas.records.text import read_lines

#: What may stand between cells, the likeliest first, and its name for people.
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

#: Lines that are looked at to find the delimiter.
_HEAD_LINES = 200

#: Excel's own first line, which names the delimiter: `sep=;`.
_SEP = "sep="


def read(reading: Reading) -> Iterator[Record]:
    # The limit belongs to the process; a cell can be as long as a line.
    csv.field_size_limit(base.MAX_LINE_BYTES)
    layout = reading.layout
    encoding = layout.encoding or find_encoding(reading.path)
    reading.layout = replace(layout, encoding=encoding)
    delimiter = layout.delimiter or _find_delimiter(reading)
    reading.layout = replace(reading.layout, delimiter=delimiter)
    lines = read_lines(reading.path, encoding, reading.report)
    yield from _records(lines, reading)


def _records(lines: Iterator[str], reading: Reading) -> Iterator[Record]:
    rows = csv.reader(lines, delimiter=reading.layout.delimiter or ",", strict=True)
    names: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reading.report(Problem(line, None, f"is not CSV: {error}; is a quote left open?"))
            continue
        if not any(cells) or (line == 1 and cells[0].lower().startswith(_SEP)):
            continue
        if line < (reading.layout.header or 0):
            continue
        if names is None:
            names = reading.name_columns(cells, line, _numbered(rows))
            if names is None:
                return
        elif len(cells) < len(names) or any(cells[len(names) :]):
            message = f"has {len(cells)} cells, the header has {len(names)}"
            hint = "; a line break inside a cell needs quotes around the cell"
            reading.report(Problem(line, None, message + hint))
        else:
            yield line, dict(zip(names, cells, strict=False))


class _Rows(Protocol):
    """What `csv.reader` returns."""

    @property
    def line_num(self) -> int: ...

    def __next__(self) -> list[str]: ...


def _numbered(rows: _Rows) -> Iterator[tuple[int, list[str]]]:
    """The next rows that can be read, with their lines."""
    with suppress(csv.Error):
        while (line := rows.line_num + 1) and (cells := next(rows, None)) is not None:
            yield line, cells


def _find_delimiter(reading: Reading) -> str:
    lines = read_lines(reading.path, reading.layout.encoding or "", lambda problem: None)
    head = list(islice(lines, _HEAD_LINES + (reading.layout.header or 0)))
    if head and head[0].lower().startswith(_SEP) and head[0][len(_SEP) :].strip("\r\n"):
        return head[0][len(_SEP)]
    head = head[max(0, (reading.layout.header or 1) - 1) :]
    first = "\t" if _is_tsv(reading) else ","
    return max((first, *DELIMITERS), key=lambda delimiter: _fit(head, delimiter))


def _fit(head: list[str], delimiter: str) -> tuple[bool, float, int]:
    """How well a delimiter divides the first lines: into several cells, as many in each."""
    rows: list[list[str]] = []
    try:
        rows.extend(row for row in csv.reader(head, delimiter=delimiter) if any(row))
    except csv.Error:
        return False, 0.0, 0
    if not rows or len(rows[0]) < 2:
        return False, 0.0, 0
    width = len(rows[0])
    # The last one may be cut off.
    complete = rows[:-1] if len(head) == _HEAD_LINES and len(rows) > 1 else rows
    return True, sum(len(row) == width for row in complete) / len(complete), width


def _is_tsv(reading: Reading) -> bool:
    return ".tsv" in [suffix.lower() for suffix in reading.path.suffixes[-2:]]
