"""Workers that stand by consume nothing. Old ones, which do not know the column, consume"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "worker_liveness",
        sa.Column("is_consuming", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("worker_liveness", "is_consuming")
