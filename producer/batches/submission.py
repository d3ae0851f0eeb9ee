"""Submission: a backlog becomes turns, once.

A batch is known by what was asked: the file's content, the bot and the parameters that
override the file's. Submitting the same again finds the same batch and accepts only what
is missing, so an interrupted submission continues from its last accepted row and nothing runs
twice.
"""

import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from turnmill.producer.accept import accept_in, racing
from turnmill.producer.batches.backlog import NumberedRow
from turnmill.producer.batches.control import cancelled
from turnmill.producer.batches.lookup import BatchRow, to_batch
from turnmill.schemas.batches import BacklogRow, Batch, row_key
from turnmill.schemas.errors import UnknownBot
from turnmill.schemas.ids import derived_id, new_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import batches, bots, turns
from turnmill.schemas.turns import GenerationParams, Lane, TurnRequest

#: Turns accepted in one transaction: enough that its round trips do not matter, few enough
#: that other accepts never wait long behind it.
CHUNK_ROWS = 2000
#: And characters of their texts, or a few more: a row may have 400,000.
CHUNK_CHARS = 4_000_000


class Rows(Protocol):
    """What a batch is made of: a `Backlog`, or rows that no file holds."""

    @property
    def path(self) -> Path:
        """What the batch is called after."""

    @property
    def fingerprint(self) -> bytes:
        """The same for the same rows."""

    @property
    def total(self) -> int: ...

    def rows(self) -> Iterator[NumberedRow]:
        """Every row once, those of a conversation in its order."""


#: A row if it is; the lock keeps it from being cancelled until the transaction ends.
_IS_CANCELLED = """
SELECT 1 FROM (SELECT cancelled_at FROM batches WHERE id = %s FOR SHARE) AS batch
WHERE cancelled_at IS NOT NULL
"""


def submit(
    database: Database,
    tenant_id: UUID,
    bot: str,
    file: Rows,
    overrides: GenerationParams | None = None,
    *,
    name: str | None = None,
    purpose: str | None = None,
    on_found: Callable[[Batch], None] = lambda batch: None,
    on_accepted: Callable[[int], None] = lambda count: None,
) -> Batch:
    """Accept every row that is not accepted yet; the parameters override those of the rows.

    A `name` makes a batch of its own, so that the same file can run again; without one the
    batch is called like the file. A batch with a `purpose` is no user's. `on_found` receives the
    batch if it was submitted before, `on_accepted` the number of rows accepted so far.

    Raises:
        UnknownBot: the tenant has no bot of this name.
        InvalidInput: the file changed since it was checked.
        BatchCancelled: it was, before or meanwhile.
        DatabaseUnavailable: submit again to continue.
    """
    overrides = overrides or GenerationParams()
    batch, is_new = _find_or_create(database, tenant_id, bot, file, overrides, name, purpose)
    if batch.cancelled_at is not None:
        raise cancelled(batch)
    if not is_new:
        on_found(batch)
    count = 0
    for chunk in _chunks(file.rows()):
        known = set() if is_new else _accepted_rows(database, batch.batch_id, chunk)
        missing = [row for row in chunk if row[0] not in known]
        if missing:
            with _uncollected():
                _accept(database, batch, [_request(batch, overrides, *row) for row in missing])
        count += len(chunk)
        on_accepted(count)
    return batch


def _find_or_create(
    database: Database,
    tenant_id: UUID,
    bot: str,
    file: Rows,
    overrides: GenerationParams,
    name: str | None,
    purpose: str | None,
) -> tuple[Batch, bool]:
    """The batch, and whether it is new. A bot that does not exist leaves no batch behind."""
    asked = [file.fingerprint.hex(), bot, overrides.model_dump(mode="json"), name]
    fingerprint = hashlib.sha256(json.dumps(asked).encode()).digest()
    known_bot = sa.select(bots.c.id).where(
        bots.c.tenant_id == tenant_id, bots.c.name == bot, bots.c.deleted_at.is_(None)
    )
    create = (
        insert(batches)
        .values(
            id=new_id(),
            tenant_id=tenant_id,
            bot=bot,
            name=name or file.path.name,
            fingerprint=fingerprint,
            total=file.total,
            purpose=purpose,
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
        created = typed(BatchRow, connection.execute(create))
        (row,) = created or typed(BatchRow, connection.execute(find))
    return to_batch(row), bool(created)


def _chunks(rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
    chunk: list[NumberedRow] = []
    chars = 0
    for row in rows:
        chunk.append(row)
        chars += row[1].chars
        if len(chunk) >= CHUNK_ROWS or chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's cyclic collector away: it would look through the whole process for garbage
    that a page does not make, for a third of the page's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _accept(database: Database, batch: Batch, requests: list[TurnRequest]) -> None:
    """Accept rows, unless the batch is cancelled; who cancels it waits for this transaction."""

    def accept_open(cursor: Cursor) -> None:
        if cursor.execute(_IS_CANCELLED, (batch.batch_id,)).fetchone():
            raise cancelled(batch)
        accept_in(cursor, requests)

    racing(database, accept_open)


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
