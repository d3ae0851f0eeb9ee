"""Who holds a lock that others wait for: whoever waits for long is given up, and nothing moves.

It is asked before the tables are, and of no table: a check that needs a locked one would only say
that PostgreSQL does not answer.
"""

from collections.abc import Iterator
from typing import NamedTuple

from turnmill.producer.doctor.findings import Finding, broken
from turnmill.schemas.postgres.database import Database

#: Locks of Turnmill's own are held for milliseconds; who waits for so long waits for somebody
#: else, seconds. Well below the time after which a process gives a statement up.
WAITS_S = 1.5


class _Blocker(NamedTuple):
    pid: int
    application: str
    user_name: str
    host: str
    #: What it does; None: it belongs to another role, and may not be looked at.
    state: str | None
    #: Since its transaction began.
    age_s: float | None
    blocked: int
    waited_s: float


#: The heads of the queues alone: those who are blocked themselves go on when these do.
_BLOCKERS = """
SELECT b.pid, coalesce(nullif(b.application_name, ''), 'unnamed') AS application,
    b.usename AS user_name, coalesce(host(b.client_addr), 'local') AS host, b.state,
    extract(epoch FROM clock_timestamp() - b.xact_start)::float AS age_s,
    count(DISTINCT w.pid)::int AS blocked,
    extract(epoch FROM clock_timestamp() - min(w.query_start))::float AS waited_s
FROM pg_stat_activity w
CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS blocking (pid)
JOIN pg_stat_activity b ON b.pid = blocking.pid
WHERE w.datname = current_database() AND w.wait_event_type = 'Lock'
    AND cardinality(pg_blocking_pids(b.pid)) = 0
GROUP BY b.pid, b.application_name, b.usename, b.client_addr, b.state, b.xact_start
HAVING min(w.query_start) < clock_timestamp() - make_interval(secs => %s)
ORDER BY b.xact_start
"""


def check_blocking(database: Database) -> Iterator[Finding]:
    """Find sessions that hold a lock for which others have waited longer than `WAITS_S`."""
    for found in database.fetch(_Blocker, _BLOCKERS, (WAITS_S,)):
        state = f", {found.state}" if found.state else ""
        age = "" if found.age_s is None else f" for {found.age_s:.0f} s"
        yield broken(
            f"process {found.pid} ({found.application}, user {found.user_name}, {found.host}"
            f"{state}) holds a lock{age} that {found.blocked} sessions wait for, the first one for "
            f"{found.waited_s:.0f} s",
            f"let it end, or: SELECT pg_terminate_backend({found.pid});",
        )
