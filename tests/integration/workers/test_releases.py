"""Processes of several releases: what each says to a database older or newer than itself."""

import threading
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from turnmill.infra.migrations import head_revision, upgrade
from turnmill.producer.doctor import Finding, Level, diagnose
from turnmill.producer.relay.process import Relay
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings, Settings, load_settings
from turnmill.schemas.store.fleet.release import NEEDED_REVISION, RELEASE, refuse_older_database
from turnmill.workers.turn.leases import Leases


@pytest.fixture(params=["no tables", "previous release"])
def old_settings(
    request: pytest.FixtureRequest, empty_database_url: str, valkey_url: str
) -> Settings:
    if request.param == "previous release":
        upgrade(empty_database_url, f"{int(NEEDED_REVISION) - 1:04}")
    return load_settings(database={"url": empty_database_url}, broker={"url": valkey_url})


def test_the_needed_revision_is_the_newest() -> None:
    assert head_revision() == NEEDED_REVISION


def test_a_worker_and_a_relay_wait_for_the_migrations_and_say_so(
    old_settings: Settings, eventually: Callable[..., None]
) -> None:
    database = Database(old_settings.database)
    leases = Leases(database, old_settings.worker, model="m", engine="echo")
    relay = Relay(old_settings)
    threads = [threading.Thread(target=run) for run in (leases.start, relay.run)]
    with capture_logs() as logs:
        for thread in threads:
            thread.start()
        eventually(lambda: str(logs).count("turnmill db upgrade") >= 2)
        assert threads[0].is_alive()
        upgrade(old_settings.database.url.get_secret_value())
        threads[0].join(timeout=20)
    assert database.run("SELECT version FROM worker_liveness")[0].version == RELEASE
    leases.close()
    relay.stop()
    threads[1].join(timeout=20)
    database.close()
    assert not any(thread.is_alive() for thread in threads)


def test_a_newer_database_is_no_obstacle(database_url: str) -> None:
    database = Database(DatabaseSettings(url=database_url))
    database.run("UPDATE alembic_version SET version_num = '9999'")
    refuse_older_database(database.fetch)
    database.close()


def test_a_worker_says_its_release_and_the_doctor_notes_others(
    database_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    monkeypatch.setenv("TURNMILL_BROKER__URL", valkey_url)
    settings = load_settings()
    database = Database(settings.database)
    leases = Leases(database, settings.worker, model="m", engine="echo")
    leases.start()
    try:
        assert database.run("SELECT version FROM worker_liveness")[0].version == RELEASE
        assert not releases()
        database.run(
            "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots, version) "
            "VALUES (%s, 'here', 1, 'm', 'echo', '{batch}', 1, '9.0.0')",
            (new_id(),),
        )
        (finding,) = releases()
        assert finding.level is Level.NOTE and "1 of 9.0.0" in finding.detail
    finally:
        leases.close()
        database.close()


def releases() -> list[Finding]:
    return [finding for finding in diagnose() if finding.what == "releases"]
