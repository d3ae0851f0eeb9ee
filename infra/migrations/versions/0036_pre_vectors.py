"""Vectors of passages, in versioned spaces

New tables, and a column without a default: nothing is rewritten. Processes of the previous release
search by words alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "spaces",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _parent("collection_id", "collections", sa.Uuid()),
        sa.Column("embedder", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("dims", sa.Integer(), nullable=False),
        sa.Column("question_prefix", sa.Text(), nullable=False),
        sa.Column("passage_prefix", sa.Text(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("superseded_at", sa.DateTime(timezone=True)),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
        sa.UniqueConstraint(
            "collection_id", "embedder", "version", "dims", "question_prefix", "passage_prefix"
        ),
    )
    op.create_table(
        "passage_vectors",
        _parent("space_id", "spaces", sa.Uuid(), is_key=True),
        _parent("passage_id", "passages", sa.BigInteger(), is_key=True),
        sa.Column("v", ARRAY(sa.REAL()), nullable=False),
    )
    op.create_index("ix_passage_vectors_passage_id", "passage_vectors", ["passage_id"])
    op.execute("ALTER TABLE passage_vectors ALTER v SET STORAGE EXTERNAL")
    op.add_column("collections", sa.Column("space_id", sa.Uuid()))


def downgrade() -> None:
    op.drop_column("collections", "space_id")
    op.drop_table("passage_vectors")
    op.drop_table("spaces")


def _parent(name: str, table: str, kind: object, *, is_key: bool = False) -> sa.Column:
    parent = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, kind, parent, primary_key=is_key, nullable=False)
