"""The backlog: a file of turns, checked as a whole before the first one is accepted.

The file is read twice. The first pass finds every bad line and the file's fingerprint; the
second hands out the rows, the turns of a conversation in their order. Neither holds the
rows in memory: what stays are their ids, their places in the conversations, and each
different system text once.
"""

import hashlib
import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from turnmill.producer.batches.formats import (
    Problem,
    Report,
    describe_unknown,
    open_bytes,
    read_records,
)
from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import InvalidInput

#: Bad lines that an error message shows.
SHOWN_PROBLEMS = 20

#: The number of a row, from 1, and the row.
NumberedRow = tuple[int, BacklogRow]


@dataclass(frozen=True, slots=True)
class Backlog:
    """A file in which every row can be accepted."""

    path: Path
    #: SHA-256 of the content.
    fingerprint: bytes
    #: Rows.
    total: int
    #: Size and time of the last change, to notice an edit between the two passes.
    version: tuple[int, int]
    #: The sorted turns of those conversations whose rows are not in order.
    disordered: Mapping[str, tuple[int, ...]]

    def rows(self) -> Iterator[NumberedRow]:
        """Every row once: in the order of the file, except where a conversation demands another.

        Raises:
            InvalidInput: the file changed since it was checked.
        """
        self._check_unchanged()
        rows = ((number, row) for _, number, row in _read_rows(self.path, self._refuse))
        yield from _instructed(_in_order(rows, self.disordered) if self.disordered else rows)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        if _version(self.path) != self.version:
            raise InvalidInput(f"'{self.path.name}' changed since it was checked.")

    def _refuse(self, problem: Problem) -> None:
        raise InvalidInput(f"'{self.path.name}' changed since it was checked.")


def read_backlog(path: Path) -> Backlog:
    """Check a backlog file.

    Raises:
        InvalidInput: the file cannot be read, or lists all its bad lines.
    """
    version = _version(path)
    findings = _Findings("row" if path.suffix.lower() == ".parquet" else "line")
    total = 0
    for line, number, row in _read_rows(path, findings.report):
        findings.check(line, row)
        total = number
    if findings.problem_count:
        raise InvalidInput(findings.describe(path))
    if total == 0:
        raise InvalidInput(f"'{path.name}' is empty: it has no rows.")
    with open_bytes(path) as file:
        fingerprint = hashlib.file_digest(file, "sha256").digest()
    return Backlog(path, fingerprint, total, version, findings.disordered_turns())


@dataclass(slots=True)
class _Findings:
    """What the first pass learns about the file beyond single rows."""

    #: What the format counts in.
    unit: str
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    #: Line of each id.
    lines: dict[str, int] = field(default_factory=dict)
    #: Line of each turn of each conversation; None where the turns follow the file.
    turns: dict[str, dict[int, int] | None] = field(default_factory=dict)
    disordered: set[str] = field(default_factory=set)

    def report(self, problem: Problem) -> None:
        self.problem_count += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)

    def check(self, line: int, row: BacklogRow) -> None:
        first = self.lines.setdefault(row.id, line)
        if first != line:
            message = f"'{row.id[:80]}' is the id of {self.unit} {first} already"
            self.report(Problem(line, "id", message))
        if row.conversation is not None:
            self._check_turn(line, row.conversation, row.turn)

    def _check_turn(self, line: int, conversation: str, turn: int | None) -> None:
        turns = self.turns.setdefault(conversation, None if turn is None else {})
        if turns is None or turn is None:
            if turns is not None or turn is not None:
                message = "is given in some rows of the conversation and missing in others"
                self.report(Problem(line, "turn", message))
            return
        if turns and turn <= next(reversed(turns)):
            self.disordered.add(conversation)
        first = turns.setdefault(turn, line)
        if first != line:
            message = (
                f"{turn} of conversation '{conversation[:80]}' is in {self.unit} {first} already"
            )
            self.report(Problem(line, "turn", message))

    def disordered_turns(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(sorted(self.turns[key] or ())) for key in self.disordered}

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


def _read_rows(path: Path, report: Report) -> Iterator[tuple[int, int, BacklogRow]]:
    """Line, number and content of every row that is valid by itself."""
    for number, (line, cells) in enumerate(read_records(path, report), start=1):
        given = {column: cell for column, cell in cells.items() if cell is not None}
        try:
            row = BacklogRow.model_validate({"id": str(number), **given})
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                report(_problem(line, item["loc"], item["type"], item["msg"]))
        else:
            yield line, number, row


def _problem(line: int, loc: tuple[int | str, ...], kind: str, message: str) -> Problem:
    column = ".".join(str(part) for part in loc)[:80] or None
    if kind == "extra_forbidden" and len(loc) == 1:
        return Problem(line, column, describe_unknown(str(loc[0])))
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
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"'{path}' is not a regular file; a backlog is read twice.")
    return status.st_size, status.st_mtime_ns
