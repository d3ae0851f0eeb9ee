"""Channels: threads, events, deliveries, ratings; policies of bots; conversations of people

New tables, and columns without defaults or with constant ones: nothing is rewritten. Older
releases neither read nor write them: a turn that their workers settle leaves its delivery
`pending`, which the delivery worker finds.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_TABLES = ("channel_threads", "channel_events", "deliveries", "ratings")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("bots", sa.Column("policies", JSONB(), nullable=False, server_default="{}"))
    op.add_column("conversations", sa.Column("policies", JSONB(), nullable=True))
    op.add_column("turns", sa.Column("author", sa.Text(), nullable=True))
    op.add_column("conversations", _time("handed_off_at"))
    op.add_column("conversations", sa.Column("handed_off_because", sa.Text(), nullable=True))
    op.create_index(
        "ix_conversations_handed_off_at", "conversations", ["handed_off_at"],
        postgresql_where=sa.text("handed_off_at IS NOT NULL"),
    )  # fmt: skip
    # Rows that wait for their time: a quiet window, another attempt. There are few.
    op.create_index(
        "ix_outbox_due_at", "outbox", ["due_at"],
        postgresql_where=sa.text("published_at IS NULL AND NOT is_immediate"),
    )  # fmt: skip
    _create_threads()
    _create_deliveries()
    op.create_table(
        "ratings",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("score", sa.SmallInteger(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        _time("created_at", default_now=True),
        sa.UniqueConstraint("turn_id", "source", "author"),
    )


def downgrade() -> None:
    op.execute("DELETE FROM outbox WHERE lane = 'delivery'")
    for table in _TABLES:
        op.drop_table(table)
    op.drop_index("ix_conversations_handed_off_at", "conversations")
    for column in ("handed_off_because", "handed_off_at", "policies"):
        op.drop_column("conversations", column)
    op.drop_index("ix_outbox_due_at", "outbox")
    op.drop_column("turns", "author")
    op.drop_column("bots", "policies")


def _create_threads() -> None:
    op.create_table(
        "channel_threads",
        sa.Column("channel", sa.Text(), primary_key=True),
        sa.Column("thread", sa.Text(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("target", JSONB(), nullable=False),
        _time("created_at", default_now=True),
    )
    op.create_index("ix_channel_threads_conversation_id", "channel_threads", ["conversation_id"])
    op.create_table(
        "channel_events",
        sa.Column("channel", sa.Text(), primary_key=True),
        sa.Column("event_id", sa.Text(), primary_key=True),
        sa.Column("turn_id", sa.Uuid(), nullable=True),
        sa.Column("conversation_id", sa.Uuid(), nullable=True),
        _time("received_at", default_now=True),
    )
    op.create_index("ix_channel_events_received_at", "channel_events", ["received_at"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=True),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("target", JSONB(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("ordinal", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("worker_id", sa.Uuid(), nullable=True),
        _time("leased_until"),
        _time("expires_at"),
        _time("progress_at"),
        sa.Column("progress", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        _time("created_at", default_now=True),
        _time("settled_at"),
    )
    for name, columns, where, is_unique in (
        ("uq_deliveries_turn_id", ["turn_id"], "turn_id IS NOT NULL", True),
        ("ix_deliveries_conversation_id_ordinal", ["conversation_id", "ordinal"],
         "state IN ('pending', 'queued', 'sending')", False),
        ("ix_deliveries_progress_at", ["progress_at"], "state = 'pending'", False),
        ("ix_deliveries_leased_until", ["leased_until"], "state = 'sending'", False),
        ("ix_deliveries_failed", ["channel", "ordinal"], "state = 'failed'", False),
    ):  # fmt: skip
        op.create_index(
            name, "deliveries", columns, unique=is_unique, postgresql_where=sa.text(where)
        )
    message = "(progress #>> '{parts,0}')"
    op.create_index(
        "ix_deliveries_message", "deliveries", ["channel", sa.text(message)],
        postgresql_where=sa.text(f"{message} IS NOT NULL"),
    )  # fmt: skip


def _time(name: str, *, default_now: bool = False) -> sa.Column:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=not default_now,
        server_default=sa.func.clock_timestamp() if default_now else None,
    )
