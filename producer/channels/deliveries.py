"""Deliveries, for operators: what goes out, what failed, and the two ways out of having failed."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel

from turnmill.schemas.channels.deliveries import DeliveryKind, DeliveryState
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.store.advance import lock_conversations
from turnmill.schemas.store.channels.deliveries import advance_deliveries
from turnmill.schemas.store.channels.sending import DROP_UNSENT, RETRY_FAILED

_COLUMNS = """
id, conversation_id, turn_id, channel, kind, state, attempt, failures, error_code, error_message,
    created_at, settled_at
"""


class _Row(NamedTuple):
    """The columns of `_COLUMNS`."""

    id: UUID
    conversation_id: UUID
    turn_id: UUID | None
    channel: str
    kind: str
    state: str
    attempt: int
    failures: int
    error_code: str | None
    error_message: str | None
    created_at: datetime
    settled_at: datetime | None


_LIST = f"""
SELECT {_COLUMNS} FROM deliveries
WHERE tenant_id = %(tenant)s AND (%(channel)s::text IS NULL OR channel = %(channel)s)
  AND (%(state)s::text IS NULL OR state = %(state)s) AND (%(after)s::uuid IS NULL OR id < %(after)s)
ORDER BY id DESC LIMIT %(limit)s
"""

_SHOW = f"SELECT {_COLUMNS} FROM deliveries WHERE id = %s AND tenant_id = %s"

_OF_TURNS = f"SELECT {_COLUMNS} FROM deliveries WHERE turn_id = ANY(%s) ORDER BY id DESC"

_UNSENT = f"""
SELECT {_COLUMNS} FROM deliveries
WHERE state = 'failed' AND tenant_id = %(tenant)s
  AND (turn_id = ANY(%(turns)s) OR (turn_id IS NULL AND conversation_id = %(conversation)s))
ORDER BY ordinal
"""

_FAILED = """
SELECT id FROM deliveries
WHERE tenant_id = %s AND state = 'failed' AND (%s::text IS NULL OR channel = %s)
ORDER BY ordinal
"""

_CONVERSATIONS = """
SELECT DISTINCT conversation_id AS id FROM deliveries WHERE id = ANY(%s) AND tenant_id = %s
"""


class DeliveryView(BaseModel):
    """A delivery, without what it says."""

    id: str
    conversation_id: str
    #: Null for a notice.
    turn_id: str | None
    channel: str
    kind: DeliveryKind
    state: DeliveryState
    attempts: int
    #: Of those attempts, the ones that failed.
    failures: int
    #: Of the last failure.
    error_code: str | None
    error_message: str | None
    created_at: datetime
    settled_at: datetime | None


class DeliveryPage(BaseModel):
    deliveries: list[DeliveryView]
    #: The id to send as `after` for the next page; null at the end.
    next: str | None


def list_deliveries(
    database: Database,
    tenant_id: UUID,
    *,
    channel: str | None = None,
    state: DeliveryState | None = None,
    limit: int = 50,
    after: UUID | None = None,
) -> DeliveryPage:
    """One page of a tenant's deliveries, the latest first."""
    params = {"tenant": tenant_id, "channel": channel, "state": state, "after": after}
    rows = database.fetch(_Row, _LIST, params | {"limit": limit + 1})
    shown = [_view(row) for row in rows[:limit]]
    return DeliveryPage(deliveries=shown, next=shown[-1].id if len(rows) > limit else None)


def read_delivery(database: Database, tenant_id: UUID, delivery_id: UUID) -> DeliveryView:
    """Raises `NotFound`: the tenant has no such delivery."""
    rows = database.fetch(_Row, _SHOW, (delivery_id, tenant_id))
    if not rows:
        raise NotFound("There is no such delivery.")
    return _view(rows[0])


def deliveries_of(database: Database, turn_ids: Sequence[UUID]) -> list[DeliveryView]:
    """The deliveries of turns' replies, of all tenants. Those of the API have none."""
    return [_view(row) for row in database.fetch(_Row, _OF_TURNS, (list(turn_ids),))]


def failed_of(
    database: Database, tenant_id: UUID, conversation_id: UUID, turn_ids: Sequence[UUID]
) -> list[DeliveryView]:
    """What of a conversation did not reach its channel: replies to these turns, and notices, which
    a person's answers are; the oldest first.
    """
    params = {"tenant": tenant_id, "conversation": conversation_id, "turns": list(turn_ids)}
    return [_view(row) for row in database.fetch(_Row, _UNSENT, params)]


def find_failed(database: Database, tenant_id: UUID, channel: str | None = None) -> list[UUID]:
    """The failed deliveries of a tenant, and of one channel if given, the oldest first."""
    return [row.id for row in database.fetch(Id, _FAILED, (tenant_id, channel, channel))]


def retry_deliveries(database: Database, tenant_id: UUID, ids: Sequence[UUID]) -> list[UUID]:
    """Queue failed deliveries again, with all their attempts; those that were failed."""
    return _change(database, tenant_id, ids, RETRY_FAILED)


def drop_deliveries(database: Database, tenant_id: UUID, ids: Sequence[UUID]) -> list[UUID]:
    """Give up queued or failed deliveries; those that were."""
    return _change(database, tenant_id, ids, DROP_UNSENT)


def _change(database: Database, tenant_id: UUID, ids: Sequence[UUID], statement: str) -> list[UUID]:
    """Raises `NotFound` if the tenant has none of them."""
    with database.cursor() as cursor:
        found = fetch(cursor, Id, _CONVERSATIONS, (list(ids), tenant_id))
        if ids and not found:
            raise NotFound("There is no such delivery.")
        conversation_ids = [row.id for row in found]
        lock_conversations(cursor, conversation_ids)
        params = {"deliveries": list(ids), "tenant": tenant_id}
        changed_ids = [row.id for row in fetch(cursor, Id, statement, params)]
        advance_deliveries(cursor, conversation_ids)
    return changed_ids


def _view(row: _Row) -> DeliveryView:
    return DeliveryView(
        id=show_id(Prefix.DELIVERY, row.id),
        conversation_id=show_id(Prefix.CONVERSATION, row.conversation_id),
        turn_id=None if row.turn_id is None else show_id(Prefix.TURN, row.turn_id),
        channel=row.channel,
        kind=DeliveryKind(row.kind),
        state=DeliveryState(row.state),
        attempts=row.attempt,
        failures=row.failures,
        error_code=row.error_code,
        error_message=row.error_message,
        created_at=row.created_at,
        settled_at=row.settled_at,
    )
