"""Connections to PostgreSQL: set up, and listened on."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from turnmill.schemas.postgres import links
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.links import AsyncLink, Link, Stop
from turnmill.schemas.settings import DatabaseSettings


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


def test_the_server_ends_a_statement_that_nobody_waits_for(
    postgres_url: str, eventually: Callable[..., None]
) -> None:
    counting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(61)%'"
    with psycopg.connect(postgres_url, autocommit=True) as other:
        with (
            Link.open(postgres_url, answer_timeout_s=0.5) as link,
            pytest.raises(psycopg.OperationalError, match="no answer"),
        ):
            link.execute("SELECT pg_sleep(61)")
        # Otherwise it keeps its locks for as long as it takes.
        eventually(lambda: other.execute(counting).fetchone() == (0,), 20, 0.2)


def test_what_was_notified_is_heard_at_once_and_once(postgres_url: str) -> None:
    stop = Stop()
    with (
        Link.open(postgres_url, answer_timeout_s=5, autocommit=True) as link,
        psycopg.connect(postgres_url, autocommit=True) as other,
    ):
        link.execute("LISTEN news")
        other.execute("NOTIFY news, 'first'")
        assert link.wait_for_notifications(60, stop) == ["first"]
        threading.Timer(0.1, lambda: other.execute("NOTIFY news, 'second'")).start()
        assert link.wait_for_notifications(60, stop) == ["second"]
        other.execute("NOTIFY news, 'third'")
        link.execute("SELECT 1")  # whose answer it comes with
        assert link.wait_for_notifications(60, stop) == ["third"]
        assert link.wait_for_notifications(0.01, stop) == []


def test_who_is_told_to_stop_hears_nothing_more(postgres_url: str) -> None:
    stop = Stop()
    with Link.open(postgres_url, answer_timeout_s=5, autocommit=True) as link:
        threading.Timer(0.1, stop.set).start()
        began_at = time.monotonic()
        assert link.wait_for_notifications(60, stop) == []
        stop.set()
        assert link.wait_for_notifications(60, stop) == []
    assert stop.is_set()
    assert time.monotonic() - began_at < 30


def test_a_connection_that_breaks_ends_the_wait(postgres_url: str) -> None:
    with (
        Link.open(postgres_url, answer_timeout_s=5, autocommit=True) as link,
        psycopg.connect(postgres_url, autocommit=True) as other,
    ):
        end = ("SELECT pg_terminate_backend(%s)", (link.info.backend_pid,))
        threading.Timer(0.1, lambda: other.execute(*end)).start()
        with pytest.raises(psycopg.OperationalError):
            link.wait_for_notifications(60, Stop())


def test_an_end_within_a_statement_costs_its_connection_and_says_nothing(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(DatabaseSettings.model_validate({"url": database_url}))
    with pytest.raises(KeyboardInterrupt), database.cursor() as cursor:
        cursor.connection.pgconn.send_query(b"SELECT pg_sleep(3)")
        raise KeyboardInterrupt
    assert database.run("SELECT 2 AS n") == [(2,)]
    database.close()
    assert caplog.text == ""
