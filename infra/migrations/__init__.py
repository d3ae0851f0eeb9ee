"""The database schema, version by version (Alembic). Ships in the wheel.

Migrations are expand/contract: `NNNN_pre_…` may run before the new code is deployed,
`NNNN_post_…` only after the last old process is gone.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

import psycopg
import sqlalchemy
import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings, SecretUrl

log = structlog.get_logger()

#: Two starting processes must not migrate at once.
_LOCK_KEY = 0x7A11_0002
_TAKE_LOCK = f"SELECT 1 WHERE pg_try_advisory_lock({_LOCK_KEY})"

#: What PostgreSQL says when `lock_timeout` or `statement_timeout` of a migration is over.
_GIVEN_UP = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
_WHEN_GIVEN_UP = (
    "The migration needs a table for a moment that something else holds: a long transaction, a "
    "dump, another change of the schema. The migrations before it are done. Let it end, and run "
    "this again."
)
_WHEN_LOST = (
    "The connection to PostgreSQL was lost. The migrations before it are done. Run this again."
)

#: Processes at work lock the same tables in an order of their own. A migration that loses to them
#: is tried so many times.
_TRIALS = 5

#: How often a process looks whether another one has migrated, seconds.
_POLL_S = 0.2


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at a libpq URL to a revision; waits for a migration already running.

    Each migration is a transaction, or can be repeated where it needs several. A database of a
    later release stays as it is: this release works with it.

    Raises:
        DatabaseUnavailable: it cannot be reached, or a table stayed locked too long. The migrations
            that were done stay done; call it again.
    """
    for trial in range(1, _TRIALS + 1):
        try:
            _upgrade(url, revision)
            return
        except DatabaseUnavailable as error:
            reason = getattr(error.__cause__, "orig", None)
            if isinstance(reason, _GIVEN_UP):
                raise DatabaseUnavailable(_WHEN_GIVEN_UP) from error
            if not isinstance(reason, psycopg.errors.DeadlockDetected) or trial == _TRIALS:
                raise
            log.info("database.deadlock", trial=trial)
        except sqlalchemy.exc.PendingRollbackError as error:
            # Alembic commits its block after an index, on whatever is left of the connection.
            raise DatabaseUnavailable(_WHEN_LOST) from error


def _upgrade(url: str, revision: str) -> None:
    # A migration may take its time: no limit on an answer.
    settings = DatabaseSettings(url=SecretUrl(url), pool_size=2, answer_timeout_s=inf)
    with (
        closing(Database(settings)) as database,
        _alone(database),
        database.steps() as connection,
    ):
        found, known = current_revision(connection) or "", head_revision() or ""
        if found > known:
            log.warning("database.newer", revision=found, known=known)
            return
        connection.rollback()
        configuration = _configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, revision)


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Let no other process migrate meanwhile. Raises `DatabaseUnavailable`.

    A statement that waits for the lock would hold a snapshot, and an index that is being built
    (`indexes.py`) waits for all older snapshots: so each attempt is a short one.
    """
    with closing(database.connect()) as link:
        while link.execute(_TAKE_LOCK).fetchone() is None:
            time.sleep(_POLL_S)
        yield


def current_revision(connection: sqlalchemy.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str | None:
    return ScriptDirectory.from_config(_configuration()).get_current_head()


def _configuration() -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    configuration.set_main_option("path_separator", "os")
    return configuration
