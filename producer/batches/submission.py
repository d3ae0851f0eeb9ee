"""Batches: a backlog file becomes turns, once, and is watched until they are answered.

A batch is known by what was asked: the file's content, the bot and the parameters that
override the file's. Submitting the same again finds the same batch and accepts only what
is missing, so an interrupted submission continues from its last accepted row and nothing runs
twice.
"""

import hashlib
import json
import string
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from turnmill.producer.accept import accept_many
from turnmill.producer.batches.backlog import Backlog, NumberedRow
from turnmill.schemas.batches import BacklogRow, Batch, BatchProgress, row_key
from turnmill.schemas.errors import InvalidInput, NotFound, UnknownBot
from turnmill.schemas.ids import Prefix, derived_id, new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import batches, bots, replies, turns
from turnmill.schemas.turns import GenerationParams, Lane, TurnRequest, TurnState

#: Turns accepted in one transaction: enough that its round trips do not matter, few enough
#: that other accepts never wait long behind it.
CHUNK_ROWS = 500

#: Digits of a batch's id that may stand for all of it.
_MIN_PREFIX_DIGITS = 4


def submit(
    database: Database,
    tenant_id: UUID,
    bot: str,
    file: Backlog,
    overrides: GenerationParams | None = None,
    *,
    name: str | None = None,
    on_accepted: Callable[[int], None] = lambda count: None,
) -> Batch:
    """Accept every row that is not accepted yet; the parameters override those of the rows.

    A `name` makes a batch of its own, so that the same file can run again; without one the
    batch is called like the file. `on_accepted` receives the rows accepted so far.

    Raises:
        UnknownBot: the tenant has no bot of this name.
        InvalidInput: the file changed since it was checked.
        DatabaseUnavailable: submit again to continue.
    """
    overrides = overrides or GenerationParams()
    batch, is_new = _find_or_create(database, tenant_id, bot, file, overrides, name)
    count = 0
    for chunk in _chunks(file.rows()):
        known = set() if is_new else _accepted_rows(database, batch.batch_id, chunk)
        missing = [_request(batch, overrides, *row) for row in chunk if row[0] not in known]
        if missing:
            accept_many(database, missing)
        count += len(chunk)
        on_accepted(count)
    return batch


def progress(database: Database, tenant_id: UUID, batch_id: UUID) -> BatchProgress:
    """How far the batch is. Raises `NotFound`.

    The cost grows with the batch (about a second for a million turns): poll with measure.
    """
    total = sa.select(batches.c.total).where(
        batches.c.id == batch_id, batches.c.tenant_id == tenant_id
    )
    with database.begin() as connection:
        known = connection.execute(total).scalar_one_or_none()
        if known is None:
            raise NotFound("There is no such batch.")
        states = connection.execute(_count_states(batch_id)).all()
        sums = connection.execute(_sum_up(batch_id)).one()
    return BatchProgress(
        total=known,
        states={TurnState(state): count for state, count in states},
        **sums._asdict(),
    )


def list_batches(database: Database, tenant_id: UUID, limit: int = 100) -> list[Batch]:
    """The tenant's batches, the newest first."""
    query = sa.select(batches).where(batches.c.tenant_id == tenant_id)
    with database.begin() as connection:
        rows = connection.execute(query.order_by(batches.c.id.desc()).limit(limit))
        return list(map(_batch, typed(_BatchRow, rows)))


def find_batch(database: Database, tenant_id: UUID, id_or_prefix: str) -> Batch:
    """The batch with this id, or the only one whose id starts like this.

    Raises:
        NotFound: there is none.
        InvalidInput: there are several, or this cannot be the start of an id.
    """
    low, high = _id_range(id_or_prefix)
    query = sa.select(batches).where(
        batches.c.tenant_id == tenant_id, batches.c.id.between(low, high)
    )
    with database.begin() as connection:
        found = typed(_BatchRow, connection.execute(query.limit(2)))
    if not found:
        raise NotFound(f"There is no batch '{id_or_prefix[:80]}'.")
    if len(found) > 1:
        raise InvalidInput(f"Several batches start with '{id_or_prefix}'; give more digits.")
    return _batch(found[0])


