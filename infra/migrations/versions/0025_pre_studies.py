"""Studies: people rate replies

New tables alone: processes of the previous release neither read nor write them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("dimensions", ARRAY(sa.Text()), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        _time("created_at", default_now=True),
        _time("closed_at"),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    op.create_table(
        "study_items",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _parent("study_id", "studies"),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("prompt", JSONB(), nullable=False),
        sa.Column("left_text", sa.Text(), nullable=False),
        sa.Column("right_text", sa.Text(), nullable=True),
        sa.Column("left_is_a", sa.Boolean(), nullable=True),
        sa.Column("source", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("repeat_of", sa.Uuid(), nullable=True),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.UniqueConstraint("study_id", "position"),
    )
    op.create_index("ix_study_items_turn_id", "study_items", [sa.text("(source ->> 'turn_id')")])
    op.create_table(
        "study_raters",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _parent("study_id", "studies"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True, unique=True),
        _time("expires_at"),
        _time("created_at", default_now=True),
        sa.UniqueConstraint("study_id", "name"),
    )
    op.create_table(
        "study_assignments",
        _parent("item_id", "study_items", is_key=True),
        _parent("rater_id", "study_raters", is_key=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=False),
        _time("completed_at"),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        _time("created_at", default_now=True),
    )
    op.create_index("ix_study_assignments_rater_id", "study_assignments", ["rater_id"])
    op.create_table(
        "study_ratings",
        _parent("item_id", "study_items", is_key=True),
        _parent("rater_id", "study_raters", is_key=True),
        sa.Column("dimension", sa.Text(), primary_key=True),
        sa.Column("value", sa.SmallInteger(), nullable=False),
    )


def downgrade() -> None:
    for table in ("study_ratings", "study_assignments", "study_raters", "study_items", "studies"):
        op.drop_table(table)


def _parent(name: str, table: str, *, is_key: bool = False) -> sa.Column:
    parent = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, sa.Uuid(), parent, primary_key=is_key, nullable=False)


def _time(name: str, *, default_now: bool = False) -> sa.Column:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=not default_now,
        server_default=sa.func.clock_timestamp() if default_now else None,
    )
