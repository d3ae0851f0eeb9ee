"""Whether PostgreSQL can clear away the rows that queues leave behind.

Every turn leaves dead rows in the queue's tables. VACUUM removes a dead row once no transaction can
still see it. One transaction that stays open, one replication slot that nobody reads, or one
prepared transaction that nobody ends holds that horizon for the whole database, and every claim and
every take of hints then reads more rows than before.
https://www.postgresql.org/docs/current/routine-vacuuming.html
"""

from collections.abc import Iterator
from typing import NamedTuple

from turnmill.producer.doctor.findings import Finding, broken, note, warning
from turnmill.schemas.postgres.database import Database

#: What holds the horizon for longer than this is told, seconds.
HELD_S = 300.0

#: Dead rows of a table that are told, where they are also more than a fifth of its rows:
#: autovacuum begins at 1,000 to 5,000 in the queue's tables.
DEAD_ROWS = 50_000


class _Session(NamedTuple):
    pid: int
    application: str
    user_name: str
    host: str
    state: str
    age_s: float


_SESSIONS = """
SELECT pid, coalesce(nullif(application_name, ''), 'unnamed') AS application, usename AS user_name,
    coalesce(host(client_addr), 'local') AS host, state,
    extract(epoch FROM clock_timestamp() - xact_start)::float AS age_s
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND backend_type = 'client backend'
  AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
  AND xact_start < clock_timestamp() - make_interval(secs => %s)
ORDER BY xact_start
"""


class _Slot(NamedTuple):
    slot_name: str
    holds_rows: bool
    wal: str | None


#: A slot's `catalog_xmin` holds the catalogs alone, but its WAL fills the disk all the same.
_SLOTS = """
SELECT slot_name, xmin IS NOT NULL AS holds_rows,
    pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS wal
FROM pg_replication_slots
WHERE NOT active AND (xmin IS NOT NULL OR restart_lsn IS NOT NULL)
  AND (database IS NULL OR database = current_database()) AND NOT pg_is_in_recovery()
ORDER BY 1
"""


class _Prepared(NamedTuple):
    gid: str
    quoted: str
    owner: str
    age_s: float


_PREPARED = """
SELECT gid, quote_literal(gid) AS quoted, owner,
    extract(epoch FROM clock_timestamp() - prepared)::float AS age_s
FROM pg_prepared_xacts
WHERE database = current_database()
  AND prepared < clock_timestamp() - make_interval(secs => %s)
ORDER BY prepared
"""


class _DeadRows(NamedTuple):
    name: str
    quoted: str
    dead: int
    live: int
    vacuumed: str


_DEAD = """
SELECT relname AS name, quote_ident(relname) AS quoted, n_dead_tup AS dead, n_live_tup AS live,
    coalesce(to_char(greatest(last_vacuum, last_autovacuum), 'YYYY-MM-DD HH24:MI'), 'never')
        AS vacuumed
FROM pg_stat_user_tables
WHERE schemaname = current_schema() AND n_dead_tup > %s AND n_dead_tup > n_live_tup / 5
ORDER BY n_dead_tup DESC LIMIT 5
"""


class _Hidden(NamedTuple):
    sessions: int
    me: str


_HIDDEN = """
SELECT count(*) AS sessions, quote_ident(current_user) AS me FROM pg_stat_activity
WHERE datname = current_database() AND query = '<insufficient privilege>'
"""


class _Off(NamedTuple):
    name: str


_IS_OFF = """
SELECT name FROM pg_settings WHERE name IN ('autovacuum', 'track_counts') AND setting = 'off'
"""


def check_horizon(database: Database) -> Iterator[Finding]:
    """Find sessions, slots and prepared transactions that keep dead rows from being removed."""
    for session in database.fetch(_Session, _SESSIONS, (HELD_S,)):
        yield warning(
            f"process {session.pid} ({session.application}, user {session.user_name}, "
            f"{session.host}) has had a transaction open for {_show_age(session.age_s)} "
            f"({session.state}): no row that died since can be removed",
            f"SELECT pg_terminate_backend({session.pid});",
        )
    for slot in database.fetch(_Slot, _SLOTS):
        held = "dead rows and " if slot.holds_rows else ""
        yield warning(
            f"nobody reads the replication slot '{slot.slot_name}': "
            f"it keeps {held}{slot.wal} of WAL",
            "start its reader again, or, if it will not come back: "
            f"SELECT pg_drop_replication_slot('{slot.slot_name}');",
        )
    for prepared in database.fetch(_Prepared, _PREPARED, (HELD_S,)):
        yield warning(
            f"the transaction '{prepared.gid}' of {prepared.owner} was prepared "
            f"{_show_age(prepared.age_s)} ago and has not ended: no row that died since can be "
            "removed",
            f"COMMIT PREPARED or ROLLBACK PREPARED {prepared.quoted};",
        )
    hidden = database.fetch(_Hidden, _HIDDEN)[0]
    if hidden.sessions:
        yield note(
            f"{hidden.sessions} sessions of other users may not be looked at",
            f"GRANT pg_monitor TO {hidden.me};",
        )


def check_dead_rows(database: Database) -> Iterator[Finding]:
    """Find tables with many dead rows, and an autovacuum that is off."""
    for setting in database.fetch(_Off, _IS_OFF):
        yield broken(
            f"{setting.name} is off: dead rows are never removed",
            f"ALTER SYSTEM SET {setting.name} = on; SELECT pg_reload_conf();",
        )
    for table in database.fetch(_DeadRows, _DEAD, (DEAD_ROWS,)):
        yield warning(
            f"{table.name} has {table.dead:,} dead rows beside {table.live:,} "
            f"(last vacuum: {table.vacuumed})",
            f"end what 'horizon' names, then: VACUUM (ANALYZE) {table.quoted};",
        )


def _show_age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
