"""Memory: users of a tenant's bots, what is remembered of them, and what turns were told of it

New tables, and a column without a default: nothing is rewritten. The index is built while turns are
read and written. The previous release's API accepts turns without their user, and its workers tell
them nothing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from turnmill.infra.migrations.indexes import build_index

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("ALTER TABLE turns ADD COLUMN IF NOT EXISTS user_key text")
    build_index(
        "ix_turns_tenant_id_user_key",
        "turns",
        ["tenant_id", "user_key", "id"],
        postgresql_where=sa.text("user_key IS NOT NULL"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("preferences", JSONB(), nullable=False, server_default="{}"),
        sa.Column("memory_on", sa.Boolean()),
        sa.Column("consent_at", sa.DateTime(timezone=True)),
        _created(),
        sa.UniqueConstraint("tenant_id", "key"),
    )
    op.create_table(
        "facts",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column(
            "user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Uuid()),
        sa.Column("superseded_by", sa.Uuid()),
        _created(),
    )
    op.create_index("ix_facts_user_id", "facts", ["user_id"])
    for name, operator in (("in_force", "<>"), ("proposed", "=")):
        op.create_index(
            f"uq_facts_{name}",
            "facts",
            ["user_id", "key"],
            unique=True,
            postgresql_where=sa.text(f"superseded_by IS NULL AND source {operator} 'proposed'"),
        )
    op.create_table(
        "turn_memory",
        sa.Column("turn_id", sa.Uuid(), primary_key=True),
        sa.Column("remembered", JSONB(), nullable=False),
        _created(),
    )


def downgrade() -> None:
    op.drop_index("ix_turns_tenant_id_user_key", "turns")
    op.drop_column("turns", "user_key")
    for table in ("turn_memory", "facts", "users"):
        op.drop_table(table)


def _created() -> sa.Column:
    now = sa.func.clock_timestamp()
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now)
