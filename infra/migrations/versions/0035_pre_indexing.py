"""Indexing: documents have states, and content that waits

Columns with defaults and new tables: processes of the previous release write documents that are
ready, with their passages.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

_INDEXES = {"due_at": "ix_documents_due_at", "file_id": "ix_documents_file_id"}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "collections",
        sa.Column("metadata", JSONB(), nullable=False, server_default=sa.text("'{}'")),
    )
    for column in _columns():
        op.add_column("documents", column)
    # Added with a default that stays the same for a transaction: nothing is rewritten.
    op.alter_column("documents", "created_at", server_default=sa.func.clock_timestamp())
    for column, name in _INDEXES.items():
        op.create_index(
            name, "documents", [column], postgresql_where=sa.text(f"{column} IS NOT NULL")
        )
    op.create_table(
        "document_contents",
        sa.Column(
            "document_id",
            sa.Uuid(),
            sa.ForeignKey("documents.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("content", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "file_batches",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column(
            "collection_id",
            sa.Uuid(),
            sa.ForeignKey("collections.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("documents", ARRAY(sa.Uuid()), nullable=False),
        sa.Column("cancelled", ARRAY(sa.Uuid()), nullable=False, server_default=sa.text("'{}'")),
    )
    op.create_index("ix_file_batches_collection_id", "file_batches", ["collection_id"])


def downgrade() -> None:
    op.drop_table("file_batches")
    op.drop_table("document_contents")
    for name in _INDEXES.values():
        op.drop_index(name, "documents")
    for column in _columns():
        op.drop_column("documents", column.name)
    op.drop_column("collections", "metadata")


def _columns() -> list[sa.Column]:
    return [
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'ready'")),
        sa.Column("fence", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("file_id", sa.Uuid()),
        sa.Column("is_of_batches", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("attributes", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
        ),
    ]
