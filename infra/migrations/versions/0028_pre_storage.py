"""Let autovacuum keep up with the tables of the queue

Only storage parameters: no row is rewritten, and the lock (SHARE UPDATE EXCLUSIVE) lets everybody
read and write. The previous release runs on; months of attempts that its pruner makes have
PostgreSQL's defaults.

By default autovacuum waits until a fifth of a table is dead. With 300,000 rows in the outbox that
is 60,000 dead ones, and a take of 64 hints (p50 of 20, two busy cores, PostgreSQL 18) took 3 ms
after VACUUM, 9 ms with 110,000 dead rows. The queue's tables change as a whole within minutes, so
they are vacuumed by the number of dead rows, and without the pauses that autovacuum makes to spare
the disk: https://www.postgresql.org/docs/current/runtime-config-vacuum.html

`fillfactor` leaves room in a page for the next version of a row, which then changes no index (HOT,
https://www.postgresql.org/docs/current/storage-hot.html). Only conversations gain by it: of 5,700
updates (3,000 turns in 300 conversations, without autovacuum) 95 % were HOT instead of 52 %, and
the table had 16 pages instead of 45. Attempts and workers are at 98 % without it. Turns and the
outbox change columns that partial indexes name, and the outbox has more pages with it.
"""

from alembic import op
from sqlalchemy import text

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

_VACUUM = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_cost_delay": "0",
}
#: Turns and conversations stay; a scan of all their indexes for each 1,000 dead rows is too often.
_VACUUM_LARGE = _VACUUM | {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "5000",
}

_STORAGE = {
    "outbox": _VACUUM,
    "chunks": _VACUUM,
    "worker_liveness": _VACUUM,
    "deliveries": _VACUUM_LARGE,
    "turns": _VACUUM_LARGE,
    "conversations": _VACUUM_LARGE | {"fillfactor": "70"},
}

_PARTITIONS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'attempts'::regclass ORDER BY 1
"""


def _tables() -> dict[str, dict[str, str]]:
    """The parameters by table; a partitioned table has none, its partitions do."""
    partitions = op.get_bind().execute(text(_PARTITIONS)).scalars()
    return _STORAGE | dict.fromkeys(partitions, _VACUUM_LARGE)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, parameters in _tables().items():
        chosen = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        op.execute(f"ALTER TABLE {table} SET ({chosen})")


def downgrade() -> None:
    for table, parameters in _tables().items():
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(parameters)})")
