"""The backlog: a file of turns, checked as a whole before the first one is accepted.

The file is read twice. The first pass finds every bad line and the file's fingerprint; the
second hands out the rows, the turns of a conversation in their order. Neither holds the
rows in memory, nor their ids: what stays are the places of rows in conversations that are
not in order, and each different system text once.
"""

import hashlib
import heapq
import json
import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, starmap
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from turnmill.producer.batches.places import Places
from turnmill.schemas.batches import BacklogRow, Key
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records import json_lines
from turnmill.schemas.records.base import Layout, Problem, Reading
from turnmill.schemas.records.columns import Columns, describe_unknown
from turnmill.schemas.records.delimited import DELIMITERS
from turnmill.schemas.records.encodings import UTF_8
from turnmill.schemas.records.parquet import import_pyarrow
from turnmill.schemas.records.registry import READERS, check_format, format_of, read_records
from turnmill.schemas.records.text import open_bytes

if TYPE_CHECKING:
    import pyarrow

#: Bad lines that an error message shows.
SHOWN_PROBLEMS = 20

_KEY: TypeAdapter[str] = TypeAdapter(Key)

#: The number of a row, from 1, and the row.
NumberedRow = tuple[int, BacklogRow]


@dataclass(frozen=True, slots=True)
class Backlog:
    """A file in which every row can be accepted."""

    path: Path
    #: SHA-256 of the content, and of how it is read where that is not the usual way.
    fingerprint: bytes
    #: Rows.
    total: int
    #: Size and time of the last change, to notice an edit between the two passes.
    version: tuple[int, int]
    #: The sorted turns of those conversations whose rows are not in order.
    disordered: Mapping[str, tuple[int, ...]]
    #: How the file is written.
    layout: Layout
    #: What is read as what.
    columns: Columns
    #: The file's columns in their order: a name for each, and the title that the file has.
    titles: Mapping[str, str]

    def rows(self) -> Iterator[NumberedRow]:
        """Every row once: in the order of the file, except where a conversation demands another.

        Raises:
            InvalidInput: the file changed since it was checked.
        """
        self._check_unchanged()
        rows = ((number, row) for _, number, row in _read_rows(self._reading()))
        yield from _instructed(_in_order(rows, self.disordered) if self.disordered else rows)
        self._check_unchanged()

    def records(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Every row's number and cells as the file has them, in the order of the file.

        Raises:
            InvalidInput: the file changed since it was checked.
        """
        self._check_unchanged()
        for number, (_, cells) in enumerate(read_records(self._reading()), start=1):
            yield number, cells
        self._check_unchanged()

    def id_of(self, number: int, cells: Mapping[str, object]) -> str:
        """The id of a row: its own, or its number."""
        given = self.columns.pick(cells, is_sheet=format_of(self.path) == ".xlsx")
        return str(_KEY.validate_python(given.get("id", str(number))))

    def describe(self) -> str:
        """One line on what was taken: `semicolons, cp1252, 300 rows, 9 columns; prompt = Text`."""
        layout = self.layout
        parts = [
            DELIMITERS.get(layout.delimiter, repr(layout.delimiter)) if layout.delimiter else "",
            "UTF-8" if layout.encoding == UTF_8 else layout.encoding or "",
            f"sheet '{layout.sheet}'" if layout.sheet else "",
            f"{self.total:,} row{'' if self.total == 1 else 's'}",
            f"{len(self.titles):,} column{'' if len(self.titles) == 1 else 's'}",
        ]
        return f"{', '.join(filter(None, parts))}; {self.columns.describe(list(self.titles))}"

    @property
    def own_fields(self) -> frozenset[str]:
        """What the file's own columns say already: the row's id, what the user asked."""
        sources = self.columns.sources
        fields = {"id": "id", "question": "prompt"}
        return frozenset(f for f, name in fields.items() if sources.get(name) in self.titles)

    def arrow_schema(self) -> "pyarrow.Schema | None":
        """The types of the columns, where the file is Parquet."""
        if format_of(self.path) != ".parquet":
            return None
        return import_pyarrow()[1].read_schema(self.path)

    def _reading(self) -> Reading:
        return Reading(self.path, self._refuse, self.columns, self.layout)

    def _check_unchanged(self) -> None:
        if _version(self.path) != self.version:
            raise InvalidInput(f"'{self.path.name}' changed since it was checked.")

    def _refuse(self, problem: Problem) -> None:
        raise InvalidInput(f"'{self.path.name}' changed since it was checked.")


def check_backlog_path(path: Path) -> None:
    """Find out before other names are looked at whether a file can be a backlog.

    Raises:
        InvalidInput: there is no such file, or its name is of no format that is read.
    """
    _version(path)
    check_format(path)


def read_backlog(
    path: Path, layout: Layout | None = None, columns: Columns | None = None
) -> Backlog:
    """Check a backlog file. What its layout leaves open is found out.

    Raises:
        InvalidInput: the file cannot be read, or lists all its bad lines.
    """
    version = _version(path)
    findings = _Findings("row" if format_of(path) == ".parquet" else "line")
    reading = Reading(path, findings.report, columns or Columns(), layout or Layout())
    total = 0
    with Places() as places:
        for line, number, row in _read_rows(reading):
            places.add(line, row.id, row.conversation, row.turn)
            total = number
        findings.report_late(starmap(Problem, places.misplaced(findings.unit)))
        disordered = {} if findings.problem_count else places.disordered()
    if READERS[format_of(path)] is json_lines.read and reading.titles:
        # Without a header, only the end of a file tells that a column is missing.
        for column, message in reading.columns.find_missing(list(reading.titles)):
            findings.report_first(Problem(1, column, message))
    if findings.problem_count:
        raise InvalidInput(findings.describe(path))
    if total == 0:
        raise InvalidInput(f"'{path.name}' is empty: it has no rows.")
    return Backlog(
        path, _fingerprint(reading), total, version, disordered,
        reading.layout, reading.columns, reading.titles,
    )  # fmt: skip


def _fingerprint(reading: Reading) -> bytes:
    """The same for the same rows: a file's content, its layout, and what is read as what."""
    with open_bytes(reading.path) as file:
        content = hashlib.file_digest(file, "sha256")
    layout, columns = reading.layout, reading.columns
    usual = {".csv": ",", ".tsv": "\t"}.get(format_of(reading.path))
    if layout in (Layout(usual, UTF_8), Layout()) and columns == Columns():
        return content.digest()
    written = {name: value for name, value in asdict(layout).items() if name != "header" or value}
    how = json.dumps([written, asdict(columns)])
    return hashlib.sha256(f"{content.hexdigest()} {how}".encode()).digest()


@dataclass(slots=True)
class _Findings:
    """What the first pass learns about the file beyond single rows."""

    #: What the format counts in.
    unit: str
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0

    def report(self, problem: Problem) -> None:
        self.problem_count += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)

    def report_first(self, problem: Problem) -> None:
        """Report what explains the other problems."""
        self.problem_count += 1
        self.problems = [problem, *self.problems][:SHOWN_PROBLEMS]

    def report_late(self, problems: Iterable[Problem]) -> None:
        """Report what was found after the last line, among what was found in each."""

        def counted() -> Iterator[Problem]:
            for problem in problems:
                self.problem_count += 1
                yield problem

        found = chain(self.problems, counted())
        self.problems = heapq.nsmallest(SHOWN_PROBLEMS, found, key=lambda each: each.line)

    def describe(self, path: Path) -> str:
        lines = [
            f"  {self.unit} {p.line}{f', {p.column}' if p.column else ''}: {p.message}"
            for p in self.problems
        ]
        if more := self.problem_count - len(self.problems):
            lines.append(f"  and {more:,} more")
        plural = "" if self.problem_count == 1 else "s"
        head = f"'{path.name}' has {self.problem_count:,} problem{plural}; nothing was accepted."
        return "\n".join([head, *lines])


