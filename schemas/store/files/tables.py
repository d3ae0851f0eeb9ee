"""Files: what is known of them, and what was read of them. Their bytes are in the storage
(`schemas/files`).

The bytes of an upload or of a message's part are published before the transaction that inserts the
row; those of what a channel fetches in it, and it is the row's transaction that deletes bytes. A
process that dies in between leaves bytes without a row, or a row without bytes; retention deletes
either.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from turnmill.schemas.store.tables import metadata, time_column

files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    #: As its owner calls it, for people: no path is ever made of it.
    Column("name", Text, nullable=False),
    #: What it was uploaded for (`Purpose`).
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    #: As its content begins, whatever its owner said.
    Column("mime", Text, nullable=False),
    time_column("created_at", default_now=True),
    #: Where its bytes are still to be fetched from, by the delivery process of that channel:
    #: `{"channel", "kind", "ref"}`. Null: they are in the storage.
    Column("source", JSONB),
    #: When that is tried next, and how often it was tried.
    time_column("fetch_at"),
    Column("fetches", Integer, nullable=False, server_default=text("0")),
    #: Retention deletes it then; null: nobody does.
    time_column("expires_at"),
    Index("ix_files_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
    Index("ix_files_fetch_at", "fetch_at", postgresql_where=text("source IS NOT NULL")),
    Index("ix_files_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

#: Files, or bytes without a row, whose deletion failed (`undeleted.py`).
undeleted_files = Table(
    "undeleted_files",
    metadata,
    Column("file_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    #: What went wrong the last time, and what the operator can do about it.
    Column("reason", Text, nullable=False),
    Column("remedy", Text, nullable=False, server_default=""),
    Column("failures", Integer, nullable=False, server_default=text("1")),
    time_column("failed_at", default_now=True),
    time_column("tried_at", default_now=True),
    #: When it is tried again.
    time_column("due_at", nullable=False),
)

#: What was read of a turn's sounds and images. Its first attempt decides, so that a later one
#: continues the answer to the same words.
turn_readings = Table(
    "turn_readings",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    #: `Reading`s.
    Column("readings", JSONB, nullable=False),
    time_column("created_at", default_now=True),
)

#: Sounds that calls wait for to be transcribed. A row goes with its file, when the call has ended.
transcriptions = Table(
    "transcriptions",
    metadata,
    Column("file_id", Uuid, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    #: What the call says of the sound (`Hints`).
    Column("language", Text),
    Column("prompt", Text),
    #: When a worker may take it; while one transcribes it, the end of its lease. Null: it ended.
    time_column("due_at"),
    #: When its call stops waiting.
    time_column("wanted_until", default_now=True),
    #: Counts claims and hand-backs; the number fences all that a worker writes.
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    #: Claims that were not handed back: their workers died, but for the one that transcribes now.
    Column("tries", Integer, nullable=False, server_default=text("0")),
    #: Attempts at which the transcriber failed, perhaps because of the sound.
    Column("failures", Integer, nullable=False, server_default=text("0")),
    #: A `Transcript`, or why there is none; while it waits for another attempt, why it does.
    Column("transcript", JSONB),
    Column("error_code", Text),
    Column("error_message", Text),
    #: The field of the call at fault.
    Column("error_param", Text),
    Index("ix_transcriptions_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),
)
