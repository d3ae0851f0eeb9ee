"""Which worker holds a conversation, and whether it got the next turn

Columns that may be null or have a default: PostgreSQL changes no row for them, and old code works
on. The index is empty until there are hints in queues of workers' own.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("attempts", sa.Column("is_warm", sa.Boolean()))
    op.add_column("outbox", sa.Column("worker_id", sa.Uuid()))
    op.add_column("outbox", sa.Column("own_until", sa.DateTime(timezone=True)))
    op.create_index(
        "ix_outbox_own",
        "outbox",
        ["worker_id"],
        postgresql_where=sa.text("own_until IS NOT NULL"),
    )
    op.add_column(
        "worker_liveness",
        sa.Column("own_lanes", ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")),
    )


def downgrade() -> None:
    op.drop_column("worker_liveness", "own_lanes")
    op.drop_index("ix_outbox_own", "outbox")
    op.drop_column("outbox", "own_until")
    op.drop_column("outbox", "worker_id")
    op.drop_column("attempts", "is_warm")
