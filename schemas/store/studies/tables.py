"""The tables of studies: people rate replies, and do not learn who wrote them.

Invariants:

* an assignment is completed exactly while it has a rating for each dimension of its study;
* at most `study_items.wanted` raters have completed an item or hold its lease.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from turnmill.schemas.store.tables import metadata, time_column

studies = Table(
    "studies",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    #: likert (one reply, 1 to 5) or pairwise (two replies, which is better).
    Column("kind", Text, nullable=False),
    Column("dimensions", ARRAY(Text), nullable=False),
    #: Of the items' order, the sides of pairs, and which items come twice.
    Column("seed", BigInteger, nullable=False),
    time_column("created_at", default_now=True),
    time_column("closed_at"),
    UniqueConstraint("tenant_id", "name"),
)


def _of_study() -> Column[object]:
    return Column("study_id", ForeignKey("studies.id", ondelete="CASCADE"), nullable=False)


study_items = Table(
    "study_items",
    metadata,
    Column("id", Uuid, primary_key=True),
    _of_study(),
    #: Raters see the items in this order.
    Column("position", Integer, nullable=False),
    #: `Message`s, up to the one that is answered.
    Column("prompt", JSONB, nullable=False),
    #: What raters see: one reply, or two.
    Column("left_text", Text, nullable=False),
    Column("right_text", Text),
    #: Of a pair: whether the reply at the left is the one of source `a`.
    Column("left_is_a", Boolean),
    #: Who wrote the replies: no rater is shown it.
    Column("source", JSONB, nullable=False, server_default=text("'{}'")),
    #: The item that it shows again, to one who has rated that one.
    Column("repeat_of", Uuid),
    #: How many raters it needs.
    Column("wanted", Integer, nullable=False),
    UniqueConstraint("study_id", "position"),
    #: Of the turn that it shows.
    Index("ix_study_items_turn_id", text("(source ->> 'turn_id')")),
)

study_raters = Table(
    "study_raters",
    metadata,
    Column("id", Uuid, primary_key=True),
    _of_study(),
    Column("name", Text, nullable=False),
    #: SHA-256 of the secret in the rater's link: 256 random bits need no slow hash.
    Column("digest", LargeBinary, unique=True),
    time_column("expires_at"),
    time_column("created_at", default_now=True),
    UniqueConstraint("study_id", "name"),
)

study_assignments = Table(
    "study_assignments",
    metadata,
    Column("item_id", ForeignKey("study_items.id", ondelete="CASCADE"), primary_key=True),
    Column("rater_id", ForeignKey("study_raters.id", ondelete="CASCADE"), primary_key=True),
    time_column("leased_until", nullable=False),
    time_column("completed_at"),
    #: From when the item was first shown until it was rated.
    Column("seconds", Float),
    Column("comment", Text),
    time_column("created_at", default_now=True),
    Index("ix_study_assignments_rater_id", "rater_id"),
)

study_ratings = Table(
    "study_ratings",
    metadata,
    Column("item_id", ForeignKey("study_items.id", ondelete="CASCADE"), primary_key=True),
    Column("rater_id", ForeignKey("study_raters.id", ondelete="CASCADE"), primary_key=True),
    Column("dimension", Text, primary_key=True),
    #: 1 to 5; of a pair, as seen: -1 the left one is better, 0 neither, 1 the right one.
    Column("value", SmallInteger, nullable=False),
)
