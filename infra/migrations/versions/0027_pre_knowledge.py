"""Knowledge: collections of documents, and what turns were shown of them

New tables alone: processes of the previous release neither read nor write them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "collections",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("passage_count", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("total_length", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        _time("created_at"),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    op.create_table(
        "documents",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _parent("collection_id", "collections"),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, server_default=sa.text("1")),
        _time("updated_at"),
        sa.UniqueConstraint("collection_id", "origin", "uri"),
    )
    op.create_table(
        "passages",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        _parent("collection_id", "collections"),
        _parent("document_id", "documents"),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("heading", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("terms", TSVECTOR(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
    )
    op.create_index("ix_passages_collection_id", "passages", ["collection_id"])
    op.create_index("ix_passages_document_id", "passages", ["document_id"])
    op.create_index("ix_passages_terms", "passages", ["terms"], postgresql_using="gin")
    op.create_table(
        "collection_terms",
        _parent("collection_id", "collections", is_key=True),
        sa.Column("lexeme", sa.Text(), primary_key=True),
        sa.Column("df", sa.Integer(), nullable=False),
    )
    op.create_table(
        "turn_sources",
        sa.Column("turn_id", sa.Uuid(), primary_key=True),
        sa.Column("sources", JSONB(), nullable=False),
        _time("created_at"),
    )


def downgrade() -> None:
    for table in ("turn_sources", "collection_terms", "passages", "documents", "collections"):
        op.drop_table(table)


def _parent(name: str, table: str, *, is_key: bool = False) -> sa.Column:
    parent = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, sa.Uuid(), parent, primary_key=is_key, nullable=False)


def _time(name: str) -> sa.Column:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=False,
        server_default=sa.func.clock_timestamp(),
    )
