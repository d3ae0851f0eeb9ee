"""Erasures: users who were forgotten, by a hash of their key

New tables: processes of the previous release neither read nor write them. The indexes find what a
user said, and are built while the tables are read and written.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from turnmill.infra.migrations.indexes import build_index

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


_BY_AUTHOR = {
    "turns": ["tenant_id", "author", "id"],
    "channel_threads": ["tenant_id", "channel", "author", "thread"],
    "ratings": ["tenant_id", "source", "author", "id"],
}


def upgrade() -> None:
    build_index(
        "ix_deliveries_notices",
        "deliveries",
        ["conversation_id"],
        postgresql_where=sa.text("turn_id IS NULL"),
    )
    for table, columns in _BY_AUTHOR.items():
        where = "user_key IS NULL AND author IS NOT NULL" if table == "turns" else None
        build_index(
            f"ix_{table}_tenant_id_author",
            table,
            columns,
            postgresql_where=None if where is None else sa.text(where),
        )
    now = sa.func.clock_timestamp()
    op.create_table(
        "erasures",
        sa.Column("tenant_id", sa.Uuid(), primary_key=True),
        sa.Column("key_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("key", sa.Text()),
        sa.Column("done_at", sa.DateTime(timezone=True)),
    )
    op.create_index(
        "ix_erasures_open", "erasures", ["at"], postgresql_where=sa.text("done_at IS NULL")
    )
    op.create_table(
        "erased_files",
        sa.Column("tenant_id", sa.Uuid(), primary_key=True),
        sa.Column("file_id", sa.Uuid(), primary_key=True),
        sa.Column("searched_to", sa.Uuid()),
        sa.Column(
            "asked_by", postgresql.ARRAY(sa.LargeBinary()), nullable=False, server_default="{}"
        ),
    )


def downgrade() -> None:
    op.drop_table("erased_files")
    op.drop_table("erasures")
    for table in _BY_AUTHOR:
        op.drop_index(f"ix_{table}_tenant_id_author", table)
    op.drop_index("ix_deliveries_notices", "deliveries")
