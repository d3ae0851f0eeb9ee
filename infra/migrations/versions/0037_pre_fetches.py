"""Files whose bytes are still to be fetched from a channel

Three columns that the previous release's processes leave at their defaults. Their pruner finds no
bytes of a file that is still to be fetched and deletes its row, within the seconds that this takes;
the turn then says that its file is gone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("files", sa.Column("source", JSONB()))
    op.add_column("files", sa.Column("fetch_at", sa.DateTime(timezone=True)))
    op.add_column(
        "files", sa.Column("fetches", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.create_index(
        "ix_files_fetch_at",
        "files",
        ["fetch_at"],
        postgresql_where=sa.text("source IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_files_fetch_at", "files")
    for column in ("fetches", "fetch_at", "source"):
        op.drop_column("files", column)
