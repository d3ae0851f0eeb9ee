"""Bots can be deleted, and what they answered stays

A column without a default: nothing is rewritten. Processes of older releases go on answering for a
deleted bot until they are replaced.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("bots", sa.Column("deleted_at", sa.TIMESTAMP(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("bots", "deleted_at")
