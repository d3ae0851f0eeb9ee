"""Conversations: how one stands when something is said in it, and its policies."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import NotFound, UnknownBot
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.channels.deliveries import INSERT_NOTICE, advance_deliveries


class _Row(NamedTuple):
    """What `_LOCK` and `_BEGIN` read of a conversation and its bot."""

    id: UUID
    tenant_id: UUID
    next_seq: int
    handed_off_at: datetime | None
    policies: dict[str, object] | None
    bot: str
    bot_policies: dict[str, object] | None


_LOCK = """
SELECT c.id, c.tenant_id, c.next_seq, c.handed_off_at, c.policies, b.name AS bot,
    b.policies AS bot_policies
FROM conversations c JOIN bots b ON b.id = c.bot_id WHERE c.id = %s FOR UPDATE OF c
"""

_BEGIN = """
WITH begun AS (
    INSERT INTO conversations (id, tenant_id, bot_id)
    SELECT %s, tenant_id, id FROM bots
    WHERE tenant_id = %s AND name = %s AND deleted_at IS NULL
    ON CONFLICT DO NOTHING
    RETURNING id, tenant_id, bot_id, next_seq, handed_off_at, policies
)
SELECT c.id, c.tenant_id, c.next_seq, c.handed_off_at, c.policies, b.name AS bot,
    b.policies AS bot_policies
FROM begun c JOIN bots b ON b.id = c.bot_id
"""

_STATE = """
SELECT handed_off_at, handed_off_because, policies FROM conversations
WHERE id = %s AND tenant_id = %s
"""

_SET_POLICIES = """
UPDATE conversations SET policies = %s WHERE id = %s AND tenant_id = %s RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A conversation as the next message finds it. It stays so until the transaction ends."""

    conversation_id: UUID
    tenant_id: UUID
    bot: str
    #: The conversation's own over its bot's; the defaults complete them.
    policies: Policies
    #: The number of its last turn; 0 where there is none.
    last_seq: int
    is_handed_off: bool

    @classmethod
    def of(cls, row: _Row) -> "Standing":
        return cls(
            row.id,
            row.tenant_id,
            row.bot,
            Policies.of(row.policies).over(Policies.of(row.bot_policies)),
            row.next_seq - 1,
            row.handed_off_at is not None,
        )


def lock_standing(cursor: Cursor, conversation_id: UUID) -> Standing | None:
    """Lock a conversation; None if there is none. Whoever accepts or ends a turn locks it too."""
    rows = fetch(cursor, _Row, _LOCK, (conversation_id,))
    return Standing.of(rows[0]) if rows else None


def begin(cursor: Cursor, tenant_id: UUID, bot: str, conversation_id: UUID) -> Standing:
    """Begin a conversation and lock it. Raises `UnknownBot`."""
    rows = fetch(cursor, _Row, _BEGIN, (conversation_id, tenant_id, bot))
    standing = Standing.of(rows[0]) if rows else lock_standing(cursor, conversation_id)
    if standing is None:
        raise UnknownBot(f"There is no bot or model '{bot}'.", param="model")
    return standing


class State(NamedTuple):
    """Who answers a conversation, and the policies of its own."""

    handed_off_at: datetime | None
    handed_off_because: str | None
    policies: dict[str, object] | None


def read_state(database: Database, tenant_id: UUID, conversation_id: UUID) -> State:
    """Raises `NotFound`."""
    rows = database.fetch(State, _STATE, (conversation_id, tenant_id))
    if not rows:
        raise NotFound("There is no such conversation.")
    return rows[0]


def set_policies(
    database: Database, tenant_id: UUID, conversation_id: UUID, policies: Policies | None
) -> None:
    """Give a conversation policies over its bot's, or take them back. Raises `NotFound`."""
    stored = None if policies is None else Jsonb(policies.stored)
    if not database.run(_SET_POLICIES, (stored, conversation_id, tenant_id)):
        raise NotFound("There is no such conversation.")


def say(cursor: Cursor, conversation_id: UUID, text: str) -> None:
    """Owe the thread of a conversation, if it has one, a text of the bot's own."""
    params = {"id": new_id(), "conversation": conversation_id, "content": text}
    if cursor.execute(INSERT_NOTICE, params).fetchone():
        advance_deliveries(cursor, [conversation_id])
