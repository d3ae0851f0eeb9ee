"""Parked turns: which there are, why, and everything about one of them."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from turnmill.producer.parked.replay import foresee
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import NotParked
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.parked import (
    ErrorCount,
    ParkedDetails,
    ParkedFilter,
    ParkedPage,
    ParkedTurn,
    PastAttempt,
)
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import attempts, bots, conversations, turns, worker_liveness
from turnmill.schemas.turns import Lane, TurnState

#: Errors told apart. In an outage all turns have the same one; a long tail says nothing more.
MAX_ERRORS = 20

_PARKED = (
    sa.select(
        turns.c.id, turns.c.conversation_id, turns.c.seq, turns.c.model, turns.c.lane,
        turns.c.attempt, turns.c.crashes, turns.c.error_code, turns.c.error_message,
        turns.c.accepted_at, turns.c.settled_at, bots.c.name.label("bot"),
        conversations.c.next_seq,
    )
    .join(bots, bots.c.id == turns.c.bot_id)
    .join(conversations, conversations.c.id == turns.c.conversation_id)
)  # fmt: skip

_HISTORY = (
    sa.select(
        attempts.c.number, attempts.c.lane, attempts.c.worker_id, attempts.c.started_at,
        attempts.c.ended_at, attempts.c.outcome, attempts.c.error, worker_liveness.c.host,
        worker_liveness.c.pid,
    )
    .outerjoin(worker_liveness, worker_liveness.c.id == attempts.c.worker_id)
    .order_by(attempts.c.number)
)  # fmt: skip


class _ParkedRow(NamedTuple):
    """A row of `_PARKED`."""

    id: UUID
    conversation_id: UUID
    seq: int
    model: str
    lane: str
    attempt: int
    crashes: int
    error_code: str
    error_message: str
    accepted_at: datetime
    settled_at: datetime
    bot: str
    next_seq: int


class _AttemptRow(NamedTuple):
    """A row of `_HISTORY`."""

    number: int
    lane: str
    worker_id: UUID
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None
    #: None: the worker's row has been forgotten.
    host: str | None
    pid: int | None


class _ErrorRow(NamedTuple):
    """A row of `_count_errors`."""

    error_code: str
    error_message: str
    n: int
    #: Of all errors, the same in each row.
    total: int


def list_parked(
    database: Database,
    tenant_id: UUID,
    wanted: ParkedFilter,
    *,
    limit: int = 50,
    after: UUID | None = None,
) -> ParkedPage:
    """One page, the latest accepted turns first, and the errors of all that are wanted."""
    conditions = _conditions(tenant_id, wanted)
    page = _PARKED.where(*conditions).order_by(turns.c.id.desc()).limit(limit + 1)
    if after is not None:
        page = page.where(turns.c.id < after)
    with database.begin() as connection:
        rows = typed(_ParkedRow, connection.execute(page))
        errors = typed(_ErrorRow, connection.execute(_count_errors(conditions)))
    shown = [_shown(row) for row in rows[:limit]]
    return ParkedPage(
        total=errors[0].total if errors else 0,
        errors=[
            ErrorCount(error_code=row.error_code, error_message=row.error_message, count=row.n)
            for row in errors
        ],
        turns=shown,
        next=shown[-1].turn_id if len(rows) > limit else None,
    )


def find_parked(
    database: Database, tenant_id: UUID, wanted: ParkedFilter, *, limit: int | None = None
) -> list[UUID]:
    """The turns to replay or drop, the oldest first."""
    query = (
        sa.select(turns.c.id)
        .join(bots, bots.c.id == turns.c.bot_id)
        .where(*_conditions(tenant_id, wanted))
        .order_by(turns.c.id)
        .limit(limit)
    )
    with database.begin() as connection:
        return list(connection.execute(query).scalars())


def read_parked(database: Database, tenant_id: UUID, turn_id: UUID) -> ParkedDetails:
    """Everything about a parked turn.

    Raises:
        NotFound: the tenant has no such turn.
        NotParked: it is in another state.
    """
    parked = _PARKED.where(*_conditions(tenant_id, ParkedFilter()), turns.c.id == turn_id)
    with database.begin() as connection:
        rows = typed(_ParkedRow, connection.execute(parked))
        history = typed(
            _AttemptRow, connection.execute(_HISTORY.where(attempts.c.turn_id == turn_id))
        )
    turn = read_turn(database, tenant_id, turn_id)
    if not rows:
        raise NotParked(f"The turn is not parked: it is {turn.state}.")
    (change,) = foresee(database, tenant_id, [turn_id])
    return ParkedDetails(
        **dict(_shown(rows[0])),
        conversation_turns=rows[0].next_seq - 1,
        messages=turn.messages,
        history=[_past_attempt(attempt) for attempt in history],
        can_replay=change.refusal is None,
        replay=change.refusal.message if change.refusal else "It would be answered in its place.",
    )


def _conditions(tenant_id: UUID, wanted: ParkedFilter) -> list[sa.ColumnElement[bool]]:
    columns = {
        "bot": bots.c.name,
        "model": turns.c.model,
        "lane": turns.c.lane,
        "error_code": turns.c.error_code,
    }
    given = wanted.model_dump(exclude_none=True)
    # Spelled out, not bound: Postgres must see that the partial index is enough.
    is_parked = turns.c.state == sa.literal_column(f"'{TurnState.PARKED}'")
    conditions = [is_parked, turns.c.tenant_id == tenant_id]
    conditions += [columns[name] == given[name] for name in columns if name in given]
    if wanted.since is not None:
        conditions.append(turns.c.settled_at >= wanted.since)
    return conditions


def _count_errors(conditions: list[sa.ColumnElement[bool]]) -> sa.Executable:
    count = sa.func.count()
    kind = (turns.c.error_code, turns.c.error_message)
    return (
        sa.select(*kind, count.label("n"), sa.func.sum(count).over().label("total"))
        .join(bots, bots.c.id == turns.c.bot_id)
        .where(*conditions)
        .group_by(*kind)
        .order_by(count.desc(), *kind)
        .limit(MAX_ERRORS)
    )


def _shown(row: _ParkedRow) -> ParkedTurn:
    return ParkedTurn(
        turn_id=show_id(Prefix.TURN, row.id),
        conversation_id=show_id(Prefix.CONVERSATION, row.conversation_id),
        seq=row.seq,
        bot=row.bot,
        model=row.model,
        lane=Lane(row.lane),
        attempts=row.attempt,
        crashes=row.crashes,
        error_code=row.error_code,
        error_message=row.error_message,
        accepted_at=row.accepted_at,
        parked_at=row.settled_at,
    )


def _past_attempt(row: _AttemptRow) -> PastAttempt:
    return PastAttempt(
        number=row.number,
        lane=Lane(row.lane),
        worker=f"{row.host}, {row.pid}" if row.host else row.worker_id.hex,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        error=row.error,
    )
