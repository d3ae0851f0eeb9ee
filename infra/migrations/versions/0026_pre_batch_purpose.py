"""Batches may have a purpose of their own: they measure bots, and nobody asked for their replies

A column that may be null. Processes of the previous release take such a batch for a backlog.
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("batches", sa.Column("purpose", sa.Text()))


def downgrade() -> None:
    op.drop_column("batches", "purpose")
