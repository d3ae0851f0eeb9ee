"""Why a worker takes no hints

A column that old workers leave empty: they do not know when their engine is away.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker_liveness", sa.Column("unavailable_because", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("worker_liveness", "unavailable_because")
