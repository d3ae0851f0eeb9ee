"""Replay and drop: the two ways out of being parked.

A parked turn ended with a visible error, and its conversation continued. Replaying puts it back
into its place, which is only possible while nothing after it has been answered: whatever was
answered later was answered without it, and a reply in between would rewrite what was said.
Dropping leaves everything as its user saw it: the turn has failed, with the error it had.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.operations.remedies import tenant_option
from turnmill.schemas.errors import (
    HandedOff,
    LaterTurnAnswered,
    LaterTurnRunning,
    NotFound,
    NotParked,
    TurnmillError,
)
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.channels.deliveries import RENEW_DELIVERIES
from turnmill.schemas.store.replay import DROP, REPLAY
from turnmill.schemas.turns import Lane, TurnState

#: Turns changed in one transaction, or a few more: conversations are not torn apart.
CHUNK_TURNS = 200

_FIND = "SELECT id, conversation_id FROM turns WHERE id = ANY(%s) AND tenant_id = %s ORDER BY id"

#: What is due after a turn that is to be replayed. A conversation has at most one such turn, and
#: while it is locked no other can become it.
_DUE = """
SELECT due.id FROM turns t JOIN turns due USING (conversation_id)
WHERE t.id = ANY(%s) AND due.seq > t.seq AND due.state IN ('queued', 'running')
"""

#: With the later turn that is in the way. A queued one is not, unless readers have seen the
#: beginning of its reply; one that has been answered is worse than one that is being answered.
#: Numbers that are missing were answered for all we know: parked turns may be kept longer.
_FORESEE = """
SELECT t.id, t.conversation_id, t.seq, t.state, c.handed_off_at, later.seq AS later_seq,
    later.state AS later_state, c.next_seq - 1 - t.seq > (
        SELECT count(*) FROM turns WHERE conversation_id = c.id AND seq > t.seq
    ) AS is_later_missing, tenants.name AS tenant
FROM turns t JOIN conversations c ON c.id = t.conversation_id
JOIN tenants ON tenants.id = t.tenant_id LEFT JOIN LATERAL (
    SELECT l.seq, l.state FROM turns l
    WHERE l.conversation_id = t.conversation_id AND l.seq > t.seq
      AND (l.state IN ('completed', 'handed_off', 'running')
           OR l.state = 'queued' AND EXISTS (SELECT 1 FROM chunks WHERE turn_id = l.id))
    ORDER BY l.state IN ('queued', 'running'), l.seq LIMIT 1
) AS later ON true
WHERE t.id = ANY(%s) ORDER BY t.conversation_id, t.seq
"""

_STATES = "SELECT id, conversation_id, seq, state FROM turns WHERE id = ANY(%s) ORDER BY id"


class _Found(NamedTuple):
    """A row of `_FIND`."""

    id: UUID
    conversation_id: UUID


class _Stands(NamedTuple):
    """A row of `_STATES`."""

    id: UUID
    conversation_id: UUID
    seq: int
    state: str


class _Foreseen(NamedTuple):
    """A row of `_FORESEE`."""

    id: UUID
    conversation_id: UUID
    seq: int
    state: str
    handed_off_at: datetime | None
    later_seq: int | None
    later_state: str | None
    is_later_missing: bool
    tenant: str


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a turn that was to be replayed or dropped."""

    turn_id: UUID
    conversation_id: UUID
    seq: int
    #: The state it is in now.
    state: TurnState
    #: Why nothing changed.
    refusal: TurnmillError | None = None


def foresee(database: Database, tenant_id: UUID, turn_ids: Sequence[UUID]) -> list[Change]:
    """What `replay` would refuse at this moment; changes nothing.

    Raises:
        NotFound: the tenant has no such turn.
    """
    changes: list[Change] = []
    for _, chunk in _chunks(_find(database, tenant_id, turn_ids)):
        with database.cursor() as cursor:
            changes += _foresee(cursor, chunk)
    return changes


def replay(
    database: Database,
    tenant_id: UUID,
    turn_ids: Sequence[UUID],
    *,
    into: Lane | None = None,
    states: Collection[TurnState] = (TurnState.PARKED,),
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Change]:
    """Put parked turns back into their places, to be answered as if for the first time.

    Several turns of a conversation are answered in their order. `into` is the lane they go
    through, their own when left out; turns in other states than `states` are refused. `on_done`
    receives the number of turns checked so far.

    Raises:
        NotFound: the tenant has no such turn; nothing changed.
        DatabaseUnavailable: those looked at so far are replayed; the rest may be again.
    """
    changes: list[Change] = []
    for conversation_ids, chunk in _chunks(_find(database, tenant_id, turn_ids)):
        with database.cursor() as cursor:
            changes += _replay(cursor, conversation_ids, chunk, into, states)
        on_done(len(changes))
    return changes


