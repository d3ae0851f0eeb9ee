"""Bots that ignore the tools a client offers

A column with a default: PostgreSQL rewrites no row for it, and processes of the previous release
save bots without it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "bots",
        sa.Column("ignores_tools", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("bots", "ignores_tools")
