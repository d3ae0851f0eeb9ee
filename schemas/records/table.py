"""Tables that are no backlog: rows with the columns that their reader needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

from turnmill.schemas.content import storable_json
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Problem, Reading
from turnmill.schemas.records.columns import Columns, is_absent
from turnmill.schemas.records.registry import read_records


@dataclass(frozen=True, slots=True)
class Table(Columns):
    """The columns of a table that is no backlog."""

    names_header: ClassVar[bool] = False

    required: tuple[str, ...] = ()

    def find_faults(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the columns that must be there and are not."""
        for name in self.required:
            if name not in names:
                yield name, f"there is no such column. There are {', '.join(names)[:500]}"


def read_table(path: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the line and the cells of each row, cleaned (`storable`), without absent cells.

    Raises:
        InvalidInput: the file cannot be read, or a row lacks a column that is required.
    """

    def refuse(problem: Problem) -> NoReturn:
        column = f", column '{problem.column}'" if problem.column else ""
        raise InvalidInput(f"{path}, line {problem.line}{column}: {problem.message}.")

    def clean(line: int, name: str, value: object) -> object:
        try:
            return storable_json(value)
        except RecursionError:
            refuse(Problem(line, name, "is not JSON that can be read"))

    for line, cells in read_records(Reading(path, refuse, Table(required=tuple(required)))):
        for name in required:
            if name not in cells:
                refuse(Problem(line, name, "is missing"))
        yield (
            line,
            {n: clean(line, n, value) for n, value in cells.items() if not is_absent(value)},
        )
