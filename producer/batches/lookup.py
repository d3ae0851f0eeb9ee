"""Batches that there are: all of a tenant, or one by the start of its id."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from turnmill.schemas.batches import Batch
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, id_range
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import batches


def list_batches(
    database: Database, tenant_id: UUID, *, limit: int = 100, after: UUID | None = None
) -> list[Batch]:
    """A page of the tenant's batches, the newest first: those that are older than `after`."""
    query = sa.select(batches).where(batches.c.tenant_id == tenant_id)
    if after is not None:
        query = query.where(batches.c.id < after)
    with database.begin() as connection:
        rows = connection.execute(query.order_by(batches.c.id.desc()).limit(limit))
        return list(map(to_batch, typed(BatchRow, rows)))


def find_batch(database: Database, tenant_id: UUID, id_or_prefix: str) -> Batch:
    """The batch with this id, or the only one whose id starts like this.

    Raises:
        NotFound: there is none.
        InvalidInput: there are several, or this cannot be the start of an id.
    """
    low, high = id_range(Prefix.BATCH, id_or_prefix)
    query = sa.select(batches).where(
        batches.c.tenant_id == tenant_id, batches.c.id.between(low, high)
    )
    with database.begin() as connection:
        found = typed(BatchRow, connection.execute(query.limit(2)))
    if not found:
        raise NotFound(f"There is no batch '{id_or_prefix[:80]}'.")
    if len(found) > 1:
        raise InvalidInput(f"Several batches start with '{id_or_prefix}'; give more digits.")
    return to_batch(found[0])


class BatchRow(NamedTuple):
    """A row of `batches`."""

    id: UUID
    tenant_id: UUID
    bot: str
    name: str
    fingerprint: bytes
    total: int
    created_at: datetime
    paused_at: datetime | None
    resumed_at: datetime | None
    cancelled_at: datetime | None


def to_batch(row: BatchRow) -> Batch:
    return Batch(
        batch_id=row.id,
        tenant_id=row.tenant_id,
        bot=row.bot,
        name=row.name,
        total=row.total,
        created_at=row.created_at,
        paused_at=row.paused_at,
        cancelled_at=row.cancelled_at,
    )
