"""No column can hold a user's words unless forgetting a user empties it."""

from importlib import import_module

import sqlalchemy as sa
from sqlalchemy.types import Boolean, Date, DateTime, Float, Integer, Numeric, Uuid

from tests.printed import ROOT
from turnmill.schemas.store.memory.words import FREE, HELD
from turnmill.schemas.store.tables import metadata

#: Types that hold nobody's words.
_NUMBERS = (Boolean, Date, DateTime, Float, Integer, Numeric, Uuid)

_WHAT_TO_DO = (
    "schemas/store/memory/words.py does not know these columns. If a user's words can reach one, "
    "add it to HELD with what becomes of it when the user is forgotten, and if none can, to FREE."
)


def tables() -> list[sa.Table]:
    """All tables of the code, whichever folder of `schemas/store` they stand in."""
    for path in sorted((ROOT / "schemas/store").rglob("tables.py")):
        folders = path.relative_to(ROOT).with_suffix("").parts
        import_module(".".join(("turnmill", *folders)))
    return list(metadata.sorted_tables)


def columns() -> set[tuple[str, str]]:
    """The columns that can hold text."""
    return {
        (table.name, column.name)
        for table in tables()
        for column in table.columns
        if not isinstance(column.type, _NUMBERS)
    }


def declared() -> set[tuple[str, str]]:
    found = {(table, column) for table, names in FREE.items() for column in names}
    found |= {(table, name) for table, held in HELD.items() for each in held for name in each.then}
    whole = {table for table, held in HELD.items() if any(not each.then for each in held)}
    return found | {(table, column) for table, column in columns() if table in whole}


def test_each_column_that_can_hold_words_is_declared() -> None:
    assert columns() - declared() == set(), _WHAT_TO_DO


def test_each_column_that_is_declared_is_there() -> None:
    there = {(table.name, column.name) for table in tables() for column in table.columns}
    assert declared() - there == set()


def test_a_table_that_nobody_declared_is_found() -> None:
    table = sa.Table("diaries", metadata, sa.Column("id", sa.Uuid), sa.Column("page", sa.Text))
    try:
        assert ("diaries", "page") in columns() - declared()
    finally:
        metadata.remove(table)
