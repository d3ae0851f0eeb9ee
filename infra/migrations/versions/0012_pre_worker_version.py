"""Which release a worker is of

A column that workers of older releases leave empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("worker_liveness", sa.Column("version", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("worker_liveness", "version")
