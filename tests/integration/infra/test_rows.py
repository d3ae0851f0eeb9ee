"""Rows enter code as the NamedTuples of their statements."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import fetch, typed
from turnmill.schemas.settings import DatabaseSettings


class Named(NamedTuple):
    id: int
    name: str | None


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(DatabaseSettings.model_validate({"url": database_url}))
    yield database
    database.close()


def test_a_row_is_of_its_statements_kind_whichever_way_it_is_read(database: Database) -> None:
    wanted = [Named(1, "a"), Named(2, None)]
    query = "SELECT * FROM (VALUES (1, 'a'), (2, NULL)) AS rows (id, name)"
    assert database.fetch(Named, query) == wanted
    with database.cursor() as cursor:
        assert fetch(cursor, Named, query) == wanted
        row = cursor.execute("SELECT 1 AS other").fetchone()
        assert row.other == 1, "the cursor's own rows are as before"
        assert fetch(cursor, Named, query) == wanted
    with database.cursor(pipeline=True) as cursor:
        assert fetch(cursor, Named, query) == wanted
    with database.begin() as connection:
        assert typed(Named, connection.execute(sa.text(query))) == wanted
    assert {type(row) for row in database.fetch(Named, query)} == {Named}


def test_columns_after_a_rows_fields_are_left_out(database: Database) -> None:
    assert database.fetch(Named, "SELECT 1 AS id, 'a' AS name, 2 AS more") == [Named(1, "a")]


@pytest.mark.parametrize("columns", ["'a' AS name, 1 AS id", "1 AS id", "1 AS id, 'a' AS label"])
def test_a_statement_with_other_columns_is_refused_with_both_lists(
    database: Database, columns: str
) -> None:
    with pytest.raises(TypeError, match=r"Named has the fields .*'id', 'name'.* the columns"):
        database.fetch(Named, f"SELECT {columns}")
    assert database.run("SELECT 1 AS one")[0].one == 1, "the connection is as usable as before"
