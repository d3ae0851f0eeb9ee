"""Rows as they enter code: one NamedTuple a statement.

A statement's columns are its NamedTuple's fields, in their order; columns after them are left out.
That is checked once a result and not once a row, so a typed row costs what psycopg's own do.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar
from uuid import UUID

import sqlalchemy as sa
from psycopg import Cursor
from psycopg.abc import Params
from psycopg.rows import RowMaker, no_result

RowT = TypeVar("RowT", bound=NamedTuple)


class Id(NamedTuple):
    """A row of which only the id counts."""

    id: UUID


class Count(NamedTuple):
    """The row of a statement that counts."""

    n: int


@cache
def rows_of(kind: type[RowT]) -> Callable[[Cursor[object]], RowMaker[RowT]]:
    """Make psycopg's row factory for rows of a kind.

    Raises:
        TypeError: a result has other columns.
    """

    def factory(cursor: Cursor[object]) -> RowMaker[RowT]:
        result = cursor.pgresult
        if result is None or not result.nfields:
            return no_result
        # `cursor.description` has the names too, and takes 50 µs to make for a claim.
        return _maker(kind, tuple(map(result.fname, range(result.nfields))))

    return factory


def fetch(
    cursor: Cursor[object], kind: type[RowT], statement: str, params: Params | None = None
) -> list[RowT]:
    """Run a statement in the cursor's transaction, and return its rows."""
    with cursor.connection.cursor(row_factory=rows_of(kind)) as own:
        return own.execute(statement, params).fetchall()


def typed(kind: type[RowT], result: sa.CursorResult[*tuple[object, ...]]) -> list[RowT]:
    """Return the rows of a SQLAlchemy statement."""
    columns = [key.encode() for key in result.keys()]  # noqa: SIM118 - it is no dict
    return list(map(_maker(kind, tuple(columns)), result))


@lru_cache(512)
def _maker(kind: type[RowT], columns: tuple[bytes, ...]) -> Callable[[Sequence[object]], RowT]:
    fields, names = kind._fields, tuple(column.decode() for column in columns)
    if names == fields:
        return kind._make
    count = len(fields)
    if names[:count] != fields:
        raise TypeError(f"{kind.__name__} has the fields {fields}, the result the columns {names}")
    return lambda values: kind._make(values[:count])
