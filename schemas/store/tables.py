"""The tables. Postgres is the truth; the broker only holds hints to what stands here.

Invariants that the statements in this folder keep:

* an outbox row exists exactly while its turn is `queued`;
* at most one turn of a conversation is `queued` or `running`;
* `conversations.answered_seq` is the number of the last turn before the first open one;
* a reply exists exactly for a `completed` turn, written by the attempt that held the lease, or by
  an interruption: then it is what that attempt had streamed;
* no turn of a conversation that is handed off is open.

Turns, attempts, chunks and replies refer to each other by id without foreign keys: they
are written together, by one statement. Attempts and replies are partitioned by the month of
their turn's id (`partitions.py`), so that old ones go at once and give their space back. Turns
are not: their idempotency keys and numbers must be unique over all months.
"""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def time_column(name: str, *, default_now: bool = False, nullable: bool = True) -> Column[datetime]:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable and not default_now,
        server_default=func.clock_timestamp() if default_now else None,
    )


tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    #: Whether the tenant agreed that its conversations train models.
    Column("allows_training", Boolean, nullable=False, server_default=text("false")),
    time_column("created_at", default_now=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    #: The first characters of the secret, to tell keys apart in a list.
    Column("hint", Text, nullable=False),
    #: SHA-256 of the secret: 256 random bits need no slow hash.
    Column("digest", LargeBinary, nullable=False, unique=True),
    #: What the key may be used for: `Scope`. API processes that do not know scopes yet create
    #: keys with the default.
    Column("scopes", ARRAY(Text), nullable=False,
           server_default=text("'{turns,batches,admin}'")),
    time_column("created_at", default_now=True),
    time_column("revoked_at"),
)  # fmt: skip

bots = Table(
    "bots",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("instructions", Text, nullable=False, server_default=""),
    Column("params", JSONB, nullable=False, server_default="{}"),
    #: How often it was changed, and once more. Releases before this column do not count it up.
    Column("version", Integer, nullable=False, server_default=text("1")),
    #: Calls that offer the model tools are answered without them, and not refused.
    Column("ignores_tools", Boolean, nullable=False, server_default=text("false")),
    #: How it behaves in conversations: `Policies`.
    Column("policies", JSONB, nullable=False, server_default="{}"),
    time_column("created_at", default_now=True),
    #: It answers nobody any more; its conversations and turns are kept.
    time_column("deleted_at"),
    UniqueConstraint("tenant_id", "name"),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("bot_id", ForeignKey("bots.id"), nullable=False),
    Column("next_seq", Integer, nullable=False, server_default="1"),
    Column("answered_seq", Integer, nullable=False, server_default="0"),
    #: It trains no model, whatever its tenant agreed to.
    Column("refuses_training", Boolean, nullable=False, server_default=text("false")),
    #: Instead of its bot's, where given: `Policies`.
    Column("policies", JSONB),
    #: Since when, and why, a person answers instead of the bot.
    time_column("handed_off_at"),
    Column("handed_off_because", Text),
    time_column("created_at", default_now=True),
    Index("ix_conversations_handed_off_at", "handed_off_at",
          postgresql_where=text("handed_off_at IS NOT NULL")),
)  # fmt: skip

