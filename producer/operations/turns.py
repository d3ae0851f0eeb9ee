"""Turns for operators: listed by what they have in common, and found by any name they have.

Of all tenants, unless one is named. What was asked and answered is not read.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from turnmill.producer.channels.slack.events import threads_of_link
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, first_id, id_range, parse_id, show_id, time_of
from turnmill.schemas.parked import Name
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import bots, tenants, turns
from turnmill.schemas.turns import Lane, TurnState

#: A page looks at so many turns at most, whatever the filters let through.
LOOKED_AT = 200_000
#: Turns found by one name, at most.
MOST_FOUND = 50

#: States of few turns, which have indexes of their own: such a page looks at all of them.
_RARE = (TurnState.RUNNING, TurnState.PARKED)

_LISTED = (
    sa.select(
        turns.c.id, turns.c.conversation_id, turns.c.seq, tenants.c.name.label("tenant"),
        bots.c.name.label("bot"), turns.c.model, turns.c.lane, turns.c.state, turns.c.attempt,
        turns.c.error_code, turns.c.error_message, turns.c.batch_id, turns.c.accepted_at,
        turns.c.started_at, turns.c.settled_at,
    )
    .join(bots, bots.c.id == turns.c.bot_id)
    .join(tenants, tenants.c.id == turns.c.tenant_id)
    .order_by(turns.c.id.desc())
)  # fmt: skip


def _by_channel(table: str, key: str, found: str) -> str:
    """Build a statement that looks a key up in each channel, by the index that the channel leads.

    The statement's columns are the channel's name and the row's `found`.
    """
    return f"""
WITH RECURSIVE channels (channel) AS (
    (SELECT channel FROM {table} ORDER BY channel LIMIT 1)
    UNION ALL
    SELECT (SELECT t.channel FROM {table} t WHERE t.channel > channels.channel
            ORDER BY t.channel LIMIT 1)
    FROM channels WHERE channels.channel IS NOT NULL
)
SELECT t.channel, t.{found} AS id FROM channels JOIN {table} t
    ON t.channel = channels.channel AND t.{key} = %s
WHERE t.{found} IS NOT NULL
"""


_THREADS = _by_channel("channel_threads", "thread", "conversation_id")
_EVENTS = _by_channel("channel_events", "event_id", "turn_id")

#: The key's index leads with the tenant.
_KEYS = """
SELECT t.id FROM tenants, turns t
WHERE t.tenant_id = tenants.id AND t.idempotency_key = %s
"""


#: A notice belongs to a conversation alone.
_DELIVERY = "SELECT turn_id, conversation_id FROM deliveries WHERE id = %s"


class TurnFilter(BaseModel):
    """Which turns; what is left out does not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: Name | None = None
    state: TurnState | None = None
    lane: Lane | None = None
    model: Name | None = None
    bot: Name | None = None
    error_code: Name | None = None
    #: Accepted before this time.
    before: datetime | None = None


class ListedTurn(BaseModel):
    """A turn without its dialogue."""

    model_config = ConfigDict(frozen=True)

    turn_id: str
    conversation_id: str
    #: Its number within the conversation, from 1.
    seq: int
    tenant: str
    bot: str
    model: str
    lane: Lane
    state: TurnState
    attempts: int
    error_code: str | None
    error_message: str | None
    batch_id: str | None
    accepted_at: datetime
    started_at: datetime | None
    settled_at: datetime | None
    #: What it was found by, where it was looked for.
    found_by: str | None = None


class TurnPage(BaseModel):
    """Some turns, the latest accepted first."""

    model_config = ConfigDict(frozen=True)

    turns: list[ListedTurn]
    #: The next page begins after this turn; null on the last one.
    next: str | None
    #: The page ended here without being full, because it looks at so many turns and no more.
    looked_back_to: datetime | None


class _ListedRow(NamedTuple):
    """A row of `_LISTED`."""

    id: UUID
    conversation_id: UUID
    seq: int
    tenant: str
    bot: str
    model: str
    lane: str
    state: str
    attempt: int
    error_code: str | None
    error_message: str | None
    batch_id: UUID | None
    accepted_at: datetime
    started_at: datetime | None
    settled_at: datetime | None


class _Named(NamedTuple):
    """A row of `_THREADS` and `_EVENTS`."""

    channel: str
    id: UUID


class _Key(NamedTuple):
    """A row of `_KEYS`."""

    id: UUID


class _Delivery(NamedTuple):
    """A row of `_DELIVERY`."""

    turn_id: UUID | None
    conversation_id: UUID


