"""Attempts and replies by month

The tables become the first partition of their successors; no row is copied, and old code works on.
PostgreSQL reads both once to see that they fit, under a lock that lets no worker in: about a third
of a second for a million of each. Turns are accepted meanwhile. If the lock cannot be had within
five seconds, nothing is changed; run it again. Going back copies the rows, and takes accordingly
long.
"""

from datetime import UTC, datetime

from alembic import op

from turnmill.schemas.store.partitions import PARTITIONED, Month, create_month, months_from

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEYS = {"attempts": "turn_id, number", "replies": "turn_id"}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    month = Month.of(datetime.now(UTC))
    for table in PARTITIONED:
        _partition(table, month.next())
        for ahead in months_from(month.next(), 2):
            for statement in create_month(table, ahead):
                op.execute(statement)


def _partition(table: str, end: Month) -> None:
    op.execute(f"ALTER TABLE {table} RENAME TO {table}_before")
    op.execute(f"ALTER INDEX pk_{table} RENAME TO {table}_before_pkey")
    op.execute(
        f"CREATE TABLE {table} (LIKE {table}_before INCLUDING DEFAULTS, "
        f"CONSTRAINT pk_{table} PRIMARY KEY ({_KEYS[table]})) PARTITION BY RANGE (turn_id)"
    )
    op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    # Ids from a clock that was ahead: without them the rest would be refused.
    op.execute(
        f"WITH late AS (DELETE FROM {table}_before WHERE turn_id >= '{end.first_id}' RETURNING *) "
        f"INSERT INTO {table}_default SELECT * FROM late"
    )
    op.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {table}_before "
        f"FOR VALUES FROM (MINVALUE) TO ('{end.first_id}')"
    )


def downgrade() -> None:
    for table in PARTITIONED:
        op.execute(f"CREATE TABLE {table}_whole (LIKE {table} INCLUDING DEFAULTS)")
        op.execute(f"INSERT INTO {table}_whole SELECT * FROM {table}")
        op.execute(f"DROP TABLE {table}")
        op.execute(f"ALTER TABLE {table}_whole RENAME TO {table}")
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({_KEYS[table]})")
