"""The tables of what is remembered of users.

Invariants:

* a user has at most one fact of a key that is in force (not superseded, not proposed), and at most
  one that is proposed;
* what a turn was told of its user stands in `turn_memory` before its reply begins;
* while an erasure is not done, something of its user may still be there.
"""

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from turnmill.schemas.store.tables import metadata, time_column

users = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    #: Where the user comes from, and the id there: `api:4711`, `acme-slack:U0ADA`.
    Column("key", Text, nullable=False),
    #: Texts by name: how the user wants to be answered.
    Column("preferences", JSONB, nullable=False, server_default="{}"),
    #: Whether turns are told of the user. Null: nobody has decided it.
    Column("memory_on", Boolean),
    #: When the user agreed to that.
    time_column("consent_at"),
    time_column("created_at", default_now=True),
    UniqueConstraint("tenant_id", "key"),
)

facts = Table(
    "facts",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("key", Text, nullable=False),
    Column("value", Text, nullable=False),
    #: explicit (somebody said it), proposed (a model did), or confirmed (and the user agreed).
    Column("source", Text, nullable=False),
    #: Of which turn it is; null: of no turn, but of a call or a command.
    Column("turn_id", Uuid),
    #: The fact that replaced it.
    Column("superseded_by", Uuid),
    time_column("created_at", default_now=True),
    Index("uq_facts_in_force", "user_id", "key", unique=True,
          postgresql_where=text("superseded_by IS NULL AND source <> 'proposed'")),
    Index("uq_facts_proposed", "user_id", "key", unique=True,
          postgresql_where=text("superseded_by IS NULL AND source = 'proposed'")),
    Index("ix_facts_user_id", "user_id"),
)  # fmt: skip

#: What a turn was told of its user. Its first attempt decides, so that a later one continues the
#: same answer, whatever was remembered or forgotten meanwhile.
turn_memory = Table(
    "turn_memory",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    #: `Remembered`.
    Column("remembered", JSONB, nullable=False),
    time_column("created_at", default_now=True),
)

#: Users who were forgotten. By a hash: who they were is not kept. A copy outside the database
#: (`ledger.py`) lets a restored backup forget them again.
erasures = Table(
    "erasures",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    #: SHA-256 of the tenant's id and the user's key (`key_hash`).
    Column("key_hash", LargeBinary, primary_key=True),
    #: What was said until then is erased.
    time_column("at", default_now=True),
    #: The user's key, until all is erased.
    Column("key", Text),
    time_column("done_at"),
    Index("ix_erasures_open", "at", postgresql_where=text("done_at IS NULL")),
)

#: Files of turns that were erased. Each is deleted, unless a turn that is left refers to it
#: (`orphans.py`).
erased_files = Table(
    "erased_files",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("file_id", Uuid, primary_key=True),
    #: No turn up to this id refers to the file. Null: none was looked at yet.
    Column("searched_to", Uuid),
    #: Likewise, when its deletion failed (`undeleted_files`): where the next search begins.
    Column("cleared_to", Uuid),
    #: Whose erasures are not done before (`key_hash`).
    Column("asked_by", ARRAY(LargeBinary), nullable=False, server_default=text("'{}'")),
)
