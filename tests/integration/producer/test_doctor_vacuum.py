"""The doctor names what keeps dead rows from being removed, with remedies that work as printed."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.migrations import upgrade
from turnmill.producer.doctor import vacuum
from turnmill.producer.doctor.findings import Finding, Level
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings, SecretUrl

Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def server(make_server_folder: Callable[[], Path]) -> Iterator[EmbeddedPostgres]:
    """One that allows prepared transactions, and vacuums nothing by itself."""
    settings = {"max_prepared_transactions": "5", "autovacuum_naptime": "1h"}
    with EmbeddedPostgres(make_server_folder(), durable=False, settings=settings) as server:
        upgrade(server.url)
        yield server


@pytest.fixture
def link(server: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url, autocommit=True) as link:
        yield link


@pytest.fixture
def database(server: EmbeddedPostgres) -> Iterator[Database]:
    with closing(Database(DatabaseSettings(url=SecretUrl(server.url)))) as database:
        yield database


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait five minutes."""
    monkeypatch.setattr(vacuum, "HELD_S", 0.0)


def findings(database: Database) -> list[Finding]:
    return list(vacuum.check_horizon(database))


def test_a_database_in_order_has_no_findings(database: Database) -> None:
    assert findings(database) == []
    assert list(vacuum.check_dead_rows(database)) == []


@pytest.mark.parametrize(
    "statement",
    ["SELECT pg_current_xact_id()", "DECLARE c CURSOR FOR SELECT 1"],
    ids=["wrote", "reads"],
)
def test_a_session_that_holds_the_horizon_is_named_and_the_remedy_ends_it(
    server: EmbeddedPostgres,
    database: Database,
    link: psycopg.Connection,
    soon: None,
    eventually: Eventually,
    statement: str,
) -> None:
    """The rows stay dead as long as it is there, which is what the finding says."""
    with closing(psycopg.connect(server.url, application_name="nightly report")) as holder:
        holder.execute(statement)
        pid = holder.info.backend_pid
        link.execute("INSERT INTO chunks SELECT gen_random_uuid(), 1, 'x', 1 "
                     "FROM generate_series(1, 100)")  # fmt: skip
        link.execute("DELETE FROM chunks")
        (finding,) = findings(database)
        assert finding.level is Level.WARNING
        assert f"process {pid} (nightly report, user " in finding.detail
        assert re.search(r"open for \d+ s \(idle in transaction\)", finding.detail)
        assert removable(link) == 0
        assert finding.fix == f"SELECT pg_terminate_backend({pid});"
        link.execute(finding.fix)
        eventually(lambda: findings(database) == [])
        assert removable(link) == 100


def removable(link: psycopg.Connection) -> int:
    """VACUUM `chunks`; how many dead rows it has removed."""
    notices: list[str] = []
    link.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    link.execute("VACUUM (VERBOSE) chunks")
    found = re.search(r"tuples: (\d+) removed", "\n".join(notices))
    assert found, notices
    return int(found[1])


def test_a_short_transaction_is_no_finding(server: EmbeddedPostgres, database: Database) -> None:
    with psycopg.connect(server.url) as holder:
        holder.execute("SELECT pg_current_xact_id()")
        assert findings(database) == []


def test_an_abandoned_replication_slot_is_named_with_the_wal_that_it_keeps(
    database: Database, link: psycopg.Connection
) -> None:
    link.execute("SELECT pg_create_physical_replication_slot('old_standby', true)")
    (finding,) = findings(database)
    assert "replication slot 'old_standby'" in finding.detail
    assert re.search(r"\d+ (bytes|kB|MB) of WAL", finding.detail)
    link.execute(finding.fix.partition("come back: ")[2])
    assert findings(database) == []


def test_a_prepared_transaction_that_nobody_ends_is_named(
    server: EmbeddedPostgres, database: Database, link: psycopg.Connection, soon: None
) -> None:
    with psycopg.connect(server.url, autocommit=True) as holder:
        for statement in ("BEGIN", "SELECT pg_current_xact_id()",
                          "PREPARE TRANSACTION 'it''s forgotten'"):  # fmt: skip
            holder.execute(statement)
    (finding,) = findings(database)
    assert "'it's forgotten' of " in finding.detail
    link.execute(finding.fix.removeprefix("COMMIT PREPARED or "))
    assert findings(database) == []


def test_a_user_who_may_not_look_at_others_is_told_what_to_grant(
    server: EmbeddedPostgres, database: Database, link: psycopg.Connection
) -> None:
    with closing(Database(DatabaseSettings(url=SecretUrl(server.app_url)))) as app:
        (finding,) = findings(app)  # `link` is another user's
        assert finding.level is Level.NOTE
        link.execute(finding.fix)
        assert findings(app) == []


def test_a_table_full_of_dead_rows_is_named_and_the_remedy_cleans_it(
    database: Database,
    link: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    monkeypatch.setattr(vacuum, "DEAD_ROWS", 500)
    link.execute("INSERT INTO chunks SELECT gen_random_uuid(), 1, 'x', 1 "
                 "FROM generate_series(1, 1000)")  # fmt: skip
    link.execute("DELETE FROM chunks")
    link.execute("SELECT pg_stat_force_next_flush()")

    def found() -> list[Finding]:
        return list(vacuum.check_dead_rows(database))

    eventually(lambda: found() != [])
    (finding,) = found()
    assert re.search(r"chunks has 1,\d{3} dead rows beside \d", finding.detail)
    link.execute(finding.fix.partition("then: ")[2])
    eventually(lambda: found() == [])


def test_an_autovacuum_that_is_off_is_broken(
    database: Database, link: psycopg.Connection, eventually: Eventually
) -> None:
    def broken() -> list[str]:
        return [f.fix for f in vacuum.check_dead_rows(database) if f.level is Level.BROKEN]

    link.execute("ALTER SYSTEM SET autovacuum = off")
    link.execute("SELECT pg_reload_conf()")
    eventually(lambda: broken() != [])
    for statement in broken()[0].split(";")[:2]:
        link.execute(statement)
    eventually(lambda: broken() == [])
