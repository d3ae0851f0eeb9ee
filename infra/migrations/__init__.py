"""The database schema, version by version (Alembic). Ships in the wheel.

Migrations are expand/contract: `NNNN_pre_…` may run before the new code is deployed,
`NNNN_post_…` only after the last old process is gone.
"""

from contextlib import closing
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

#: What PostgreSQL says when `lock_timeout` or `statement_timeout` of a migration is over.
_GIVEN_UP = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
_WHEN_GIVEN_UP = (
    "A migration needs a lock that running turns and long queries did not leave it for long "
    "enough. What was migrated before it stays, and processes of both releases work with it. Run "
    "it again when less runs. If that does not help, stop the workers first: without them it may "
    "take the time that it needs."
)

#: Processes at work lock the same tables in an order of their own. A migration that loses to them
#: is tried so many times.
_TRIALS = 5


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at a libpq URL to a revision; waits for a migration already running.

    Each migration is a transaction of its own, so that no lock is held for longer than its
    migration, and a failed or killed upgrade goes on where it stopped. A database of a later
    release stays as it is: this release works with it.

    Raises:
        DatabaseUnavailable: it cannot be reached, a table stayed locked too long, or a migration
            would have kept one locked for longer than running turns can wait. The migrations
            before that one stay.
    """
    # A migration may take its time: no limit on an answer, whatever the server's default is.
    settings = DatabaseSettings(url=SecretUrl(url), pool_size=1, answer_timeout_s=inf)
    with closing(Database(settings)) as database:
        while _migrate(database, revision):
            pass


def _migrate(database: Database, revision: str) -> bool:
    """Run the next migration, unless it is done; try again where it was part of a deadlock."""
    trial = 0
    while True:
        trial += 1
        try:
            return _try_to_migrate(database, revision)
        except DatabaseUnavailable as error:
            reason = getattr(error.__cause__, "orig", None)
            if isinstance(reason, _GIVEN_UP):
                raise DatabaseUnavailable(_WHEN_GIVEN_UP) from error
            if not isinstance(reason, psycopg.errors.DeadlockDetected) or trial == _TRIALS:
                raise
            log.info("database.deadlock", trial=trial)


def _try_to_migrate(database: Database, revision: str) -> bool:
    with database.begin() as connection:
        connection.execute(sqlalchemy.text("SET LOCAL statement_timeout = 0"))
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
        found, known = current_revision(connection) or "", head_revision() or ""
        if found > known:
            log.warning("database.newer", revision=found, known=known)
        if found >= (known if revision == "head" else revision):
            return False
        configuration = _configuration()
        configuration.attributes["connection"] = connection
        # Nobody is at work in an empty database.
        command.upgrade(configuration, "+1" if found else revision)
        return bool(found)


def current_revision(connection: sqlalchemy.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str | None:
    return ScriptDirectory.from_config(_configuration()).get_current_head()


def _configuration() -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    configuration.set_main_option("path_separator", "os")
    return configuration
