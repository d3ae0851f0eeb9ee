"""How far the text of a lost attempt had come

A column that workers of older releases leave empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("attempts", sa.Column("kept_position", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "kept_position")