def drop(
    database: Database,
    tenant_id: UUID,
    turn_ids: Sequence[UUID],
    *,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Change]:
    """Give parked turns up: they have failed, with the error that they had. Raises like `replay`.

    Their conversations continued when they were parked, so nothing else changes.
    """
    changes: list[Change] = []
    for _, chunk in _chunks(_find(database, tenant_id, turn_ids)):
        with database.cursor() as cursor:
            lock_turns(cursor, chunk)
            dropped = {row.id for row in fetch(cursor, Id, DROP, (chunk,))}
            changes += [
                _change(row, None if row.id in dropped else _not_parked(row))
                for row in fetch(cursor, _Stands, _STATES, (chunk,))
            ]
        on_done(len(changes))
    return changes


def _find(database: Database, tenant_id: UUID, turn_ids: Sequence[UUID]) -> list[_Found]:
    rows = database.fetch(_Found, _FIND, (list(turn_ids), tenant_id))
    if missing := set(turn_ids) - {row.id for row in rows}:
        raise NotFound(f"There is no turn {show_id(Prefix.TURN, min(missing))}.")
    return rows


def _chunks(rows: list[_Found]) -> Iterator[tuple[list[UUID], list[UUID]]]:
    """Conversations and the turns in them, the conversation with the oldest turn first."""
    oldest: dict[UUID, UUID] = {}
    for row in rows:
        oldest.setdefault(row.conversation_id, row.id)
    rows = sorted(rows, key=lambda row: oldest[row.conversation_id])
    conversation_ids: list[UUID] = []
    turn_ids: list[UUID] = []
    for conversation_id, members in groupby(rows, key=lambda row: row.conversation_id):
        conversation_ids.append(conversation_id)
        turn_ids += [row.id for row in members]
        if len(turn_ids) >= CHUNK_TURNS:
            yield conversation_ids, turn_ids
            conversation_ids, turn_ids = [], []
    if turn_ids:
        yield conversation_ids, turn_ids


def _replay(
    cursor: Cursor,
    conversation_ids: list[UUID],
    turn_ids: list[UUID],
    into: Lane | None,
    states: Collection[TurnState],
) -> list[Change]:
    lock_conversations(cursor, conversation_ids)
    changes = _foresee(cursor, turn_ids, states)
    refused = [change for change in changes if change.refusal is not None]
    ready_ids = [change.turn_id for change in changes if change.refusal is None]
    # A claim passes over a turn that is locked, and then its hint is gone: no more than must be.
    due_ids = [row.id for row in fetch(cursor, Id, _DUE, (ready_ids,))]
    lock_turns(cursor, [*ready_ids, *due_ids])
    # Until now a due turn could be claimed, and a parked one dropped.
    changes = _foresee(cursor, ready_ids, states)
    ready = [change for change in changes if change.refusal is None]
    ready_ids = [change.turn_id for change in ready]
    cursor.execute(REPLAY, {"turns": ready_ids, "into": into})
    cursor.execute(RENEW_DELIVERIES, {"turns": ready_ids, "ids": [new_id() for _ in ready_ids]})
    advance(cursor, list({change.conversation_id for change in ready}))
    now = {row.id: TurnState(row.state) for row in fetch(cursor, _Stands, _STATES, (ready_ids,))}
    replayed = [replace(change, state=now[change.turn_id]) for change in ready]
    return [*replayed, *(change for change in changes if change.refusal is not None), *refused]


def _foresee(
    cursor: Cursor, turn_ids: list[UUID], states: Collection[TurnState] = (TurnState.PARKED,)
) -> list[Change]:
    rows = fetch(cursor, _Foreseen, _FORESEE, (turn_ids,))
    return [_change(row, _refusal(row, states)) for row in rows]


def _change(row: _Stands | _Foreseen, refusal: TurnmillError | None) -> Change:
    return Change(row.id, row.conversation_id, row.seq, TurnState(row.state), refusal)


def _refusal(row: _Foreseen, states: Collection[TurnState]) -> TurnmillError | None:
    if row.state not in states:
        return _not_parked(row)
    if row.handed_off_at is not None:
        return HandedOff(
            "A person answers its conversation. Let the bot resume first: "
            f"turnmill conversations resume {show_id(Prefix.CONVERSATION, row.conversation_id)}"
            f"{tenant_option(row.tenant)}"
        )
    if row.is_later_missing:
        return LaterTurnAnswered(
            "Later turns of its conversation are no longer kept; they may have been answered, and "
            "a reply before them would rewrite what was said. Ask again as a new turn."
        )
    match row.later_state:
        case None:
            return None
        case TurnState.QUEUED | TurnState.RUNNING:
            return LaterTurnRunning(
                f"Turn {row.later_seq} of its conversation, a later one, is being answered. "
                "Try again when it has settled."
            )
        case _:
            return LaterTurnAnswered(
                f"Turn {row.later_seq} of its conversation, a later one, has been answered since; "
                "a reply before it would rewrite what was said. Ask again as a new turn."
            )


def _not_parked(row: _Stands | _Foreseen) -> NotParked:
    return NotParked(f"The turn is not parked: it is {row.state}.")
