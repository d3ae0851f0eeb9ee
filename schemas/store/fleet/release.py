"""Which release runs, and whether the database is as new as it needs."""

from importlib.metadata import version
from typing import NamedTuple, Protocol

import structlog

from turnmill.schemas.errors import DatabaseOutdated
from turnmill.schemas.postgres.rows import RowT

log = structlog.get_logger()

RELEASE = version("turnmill")

#: Pause before a process that waits for a migration looks again, seconds.
UPGRADE_POLL_S = 1.0

#: The revision of the schema that this release's statements need. Revisions are ordered numbers.
NEEDED_REVISION = "0040"


class _IsThere(NamedTuple):
    is_there: bool


class _Revision(NamedTuple):
    version_num: str


class Fetch(Protocol):
    """Runs a statement on the database and returns its rows: `Database.fetch`, `Link.fetch`."""

    def __call__(self, kind: type[RowT], statement: str, /) -> list[RowT]: ...


def refuse_older_database(fetch: Fetch) -> None:
    """Raise `DatabaseOutdated` if a migration that this release needs has not run yet.

    Expand/contract migrations keep the previous release working, so a newer database is only
    logged.
    """
    revision = _revision(fetch)
    if revision is None:
        raise DatabaseOutdated("The database has no tables yet. Create them: turnmill db upgrade")
    if revision < NEEDED_REVISION:
        raise DatabaseOutdated(
            f"The database is at revision {revision}, but this release ({RELEASE}) needs "
            f"{NEEDED_REVISION}. Run 'turnmill db upgrade' of this release first."
        )
    if revision > NEEDED_REVISION:
        log.warning("database.newer", revision=revision, known=NEEDED_REVISION, release=RELEASE)


def _revision(fetch: Fetch) -> str | None:
    (table,) = fetch(_IsThere, "SELECT to_regclass('alembic_version') IS NOT NULL AS is_there")
    if not table.is_there:
        return None
    rows = fetch(_Revision, "SELECT version_num FROM alembic_version")
    return rows[0].version_num if rows else None
