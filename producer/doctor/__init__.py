"""The doctor: is this installation able to work, and if not, what to do.

A check is a function that yields findings; the tables of checks (`CHECKS` of each module) name
them and put them into the order in which one would mend what they find.
"""

from collections.abc import Iterator
from contextlib import closing

import psycopg

from turnmill.producer.doctor import (
    broker,
    broker_amqp,
    broker_redis,
    configuration,
    database,
    files,
    installation,
    knowledge,
    work,
)
from turnmill.producer.doctor.findings import Finding, Level, broken, examine, note
from turnmill.producer.operations.unreached import broker_remedy_for, is_configured
from turnmill.schemas.errors import SettingsError, TurnmillError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.store.fleet.deployment import read_deployment

__all__ = ["Finding", "Level", "diagnose"]


def diagnose(revision: str | None = None, search: database.Search | None = None) -> list[Finding]:
    """All findings, in the order in which one would mend them.

    `revision` is the version of the tables that this code was written for; `search` searches the
    web as workers do.
    """
    findings = list(examine(installation.BEFORE_SETTINGS, None))
    try:
        settings = load_settings()
    except SettingsError as error:
        return [*findings, broken(error.message).of("settings")]
    findings += examine(installation.CHECKS, None)
    findings += examine(configuration.CHECKS, settings)
    if is_configured(settings):
        findings += _database(settings, revision, search)
        findings += _broker(settings, *_served(settings))
    else:
        found = note(
            f"none configured, and no embedded stack runs from {settings.data}",
            "'turnmill up', or set TURNMILL_DATABASE__URL and TURNMILL_BROKER__URL",
        )
        findings.append(found.of("servers"))
    return findings


def _database(
    settings: Settings, revision: str | None, search: database.Search | None
) -> Iterator[Finding]:
    try:
        opened = Database(settings.database)
    except SettingsError as error:
        yield broken(error.message).of("database")
        return
    try:
        target = database.Target(settings, opened, revision, search)
        found = list(examine(database.REACHED, target))
        yield from found
        if all(finding.level is Level.OK for finding in found):
            yield from examine(database.CHECKS, target)
            yield from examine(files.CHECKS, target)
            if target.has_tables:
                yield from examine(work.CHECKS, target)
                yield from examine(knowledge.CHECKS, target)
    finally:
        opened.close()


def _served(settings: Settings) -> tuple[str | None, frozenset[str]]:
    """What the queues are named after, and the lanes that workers say they consume.

    None without a database, or with one not migrated yet.
    """
    try:
        with closing(Database(settings.database)) as opened:
            return read_deployment(opened).id, work.consumed_lanes(opened, settings)
    except (TurnmillError, psycopg.Error):
        return None, frozenset()


def _broker(
    settings: Settings, deployment: str | None, consumed: frozenset[str]
) -> Iterator[Finding]:
    try:
        with broker.connected(settings, deployment, consumed) as target:
            kind = broker_amqp if settings.broker.is_amqp else broker_redis
            yield from examine(broker.CHECKS, target)
            found = list(examine(kind.CHECKS, target))
            yield from found
            # Workers are asked through the broker.
            if not any(finding.what in (broker.PUBLISHING, broker.WRITING) for finding in found):
                yield from examine(broker.WORKER_CHECKS, target)
    except broker.Unreachable as error:
        yield broken(str(error), broker_remedy_for(str(error))).of("broker")
