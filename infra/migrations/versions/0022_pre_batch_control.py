"""Batches can be paused, resumed and cancelled

Columns that may be null: PostgreSQL rewrites no row for them. Workers of the previous release claim
what is in their lanes, so a paused batch stops when its hints have left the lane: within seconds
for those that are due next, within a minute for a million.
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_TIMES = ("paused_at", "resumed_at", "cancelled_at")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in _TIMES:
        op.add_column("batches", sa.Column(name, sa.DateTime(timezone=True)))
    op.add_column("batches", sa.Column("swept_row", sa.Integer()))


def downgrade() -> None:
    for name in (*_TIMES, "swept_row"):
        op.drop_column("batches", name)
