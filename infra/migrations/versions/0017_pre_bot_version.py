"""Bots have a version, which each turn keeps

A column with a constant default and one without: nothing is rewritten. Older releases neither
count bots' versions up nor write them to turns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("bots", sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("turns", sa.Column("bot_version", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("turns", "bot_version")
    op.drop_column("bots", "version")
