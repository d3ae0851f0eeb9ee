"""Replies that PostgreSQL holds."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.evaluation.said import Said
from turnmill.schemas.ids import Prefix, first_id, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.batches.purpose import IS_OF_USERS
from turnmill.schemas.turns import FinishReason, TurnState

#: Replies of a page: no transaction stays open while a page is measured.
_PAGE = 1000

_ANSWERED = f"""
SELECT t.id, t.conversation_id, b.name AS bot, t.model, n.name AS tenant, t.accepted_at,
    r.content, r.finish_reason
FROM turns t JOIN replies r ON r.turn_id = t.id JOIN bots b ON b.id = t.bot_id
JOIN tenants n ON n.id = t.tenant_id
WHERE t.state = '{TurnState.COMPLETED}' AND t.id > %(after)s
  AND {IS_OF_USERS}
  AND (%(tenant)s::uuid IS NULL OR t.tenant_id = %(tenant)s)
  AND (%(bot)s::text IS NULL OR b.name = %(bot)s)
  AND (%(model)s::text IS NULL OR t.model = %(model)s)
ORDER BY t.id LIMIT %(limit)s
"""


class _AnsweredRow(NamedTuple):
    """A row of `_ANSWERED`."""

    id: UUID
    conversation_id: UUID
    bot: str
    model: str
    tenant: str
    accepted_at: datetime
    content: str
    finish_reason: FinishReason


def stored_replies(
    database: Database,
    tenant_id: UUID | None,
    *,
    since: datetime | None = None,
    bot: str | None = None,
    model: str | None = None,
    references: Mapping[str, str] | None = None,
) -> Iterator[Said]:
    """Yield the replies of a tenant's completed turns, the oldest first.

    Args:
        tenant_id: None yields those of all tenants.
        since: only turns accepted from then on.
        references: what should have been said, by the turn's id as it is shown.
    """
    params = {"tenant": tenant_id, "bot": bot, "model": model, "limit": _PAGE}
    after = first_id(since) if since else UUID(int=0)
    while rows := database.fetch(_AnsweredRow, _ANSWERED, {**params, "after": after}):
        for row in rows:
            yield Said(
                text=row.content,
                reference=(references or {}).get(show_id(Prefix.TURN, row.id)),
                conversation=row.conversation_id.hex,
                bot=row.bot,
                model=row.model,
                tenant=row.tenant,
                said_at=row.accepted_at,
                is_cut=row.finish_reason == "length",
            )
        after = rows[-1].id
