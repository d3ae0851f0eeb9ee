"""The pruner: keeps the database at the size that the retention settings ask for.

Every worker process runs one; an advisory lock lets one round at a time.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

import psycopg
import structlog

from turnmill.schemas.errors import DatabaseUnavailable, SettingsError
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.postgres.database import OUTAGES, Database
from turnmill.schemas.postgres.links import Link
from turnmill.schemas.settings import RetentionSettings
from turnmill.schemas.store.tables import PRUNER_LOCK_KEY, PRUNER_NAME
from turnmill.workers.consumer.metrics import PRUNER_ROUNDS
from turnmill.workers.upkeep.files import FileSweep
from turnmill.workers.upkeep.months import Pause
from turnmill.workers.upkeep.retention import Round

log = structlog.get_logger()

#: A worker that dies young over and over need not prune each time.
FIRST_AFTER_S = 10.0

#: To look through a batch of millions takes longer than an answer usually may.
_ANSWER_TIMEOUT_S = 120.0


class _Session(NamedTuple):
    name: str
    patience: str
    is_mine: bool


#: Nothing here should ever wait for a lock. If it does, it gives way.
_SESSION = f"""
SELECT set_config('application_name', '{PRUNER_NAME}', false) AS name,
    set_config('lock_timeout', '200ms', false) AS patience,
    pg_try_advisory_lock({PRUNER_LOCK_KEY}) AS is_mine
"""


def prune(
    database: Database,
    retention: RetentionSettings,
    pause: Pause,
    on_progress: Callable[[Counter[str]], None] = lambda counts: None,
    *,
    is_dry: bool = False,
    on_link: Callable[[Link], None] = lambda link: None,
    storage: Storage | None = None,
) -> Counter[str] | None:
    """Delete one round of expired rows, and of files where their storage is given.

    Return the number deleted per table, or None if another pruner holds the lock.

    `pause` sleeps between the steps, and ends the round by returning true. `on_link` is given
    the connection.

    Raises:
        DatabaseUnavailable: rows deleted until then stay deleted; the next round continues.
        SettingsError: the database's user may not drop and make partitions.
    """
    with closing(database.connect()) as link:
        link.answer_timeout_s = _ANSWER_TIMEOUT_S
        on_link(link)
        try:
            with _locked(link) as is_mine:
                if not is_mine:
                    return None
                current = Round(link, retention, pause, on_progress, is_dry=is_dry)
                with _kept() as failed:
                    current.run()
                # Nothing begins that a stopping worker, or a lost connection, would end half-way.
                if storage is not None and not (link.closed or pause(0.0)):
                    FileSweep(link, storage, pause, current.counts, is_dry=is_dry).run()
                for error in failed:
                    raise error
        except psycopg.errors.InsufficientPrivilege as error:
            raise SettingsError(
                f"The pruner lacks a right ({str(error).splitlines()[0]}). Let the tables belong "
                "to the user of TURNMILL_DATABASE__URL, or run 'turnmill db prune' as their owner."
            ) from error
        except OUTAGES as error:
            raise DatabaseUnavailable(f"The round ended early: {error}") from error
    return +current.counts


@contextmanager
def _locked(link: Link) -> Iterator[bool]:
    """Whether the lock is this round's. Its connection's end alone frees it only a while later."""
    (session,) = link.fetch(_Session, _SESSION)
    try:
        yield session.is_mine
    finally:
        if session.is_mine and not link.closed:
            with suppress(psycopg.Error):
                link.execute("SELECT pg_advisory_unlock_all()")


@contextmanager
def _kept() -> Iterator[list[psycopg.Error]]:
    """Keep an error of tables until the files were swept."""
    failed: list[psycopg.Error] = []
    try:
        yield failed
    except psycopg.Error as error:
        failed.append(error)


class Pruner:
    """The thread that runs a round now and then."""

    def __init__(
        self, database: Database, retention: RetentionSettings, storage: Storage | None = None
    ) -> None:
        self._database = database
        self._storage = storage
        self._retention = retention
        self._stopping = threading.Event()
        self._link: Link | None = None
        self._thread = threading.Thread(target=self._run, name="pruner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._link is not None:
            with suppress(psycopg.Error):
                self._link.cancel_safe(timeout=0.5)
        if self._thread.is_alive():
            # A stopping worker has little time, and what is half done here is rolled back.
            self._thread.join(timeout=1)

    def _run(self) -> None:
        wait_s = min(FIRST_AFTER_S, self._retention.every_s)
        while not self._stopping.wait(wait_s):
            try:
                self._round()
            except (DatabaseUnavailable, SettingsError) as error:
                PRUNER_ROUNDS.labels("stalled").inc()
                if not self._stopping.is_set():
                    log.warning("pruner.stalled", error=error.message)
            except Exception:
                PRUNER_ROUNDS.labels("failed").inc()
                log.exception("pruner.failed")
            # Not all the workers that were started together at once.
            wait_s = self._retention.every_s * random.uniform(0.9, 1.1)

    def _round(self) -> None:
        counts = prune(
            self._database,
            self._retention,
            self._stopping.wait,
            on_link=self._keep_link,
            storage=self._storage,
        )
        if counts is not None:
            PRUNER_ROUNDS.labels("done").inc()
        if counts:
            log.info("turns.pruned", **counts)

    def _keep_link(self, link: Link) -> None:
        self._link = link
