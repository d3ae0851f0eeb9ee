"""PostgreSQL: reachable, migrated, keeping what it confirms, with room for us."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from turnmill.producer.doctor import blocking, clock, vacuum
from turnmill.producer.doctor.findings import Check, Finding, broken, note, ok, warning
from turnmill.producer.operations.unreached import STANDBY_REMEDY, remedy_for
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.suitability import examine_server
from turnmill.schemas.settings import SearchSettings, Settings

#: Connections of a process beside its pool: one that listens, and one that holds a worker's lock or
#: two for the API's probes and unknown keys.
_BESIDE_POOL = 3

_DURABILITY = {
    "fsync": "a crash of its machine may leave the database unreadable",
    "full_page_writes": "a crash of its machine may leave the database unreadable",
}


class _Reached(NamedTuple):
    version: str
    is_standby: bool


_REACHED = "SELECT version(), pg_is_in_recovery() AS is_standby"


class _Room(NamedTuple):
    allowed: int
    taken: int


_ROOM = """
SELECT current_setting('max_connections')::int
         - current_setting('superuser_reserved_connections')::int AS allowed,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS taken
"""


class _Standbys(NamedTuple):
    names: str
    me: str
    may_look: bool
    standbys: int


_STANDBYS = """
SELECT current_setting('synchronous_standby_names') AS names,
       quote_ident(current_user) AS me,
       pg_has_role('pg_monitor', 'USAGE') OR pg_has_role('pg_read_all_stats', 'USAGE') AS may_look,
       (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS standbys
"""


class _Found(NamedTuple):
    found: bool


class _Value(NamedTuple):
    value: str


class _Now(NamedTuple):
    now: float


#: Searches for something that any server finds; returns how many pages it found. Raises
#: `SearchUnavailable`, `SettingsError`.
Search = Callable[[SearchSettings], int]


@dataclass(frozen=True)
class Target:
    settings: Settings
    database: Database
    #: The version of the tables this code was written for.
    revision: str | None
    #: Searches the web as workers do; None: nobody is asked.
    search: Search | None = None

    @property
    def has_tables(self) -> bool:
        statement = "SELECT to_regclass('outbox') IS NOT NULL AS found"
        return self.database.fetch(_Found, statement)[0].found


def _reached(target: Target) -> Iterator[Finding]:
    try:
        row = target.database.fetch(_Reached, _REACHED)[0]
    except DatabaseUnavailable as error:
        yield broken(error.message, remedy_for(error.message))
    else:
        name = " ".join(row.version.split()[:2])
        if row.is_standby:
            yield broken(f"{name} is a standby: nothing can be written", STANDBY_REMEDY)
        else:
            yield ok(name)


def _suitable(target: Target) -> Iterator[Finding]:
    for unsuitable in examine_server(target.database):
        yield broken(unsuitable.detail, unsuitable.fix)


def _pooler(target: Target) -> Iterator[Finding]:
    """A pooled connection has no session to set limits in: the server's defaults count."""
    if not target.settings.database.is_pooled:
        return
    statement = "SELECT current_setting('idle_in_transaction_session_timeout') AS value"
    if target.database.fetch(_Value, statement)[0].value == "0":
        yield warning(
            "transactions of a process that is paused keep their locks for ever",
            "ALTER DATABASE … SET idle_in_transaction_session_timeout = '10s', or PgBouncer's "
            "idle_transaction_timeout = 10",
        )


def _tables(target: Target) -> Iterator[Finding]:
    exists = "SELECT to_regclass('alembic_version') IS NOT NULL AS found"
    if not target.database.fetch(_Found, exists)[0].found:
        yield broken("missing", "turnmill db upgrade")
        return
    rows = target.database.fetch(_Value, "SELECT version_num AS value FROM alembic_version")
    found = rows[0].value if rows else "none"
    if target.revision is not None and found < target.revision:
        yield broken(f"version {found}, but this code needs {target.revision}",
                     "turnmill db upgrade")  # fmt: skip
    elif target.revision is not None and found > target.revision:
        yield note(f"version {found} is newer than this code ({target.revision})",
                   "install the release that the other machines have")  # fmt: skip


def _durability(target: Target) -> Iterator[Finding]:
    for name, harm in _DURABILITY.items():
        row = target.database.fetch(_Value, "SELECT current_setting(%s) AS value", (name,))[0]
        if row.value == "off":
            fix = f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();"
            yield broken(f"{name} is off: {harm}", f"{fix} (or where else it is set)")


def _standby(target: Target) -> Iterator[Finding]:
    wanted = target.settings.database
    if not wanted.has_several_hosts and not wanted.require_standby:
        return
    row = target.database.fetch(_Standbys, _STANDBYS)[0]
    if not row.names:
        yield broken(
            "no synchronous standby: a failover forgets turns that were accepted",
            "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (…)'; SELECT pg_reload_conf();",
        )
    elif not row.may_look:
        yield note("may not be looked at by this user", f"GRANT pg_monitor TO {row.me};")
    elif row.standbys == 0:
        yield broken(
            f"none of {row.names} is connected: every commit waits for one",
            "start a standby whose application_name is in synchronous_standby_names",
        )


def _connections(target: Target) -> Iterator[Finding]:
    row = target.database.fetch(_Room, _ROOM)[0]
    process = target.settings.database.pool_size + _BESIDE_POOL
    if 3 * process > row.allowed:
        yield warning(
            f"{row.allowed} allowed, but an API, a relay and a worker may open {3 * process}",
            "raise max_connections, or lower TURNMILL_DATABASE__POOL_SIZE",
        )
    elif row.allowed - row.taken < process:
        yield warning(
            f"{row.taken} of {row.allowed} taken: no room for one more process ({process})",
            "raise max_connections, or lower TURNMILL_DATABASE__POOL_SIZE",
        )


def _clock(target: Target) -> Iterator[Finding]:
    def read_s() -> float:
        statement = "SELECT extract(epoch FROM clock_timestamp())::float AS now"
        return target.database.fetch(_Now, statement)[0].now

    return clock.compare("PostgreSQL", read_s)


REACHED: dict[str, Check[Target]] = {"database": _reached}
CHECKS: dict[str, Check[Target]] = {
    "locks held": lambda target: blocking.check_blocking(target.database),
    "suitability": _suitable,
    "pooler": _pooler,
    "tables": _tables,
    "durability": _durability,
    "standby": _standby,
    "connections": _connections,
    "horizon": lambda target: vacuum.check_horizon(target.database),
    "dead rows": lambda target: vacuum.check_dead_rows(target.database),
    "clock": _clock,
}
