"""Files whose deletion failed, and why

A new table, and a column that the previous release's processes leave empty. They try a file that
cannot be deleted at each look, as before, and roll back what they deleted with it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    now = sa.func.clock_timestamp()
    op.create_table(
        "undeleted_files",
        sa.Column("file_id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("remedy", sa.Text(), nullable=False, server_default=""),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("erased_files", sa.Column("cleared_to", sa.Uuid()))


def downgrade() -> None:
    op.drop_column("erased_files", "cleared_to")
    op.drop_table("undeleted_files")
