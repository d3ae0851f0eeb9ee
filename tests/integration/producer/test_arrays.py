"""Arrays that are written as one text are read as what they were made of."""

from typing import Any
from uuid import UUID

import psycopg
import pytest

from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.arrays import array, bytea

TEXTS = [
    "",
    "null",
    "NULL",
    'a "quoted" one',
    "back\\slash",
    '\\"',
    "{a,b}",
    " \n\t\r ",
    "用户 😀",
    None,
]


@pytest.mark.parametrize(("kind", "values"), [
    ("text", TEXTS),
    ("uuid", [new_id(), None, UUID(int=0)]),
    ("int", [0, -1, None, 2**31 - 1]),
    ("float", [0.1, 1e-300, 1e300, None, 3]),
    ("text", []),
])  # fmt: skip
def test_an_array_holds_its_values(database_url: str, kind: str, values: list[Any]) -> None:
    with psycopg.connect(database_url) as link:
        (found,) = link.execute(f"SELECT %s::{kind}[]", (array(values),)).fetchone() or ()
    assert found == values


def test_an_array_holds_json_and_bytes(database_url: str) -> None:
    every = bytes(range(256))
    with psycopg.connect(database_url) as link:
        found = link.execute(
            "SELECT %s::jsonb[], %s::bytea[]",
            (array(['{"a": "\\"\\\\ä"}'.encode(), None]), array(map(bytea, (every, b"", None)))),
        ).fetchone()
    assert found == ([{"a": '"\\ä'}, None], [every, b"", None])
