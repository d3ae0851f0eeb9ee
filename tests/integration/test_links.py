"""Connections to PostgreSQL that cannot be set up."""

import asyncio
import gc

import psycopg
import pytest

from turnmill.schemas import links
from turnmill.schemas.links import AsyncLink, Link


async def open_async(url: str) -> None:
    await AsyncLink.open(url, answer_timeout_s=5)


@pytest.mark.parametrize("kind", ["Link", "AsyncLink"])
def test_a_connection_that_cannot_be_set_up_is_closed(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, kind: str
) -> None:
    monkeypatch.setattr(links, "_SESSION", "SET nothing_of_that_name = 1")
    with pytest.raises(psycopg.errors.UndefinedObject):
        if kind == "Link":
            Link.open(postgres_url, answer_timeout_s=5)
        else:
            asyncio.run(open_async(postgres_url))
    gc.collect()  # one that is still open would fail the test, by its ResourceWarning
