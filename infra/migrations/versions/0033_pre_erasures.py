"""Erasures: users who were forgotten, by a hash of their key

A new table: processes of the previous release neither read nor write it. An index of the notices of
a conversation reads all deliveries once, under the guard of 0030.
"""

import sqlalchemy as sa
from alembic import op

from turnmill.infra.migrations.locks import before_leases_expire

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
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
    with before_leases_expire():
        op.create_index(
            "ix_deliveries_notices",
            "deliveries",
            ["conversation_id"],
            postgresql_where=sa.text("turn_id IS NULL"),
        )


def downgrade() -> None:
    op.drop_index("ix_deliveries_notices", "deliveries")
    op.drop_table("erasures")