turns = Table(
    "turns",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("bot_id", Uuid, nullable=False),
    #: The bot's version when the turn was accepted; empty in turns of releases before this column.
    Column("bot_version", Integer),
    Column("model", Text, nullable=False),
    #: The lane the turn was accepted for, or replayed into; the outbox has the one it goes through.
    Column("lane", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("input", JSONB, nullable=False),
    Column("params", JSONB, nullable=False),
    Column("idempotency_key", Text),
    #: SHA-256 of what the client asked for, to tell a repeated call from a reused key.
    Column("fingerprint", LargeBinary),
    Column("batch_id", Uuid),
    Column("batch_row", Integer),
    #: Who wrote it, where a conversation has several people: a platform's id of the person.
    Column("author", Text),
    #: Whose memory it uses (`users.key`); null: nobody's, or several people's.
    Column("user_key", Text),
    #: Several messages were collected into it: nobody may cancel it alone.
    Column("is_shared", Boolean, nullable=False, server_default=text("false")),
    #: The number of the latest attempt: the fencing token.
    Column("attempt", Integer, nullable=False, server_default="0"),
    #: Attempts that count towards the limit (a hand-back at a drain does not) ...
    Column("failures", Integer, nullable=False, server_default="0"),
    #: ... and how many of them died together with their worker.
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("worker_id", Uuid),
    time_column("leased_until"),
    time_column("deadline_at"),
    Column("error_code", Text),
    Column("error_message", Text),
    time_column("accepted_at", default_now=True),
    time_column("started_at"),
    time_column("settled_at"),
    UniqueConstraint("conversation_id", "seq"),
    Index("uq_turns_tenant_id_idempotency_key", "tenant_id", "idempotency_key", unique=True,
          postgresql_where=text("idempotency_key IS NOT NULL")),
    Index("ix_turns_running", "model", postgresql_where=text("state = 'running'")),
    Index("ix_turns_waiting", "lane", postgresql_where=text("state = 'waiting'")),
    Index("ix_turns_parked", "lane", postgresql_where=text("state = 'parked'")),
    Index("ix_turns_tenant_id_user_key", "tenant_id", "user_key", "id",
          postgresql_where=text("user_key IS NOT NULL")),
    #: Mostly of releases before `user_key`: who is forgotten said these, too.
    Index("ix_turns_tenant_id_author", "tenant_id", "author", "id",
          postgresql_where=text("user_key IS NULL AND author IS NOT NULL")),
    Index("ix_turns_batch_id_batch_row", "batch_id", "batch_row",
          postgresql_where=text("batch_id IS NOT NULL")),
)  # fmt: skip

attempts = Table(
    "attempts",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Uuid, nullable=False),
    Column("lane", Text, nullable=False),
    time_column("started_at", default_now=True),
    time_column("ended_at"),
    #: answered, snoozed, cancelled, failed, handed_back, crashed (its worker died), or interrupted
    #: (its worker died, or lost sight of it, and something else than the turn explains it).
    Column("outcome", Text),
    Column("error", Text),
    #: Whether the worker that holds the conversation made it; null where no live one held it.
    Column("is_warm", Boolean),
    #: Of one that crashed or was interrupted: the position of the last chunk it left.
    Column("kept_position", Integer),
    postgresql_partition_by="RANGE (turn_id)",
)

chunks = Table(
    "chunks",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    #: Order within the reply, over all attempts: the next attempt continues the text. A gap
    #: says that what stood before it was discarded and the reply begins again.
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("token_count", Integer, nullable=False),
)

replies = Table(
    "replies",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False, server_default="0"),
    #: What the model asks to be called, and its tokens' log-probabilities: lists, where there are.
    Column("tool_calls", JSONB),
    Column("logprobs", JSONB),
    time_column("created_at", default_now=True),
    postgresql_partition_by="RANGE (turn_id)",
)

#: What prompts tell of the turns that they have no room for, where workers write summaries.
summaries = Table(
    "summaries",
    metadata,
    Column("conversation_id", Uuid, primary_key=True),
    #: The last turn that it tells of.
    Column("seq", Integer, nullable=False),
    Column("content", Text, nullable=False),
    time_column("created_at", default_now=True),
)

outbox = Table(
    "outbox",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    Column("model", Text, nullable=False),
    Column("lane", Text, nullable=False),
    time_column("due_at", default_now=True),
    #: Due whatever the clock shows: `due_at` is only its place in the lane's order.
    Column("is_immediate", Boolean, nullable=False, server_default=text("false")),
    time_column("deadline_at"),
    time_column("published_at"),
    #: The live worker that holds the conversation, if there was one when the hint was published.
    Column("worker_id", Uuid),
    #: So long the hint is in that worker's own queue only; null: in the lane's.
    time_column("own_until"),
    Index("ix_outbox_unpublished", "model", "lane", "deadline_at", "due_at",
          postgresql_where=text("published_at IS NULL")),
    Index("ix_outbox_published", "model", "lane", "published_at",
          postgresql_where=text("published_at IS NOT NULL")),
    Index("ix_outbox_due_at", "due_at",
          postgresql_where=text("published_at IS NULL AND NOT is_immediate")),
    Index("ix_outbox_own", "worker_id", postgresql_where=text("own_until IS NOT NULL")),
)  # fmt: skip

batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("bot", Text, nullable=False),
    #: The file's name, for people.
    Column("name", Text, nullable=False),
    #: SHA-256 of the file, the bot and the parameters: the same backlog is the same batch.
    Column("fingerprint", LargeBinary, nullable=False),
    Column("total", Integer, nullable=False),
    time_column("created_at", default_now=True),
    #: A claim leaves its turns alone. Those of a cancelled batch are being cancelled, or have been.
    time_column("paused_at"),
    time_column("resumed_at"),
    time_column("cancelled_at"),
    #: The row up to which its turns know of that; null: all do.
    Column("swept_row", Integer),
    #: Why it is there, where no user wants its replies (`batches/purpose.py`). Null: a backlog.
    Column("purpose", Text),
    UniqueConstraint("tenant_id", "fingerprint"),
)

#: How many turns of a batch went from one state into another, except into `running`. A trigger of
#: the database adds a row for each statement that adds turns and for each turn that changes its
#: state, so nobody waits for a common counter; workers merge the rows (`batches/moves.py`).
batch_moves = Table(
    "batch_moves",
    metadata,
    Column("batch_id", Uuid, nullable=False),
    #: Null: the turns were accepted.
    Column("old_state", Text),
    Column("new_state", Text, nullable=False),
    Column("turns", Integer, nullable=False),
    #: Of the failure that the turns came to, or left.
    Column("error_code", Text),
    #: One of the turns that failed.
    Column("turn_id", Uuid),
    #: Of their replies.
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    time_column("first_at", default_now=True),
    time_column("last_at", default_now=True),
    Column("is_merged", Boolean, nullable=False, server_default=text("false")),
    Index("ix_batch_moves_batch_id", "batch_id"),
    Index("ix_batch_moves_unmerged", "batch_id", "last_at", postgresql_where=text("NOT is_merged")),
)

worker_liveness = Table(
    "worker_liveness",
    metadata,
    Column("id", Uuid, primary_key=True),
    #: Advisory lock (class `LIVENESS_LOCK_CLASS`) that the worker's process holds while it lives.
    Column("lock_key", Integer, Identity(), nullable=False, unique=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("lanes", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    time_column("started_at", default_now=True),
    time_column("seen_at", default_now=True),
    #: Takes hints: neither standing by nor draining.
    Column("is_consuming", Boolean, nullable=False, server_default=text("true")),
    #: The release that it runs. Workers from before this column leave it empty.
    Column("version", Text),
    #: What its engine declares (`Capabilities`). Workers from before this column, and those that
    #: load their engine later, leave it empty.
    Column("capabilities", JSONB),
    #: Why it takes no hints although it is meant to: its engine is away.
    Column("unavailable_because", Text),
    #: The lanes for which it has a queue of its own. Old workers, which do not know it, have none.
    Column("own_lanes", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    #: When an operator asked it to drain, and who did.
    time_column("drain_asked_at"),
    Column("drain_asked_by", Text),
    #: Since when it drains, whoever asked for that.
    time_column("draining_since"),
    #: By lane: the turns that it ended in the last 60 s, and in the last 300 s.
    Column("ended_lately", JSONB),
)

#: Lanes whose turns nobody claims.
lane_pauses = Table(
    "lane_pauses",
    metadata,
    Column("lane", Text, primary_key=True),
    #: Empty: of all models.
    Column("model", Text, primary_key=True),
    time_column("paused_at", default_now=True),
    Column("paused_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

#: One row, made by the migration.
deployment = Table(
    "deployment",
    metadata,
    #: Part of the queues' names: deployments that share a broker do not take each other's hints.
    Column("id", Text, primary_key=True),
    #: Relays of a release that named queues without it may still run.
    Column("has_old_queues", Boolean, nullable=False),
)

#: First key of the locks under which one standby of a model takes over.
TAKEOVER_LOCK_CLASS = 0x7A12
#: Held for the length of one sweep, so that of many rescuers one works.
RESCUER_LOCK_KEY = 0x7A11_0001
#: Held for the length of one round of pruning.
PRUNER_LOCK_KEY = 0x7A11_0003
#: The `application_name` of the connection that holds it.
PRUNER_NAME = "turnmill pruner"
#: That of the connection on which a relay listens: it lasts as long as the relay.
RELAY_NAME = "turnmill relay"
