"""Whether a conversation may not train models, whatever its tenant agreed to

A column with a constant default: nothing is rewritten, and older releases leave it alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "conversations",
        sa.Column("refuses_training", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("conversations", "refuses_training")
