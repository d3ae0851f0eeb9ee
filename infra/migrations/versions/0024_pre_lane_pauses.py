"""Lanes can be paused, and workers drained, from the command line

A new table, and columns that may be null: no row is rewritten. Workers and relays of the previous
release do not read them: they answer turns of a paused lane for as long as they run, and a worker
of it is drained with SIGTERM.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_TIMES = ("drain_asked_at", "draining_since")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "lane_pauses",
        sa.Column("lane", sa.Text(), primary_key=True),
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column(
            "paused_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
        ),
        sa.Column("paused_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )
    for name in _TIMES:
        op.add_column("worker_liveness", sa.Column(name, sa.DateTime(timezone=True)))
    op.add_column("worker_liveness", sa.Column("drain_asked_by", sa.Text()))
    op.add_column("worker_liveness", sa.Column("ended_lately", JSONB()))


def downgrade() -> None:
    for name in (*_TIMES, "drain_asked_by", "ended_lately"):
        op.drop_column("worker_liveness", name)
    op.drop_table("lane_pauses")