def _read_rows(reading: Reading) -> Iterator[tuple[int, int, BacklogRow]]:
    """Line, number and content of every row that is valid by itself."""
    is_sheet = format_of(reading.path) == ".xlsx"
    for number, (line, cells) in enumerate(read_records(reading), start=1):
        given = reading.columns.pick(cells, is_sheet=is_sheet)
        try:
            row = BacklogRow.model_validate({"id": str(number), **given})
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                reading.report(_problem(line, item["loc"], item["type"], item["msg"], reading))
        else:
            yield line, number, row


def _problem(
    line: int, loc: tuple[int | str, ...], kind: str, message: str, reading: Reading
) -> Problem:
    # The file's own name of the column.
    first = [reading.columns.sources.get(str(part), str(part)) for part in loc[:1]]
    column = ".".join([*first, *map(str, loc[1:])])[:80] or None
    if kind == "extra_forbidden" and len(loc) == 1:
        return Problem(line, column, describe_unknown(str(loc[0])))
    if kind == "one_input" and (reading.columns.prompt or reading.columns.template):
        empty = "is empty" if reading.columns.prompt else "the template's columns are empty"
        column = reading.columns.prompt[:80] if reading.columns.prompt else None
        return Problem(line, column, f"{empty}: every row needs what the user says")
    return Problem(line, column, message.removeprefix("Input ").removeprefix("String "))


def _in_order(
    rows: Iterable[NumberedRow], disordered: Mapping[str, tuple[int, ...]]
) -> Iterator[NumberedRow]:
    """Rows that come before their turn wait in a temporary file, not in memory."""
    due = {conversation: deque(turns) for conversation, turns in disordered.items()}
    waiting: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryFile() as spool:
        for number, row in rows:
            turns = due.get(row.conversation or "")
            if turns is None or row.conversation is None or row.turn is None:
                yield number, row
            elif turns[0] != row.turn:
                waiting[row.conversation, row.turn] = spool.seek(0, os.SEEK_END)
                spool.write(f"{number} {row.model_dump_json()}\n".encode())
            else:
                yield number, row
                turns.popleft()
                while turns and (row.conversation, turns[0]) in waiting:
                    spool.seek(waiting.pop((row.conversation, turns.popleft())))
                    yield _unspool(spool.readline())


def _instructed(rows: Iterable[NumberedRow]) -> Iterator[NumberedRow]:
    """Give every row the instructions of its conversation: a turn has only what it brings.

    Equal texts are held in memory once.
    """
    texts: dict[str, str] = {}
    given: dict[str, str] = {}
    for number, row in rows:
        if row.conversation is not None and row.system:
            given[row.conversation] = texts.setdefault(row.system, row.system)
        system = given.get(row.conversation or "", row.system)
        yield number, row if system == row.system else row.model_copy(update={"system": system})


def _unspool(line: bytes) -> NumberedRow:
    number, _, content = line.partition(b" ")
    return int(number), BacklogRow.model_validate_json(content)


def _version(path: Path) -> tuple[int, int]:
    """Raises `InvalidInput` where there is no file that can be read twice."""
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read: {error.strerror or error}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise InvalidInput(f"'{path}' is a folder. Name a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"'{path}' is not a regular file; a backlog is read twice.")
    return status.st_size, status.st_mtime_ns
