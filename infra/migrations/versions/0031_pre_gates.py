"""Gates: how a collection tells that it does not know, and the questions that were missed

New columns may be null, and a new table: processes of the previous release neither read nor write
them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("collections", sa.Column("gate", JSONB()))
    op.add_column("turn_sources", sa.Column("verdict", sa.Text()))
    op.add_column("turn_sources", sa.Column("probability", sa.REAL()))
    op.create_table(
        "knowledge_gaps",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column(
            "collection_id",
            sa.Uuid(),
            sa.ForeignKey("collections.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("turn_id", sa.Uuid(), nullable=False, unique=True),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.Column("document_id", sa.Uuid(), sa.ForeignKey("documents.id", ondelete="SET NULL")),
    )
    op.create_index(
        "ix_knowledge_gaps_open",
        "knowledge_gaps",
        ["tenant_id", "collection_id", "id"],
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index("ix_knowledge_gaps_collection_id", "knowledge_gaps", ["collection_id"])
    op.create_index("ix_knowledge_gaps_document_id", "knowledge_gaps", ["document_id"])


def downgrade() -> None:
    op.drop_table("knowledge_gaps")
    op.drop_column("turn_sources", "probability")
    op.drop_column("turn_sources", "verdict")
    op.drop_column("collections", "gate")