def _find_or_create(
    database: Database,
    tenant_id: UUID,
    bot: str,
    file: Backlog,
    overrides: GenerationParams,
    name: str | None,
) -> tuple[Batch, bool]:
    """The batch, and whether it is new. A bot that does not exist leaves no batch behind."""
    asked = [file.fingerprint.hex(), bot, overrides.model_dump(mode="json"), name]
    fingerprint = hashlib.sha256(json.dumps(asked).encode()).digest()
    known_bot = sa.select(bots.c.id).where(bots.c.tenant_id == tenant_id, bots.c.name == bot)
    create = (
        insert(batches)
        .values(
            id=new_id(),
            tenant_id=tenant_id,
            bot=bot,
            name=name or file.path.name,
            fingerprint=fingerprint,
            total=file.total,
        )
        .on_conflict_do_nothing()
        .returning(batches)
    )
    find = sa.select(batches).where(
        batches.c.tenant_id == tenant_id, batches.c.fingerprint == fingerprint
    )
    with database.begin() as connection:
        if connection.execute(known_bot).one_or_none() is None:
            raise UnknownBot(f"There is no bot or model '{bot}'.", param="bot")
        created = typed(_BatchRow, connection.execute(create))
        (row,) = created or typed(_BatchRow, connection.execute(find))
    return _batch(row), bool(created)


def _chunks(rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _accepted_rows(database: Database, batch_id: UUID, chunk: list[NumberedRow]) -> set[int]:
    query = sa.select(turns.c.batch_row).where(
        turns.c.batch_id == batch_id, turns.c.batch_row.in_([number for number, _ in chunk])
    )
    with database.begin() as connection:
        return set(connection.execute(query).scalars())


def _request(
    batch: Batch, overrides: GenerationParams, number: int, row: BacklogRow
) -> TurnRequest:
    # The kind keeps a conversation and a row apart that happen to have the same name.
    place = ("conversation", row.conversation) if row.conversation else ("row", row.id)
    return TurnRequest(
        tenant_id=batch.tenant_id,
        bot=batch.bot,
        messages=row.all_messages,
        params=overrides.over(row.params),
        lane=Lane.BATCH,
        conversation_id=derived_id(batch.batch_id, *place),
        idempotency_key=row_key(batch.batch_id, row.id),
        batch_id=batch.batch_id,
        batch_row=number,
    )


def _count_states(batch_id: UUID) -> sa.Select[str, int]:
    count = sa.func.count()
    return (
        sa.select(turns.c.state, count).where(turns.c.batch_id == batch_id).group_by(turns.c.state)
    )


def _sum_up(batch_id: UUID) -> sa.Select[*tuple[Any, ...]]:
    is_completed = turns.c.state == TurnState.COMPLETED
    latency = _seconds(turns.c.settled_at - turns.c.accepted_at)
    answer = _seconds(turns.c.settled_at - turns.c.started_at)

    def percentile(share: float, duration: sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
        return sa.func.percentile_cont(share).within_group(duration).filter(is_completed)

    def total(column: sa.Column[int]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(column), 0)

    return (
        sa.select(
            total(turns.c.attempt).label("attempts"),
            total(replies.c.prompt_tokens).label("prompt_tokens"),
            total(replies.c.completion_tokens).label("completion_tokens"),
            percentile(0.5, latency).label("latency_p50_s"),
            percentile(0.95, latency).label("latency_p95_s"),
            percentile(0.5, answer).label("answer_p50_s"),
            percentile(0.95, answer).label("answer_p95_s"),
            sa.func.min(turns.c.accepted_at).label("first_accepted_at"),
            sa.func.min(turns.c.settled_at).label("first_settled_at"),
            sa.func.max(turns.c.settled_at).label("last_settled_at"),
        )
        .outerjoin(replies, replies.c.turn_id == turns.c.id)
        .where(turns.c.batch_id == batch_id)
    )


def _seconds(interval: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
    return sa.cast(sa.extract("epoch", interval), sa.Double)


def _id_range(id_or_prefix: str) -> tuple[UUID, UUID]:
    """The first and the last id that start with these digits."""
    digits = id_or_prefix.strip().lower().removeprefix(f"{Prefix.BATCH}_").replace("-", "")
    if not _MIN_PREFIX_DIGITS <= len(digits) <= 32 or not set(digits) <= set(string.hexdigits):
        raise InvalidInput(
            f"'{id_or_prefix[:80]}' is not the start of a batch's id: "
            f"{Prefix.BATCH}_ and {_MIN_PREFIX_DIGITS} to 32 hex digits."
        )
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


class _BatchRow(NamedTuple):
    """A row of `batches`."""

    id: UUID
    tenant_id: UUID
    bot: str
    name: str
    fingerprint: bytes
    total: int
    created_at: datetime


def _batch(row: _BatchRow) -> Batch:
    return Batch(
        batch_id=row.id,
        tenant_id=row.tenant_id,
        bot=row.bot,
        name=row.name,
        total=row.total,
        created_at=row.created_at,
    )