def list_turns(
    database: Database, wanted: TurnFilter, *, limit: int = 50, after: UUID | None = None
) -> TurnPage:
    """List a page of turns; a page reads a bounded number of them. Raises `DatabaseUnavailable`."""
    starts = [each for each in (after, first_id(wanted.before) if wanted.before else None) if each]
    below = [turns.c.id < min(starts)] if starts else []
    with database.begin() as connection:
        floor = None
        if wanted.state not in _RARE:
            last = sa.select(turns.c.id).where(*below).order_by(turns.c.id.desc())
            floor = connection.execute(last.offset(LOOKED_AT).limit(1)).scalar_one_or_none()
        above = [] if floor is None else [turns.c.id >= floor]
        page = _LISTED.where(*_conditions(wanted), *below, *above).limit(limit + 1)
        rows = typed(_ListedRow, connection.execute(page))
    shown = [_listed(row) for row in rows[:limit]]
    if len(rows) > limit:
        return TurnPage(turns=shown, next=shown[-1].turn_id, looked_back_to=None)
    if floor is None:
        return TurnPage(turns=shown, next=None, looked_back_to=None)
    return TurnPage(turns=shown, next=show_id(Prefix.TURN, floor), looked_back_to=time_of(floor))


def find_turns(database: Database, text: str, *, tenant: str | None = None) -> list[ListedTurn]:
    """Find turns by what somebody knows of them, the latest first; at most `MOST_FOUND`.

    `text` is a turn's or conversation's id or its start, an idempotency key, a delivery's id, the
    id that a platform gives to a thread or to an event, or a link to a message in Slack.

    Raises:
        DatabaseUnavailable: nobody knows.
    """
    found: dict[str, ListedTurn] = {}
    for by, conditions in _names(database, text):
        query = _LISTED.where(*conditions, *_conditions(TurnFilter(tenant=tenant)))
        with database.begin() as connection:
            rows = typed(_ListedRow, connection.execute(query.limit(MOST_FOUND)))
        for row in rows:
            shown = _listed(row, by)
            found.setdefault(shown.turn_id, shown)
    newest_first = sorted(found.values(), key=lambda turn: turn.turn_id, reverse=True)
    return newest_first[:MOST_FOUND]


def _names(database: Database, text: str) -> list[tuple[str, Sequence[sa.ColumnElement[bool]]]]:
    """What the text may be the name of, with the condition for its turns."""
    names: list[tuple[str, Sequence[sa.ColumnElement[bool]]]] = []
    if turn_ids := _range(Prefix.TURN, text):
        names.append(("id", [turns.c.id.between(*turn_ids)]))
    if conversation_ids := _range(Prefix.CONVERSATION, text):
        names.append(("conversation", [turns.c.conversation_id.between(*conversation_ids)]))
    if keys := database.fetch(_Key, _KEYS, (text,)):
        names.append(("idempotency key", [turns.c.id.in_([key.id for key in keys])]))
    for thread in (text, *threads_of_link(text)):
        for row in database.fetch(_Named, _THREADS, (thread,)):
            names.append((f"thread of {row.channel}", [turns.c.conversation_id == row.id]))
    for row in database.fetch(_Named, _EVENTS, (text,)):
        names.append((f"event of {row.channel}", [turns.c.id == row.id]))
    return names + _by_delivery(database, text)


def _by_delivery(
    database: Database, text: str
) -> list[tuple[str, Sequence[sa.ColumnElement[bool]]]]:
    """The turn of a delivery; of a notice all turns of its conversation."""
    try:
        delivery_id = parse_id(Prefix.DELIVERY, text)
    except InvalidInput:
        return []
    return [
        ("delivery", [turns.c.id == row.turn_id])
        if row.turn_id is not None
        else ("notice", [turns.c.conversation_id == row.conversation_id])
        for row in database.fetch(_Delivery, _DELIVERY, (delivery_id,))
    ]


def _range(prefix: Prefix, text: str) -> tuple[UUID, UUID] | None:
    """The ids that start like this; None if none can."""
    try:
        return id_range(prefix, text)
    except InvalidInput:
        return None


def _conditions(wanted: TurnFilter) -> list[sa.ColumnElement[bool]]:
    columns = {
        "tenant": tenants.c.name,
        "lane": turns.c.lane,
        "model": turns.c.model,
        "bot": bots.c.name,
        "error_code": turns.c.error_code,
    }
    given = wanted.model_dump(exclude_none=True)
    conditions = [columns[name] == given[name] for name in columns if name in given]
    if wanted.state is not None:
        # Spelled out, not bound: PostgreSQL must see that a partial index is enough.
        conditions.append(turns.c.state == sa.literal_column(f"'{wanted.state}'"))
    return conditions


def _listed(row: _ListedRow, found_by: str | None = None) -> ListedTurn:
    return ListedTurn(
        turn_id=show_id(Prefix.TURN, row.id),
        conversation_id=show_id(Prefix.CONVERSATION, row.conversation_id),
        seq=row.seq,
        tenant=row.tenant,
        bot=row.bot,
        model=row.model,
        lane=Lane(row.lane),
        state=TurnState(row.state),
        attempts=row.attempt,
        error_code=row.error_code,
        error_message=row.error_message,
        batch_id=show_id(Prefix.BATCH, row.batch_id) if row.batch_id else None,
        accepted_at=row.accepted_at,
        started_at=row.started_at,
        settled_at=row.settled_at,
        found_by=found_by,
    )
