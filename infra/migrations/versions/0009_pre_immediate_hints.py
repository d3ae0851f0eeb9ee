"""Outbox rows that are due at once, told from those that wait for a time

A column with a default: PostgreSQL rewrites no row for it, and processes of the previous release
insert rows without it. Those wait for their `due_at`, as before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "outbox",
        sa.Column("is_immediate", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("outbox", "is_immediate")
