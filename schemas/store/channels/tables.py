"""The tables of channels.

Invariants:

* at most one delivery of a conversation has an outbox row: the first one that is `queued` or
  `sending`, by `ordinal`;
* an event that stands in `channel_events` is in its turn too, in whatever way it got there.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from turnmill.schemas.store.tables import metadata, time_column

#: Which conversation a thread of a platform is. A reset gives the thread a new one.
channel_threads = Table(
    "channel_threads",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("thread", Text, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    #: Who began it, or was the last to ask for a person. While one answers, messages of others are
    #: answers.
    Column("author", Text, nullable=False),
    #: `Address.target` of the last event, for what nobody on the platform asked for.
    Column("target", JSONB, nullable=False),
    time_column("created_at", default_now=True),
    Index("ix_channel_threads_conversation_id", "conversation_id"),
    Index("ix_channel_threads_tenant_id_author", "tenant_id", "channel", "author", "thread"),
)

#: What was received already: platforms send an event again until they are sure.
channel_events = Table(
    "channel_events",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    #: The turn that it became, or a part of.
    Column("turn_id", Uuid),
    Column("conversation_id", Uuid),
    time_column("received_at", default_now=True),
    Index("ix_channel_events_received_at", "received_at"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    #: Of a reply; empty for a notice.
    Column("turn_id", Uuid),
    Column("channel", Text, nullable=False),
    Column("target", JSONB, nullable=False),
    Column("kind", Text, nullable=False),
    #: Of a notice: its text.
    Column("content", Text),
    #: The order within the conversation.
    Column("ordinal", BigInteger, Identity(), nullable=False),
    Column("state", Text, nullable=False),
    #: The number of the latest attempt: the fencing token.
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("worker_id", Uuid),
    time_column("leased_until"),
    #: Not used: the end of a short-lived way to answer stands in its target.
    time_column("expires_at"),
    #: When progress is to be shown next: a status, or more of a reply that is being written.
    time_column("progress_at"),
    #: What the adapter must remember between steps: ids of messages it has sent, how far it is.
    Column("progress", JSONB, nullable=False, server_default=text("'{}'")),
    Column("error_code", Text),
    Column("error_message", Text),
    time_column("created_at", default_now=True),
    time_column("settled_at"),
    Index("uq_deliveries_turn_id", "turn_id", unique=True,
          postgresql_where=text("turn_id IS NOT NULL")),
    Index("ix_deliveries_conversation_id_ordinal", "conversation_id", "ordinal",
          postgresql_where=text("state IN ('pending', 'queued', 'sending')")),
    Index("ix_deliveries_notices", "conversation_id", postgresql_where=text("turn_id IS NULL")),
    #: Platforms tell of a reaction by the message that it stands at.
    #: The previous release's processes look for the first one by the other index.
    Index("ix_deliveries_message", "channel", text("(progress #>> '{parts,0}')"),
          postgresql_where=text("(progress #>> '{parts,0}') IS NOT NULL")),
    Index("ix_deliveries_parts", text("jsonb_path_query_array(progress, '$.\"parts\".*')"),
          postgresql_using="gin"),
    Index("ix_deliveries_progress_at", "progress_at", postgresql_where=text("state = 'pending'")),
    Index("ix_deliveries_leased_until", "leased_until",
          postgresql_where=text("state = 'sending'")),
    Index("ix_deliveries_failed", "channel", "ordinal",
          postgresql_where=text("state = 'failed'")),
)  # fmt: skip

ratings = Table(
    "ratings",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    Column("turn_id", Uuid, nullable=False),
    #: Where it was given (a channel's name, or `api`), and by whom there.
    Column("source", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("score", SmallInteger, nullable=False),
    Column("comment", Text),
    time_column("created_at", default_now=True),
    UniqueConstraint("turn_id", "source", "author"),
    Index("ix_ratings_tenant_id_author", "tenant_id", "source", "author", "id"),
)
