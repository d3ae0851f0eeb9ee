"""Citations: which passages a turn was really shown, and where their documents are found

Columns that may be empty: processes of the previous release neither read nor write them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("turn_sources", sa.Column("shown", sa.Integer())),
    ("turn_sources", sa.Column("first_number", sa.Integer())),
    ("documents", sa.Column("url", sa.Text())),
    ("passages", sa.Column("url", sa.Text())),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, column in _COLUMNS:
        op.add_column(table, column)


def downgrade() -> None:
    for table, column in _COLUMNS:
        op.drop_column(table, column.name)
