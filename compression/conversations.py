"""Reads a tenant's own conversations out of PostgreSQL, with personal data masked."""

import shlex
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

from turnmill.compression.texts import Conversation
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.safety.personal import mask_broadly
from turnmill.schemas.store.batches.purpose import IS_OF_USERS
from turnmill.schemas.turns import Message

#: Conversations of one tenant, at most: the newest.
MOST = 5000


class _Tenant(NamedTuple):
    id: UUID
    allows_training: bool


_TENANT = "SELECT id, allows_training FROM tenants WHERE name = %s"


class _Answered(NamedTuple):
    conversation_id: UUID
    input: list[object]
    content: str


#: Ids of conversations begin with the time, so that the largest are the newest.
_ANSWERED = f"""
SELECT t.conversation_id, t.input, r.content
FROM (SELECT id FROM conversations
      WHERE tenant_id = %s AND answered_seq > 0 AND NOT refuses_training
      ORDER BY id DESC LIMIT %s) c
JOIN turns t ON t.conversation_id = c.id JOIN replies r ON r.turn_id = t.id
-- Nothing is learnt from what was erased, nor from a reply that only calls tools.
WHERE t.state = 'completed' AND r.content <> '' AND {IS_OF_USERS}
ORDER BY t.conversation_id, t.seq
"""


def tenant_conversations(database: Database, tenant: str, most: int = MOST) -> list[Conversation]:
    """Return the newest answered conversations of a tenant that agreed to this use.

    Conversations that refuse it are left out.

    Raises:
        NotFound: there is no such tenant.
        InvalidInput: it has not agreed, or no answered conversation is left.
    """
    rows = database.fetch(_Tenant, _TENANT, (tenant,))
    if not rows:
        raise NotFound(f"There is no tenant '{tenant}'. See: turnmill tenants list")
    if not rows[0].allows_training:
        raise InvalidInput(
            f"The tenant '{tenant}' has not agreed that its conversations train models. Once it "
            f"has: turnmill tenants training {shlex.quote(tenant)} --allow",
            param="tenant",
        )
    turns = database.fetch(_Answered, _ANSWERED, (rows[0].id, most))
    if not turns:
        raise InvalidInput(
            f"The tenant '{tenant}' has no answered conversation that may train models.",
            param="tenant",
        )
    return [
        Conversation(show_id(Prefix.CONVERSATION, key), tuple(_messages(group)))
        for key, group in groupby(turns, key=lambda row: row.conversation_id)
    ]


def _messages(turns: Iterable[_Answered]) -> Iterable[dict[str, str]]:
    for turn in turns:
        for message in map(Message.model_validate, turn.input):
            yield {"role": message.role.value, "content": mask_broadly(message.text)}
        yield {"role": "assistant", "content": mask_broadly(turn.content)}
