"""A turn knows that several messages were collected into it

A column with a constant default: nothing is rewritten. Older releases collect without noting it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    shared = sa.Column("is_shared", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("turns", shared)


def downgrade() -> None:
    op.drop_column("turns", "is_shared")
