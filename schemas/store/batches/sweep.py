"""Pause, resume and cancel: what was decided about a batch reaches its turns.

The decision is a row's change and holds at once: a claim leaves the turns of a paused batch alone
and moves their hints into a lane that no relay publishes and no worker consumes. A sweep does the
same to the other hints, page by page, so that they do not pass through the broker first. It
notes how far it has come: workers finish one whose command was ended. One process at a time sweeps
a batch; two would wait for each other's rows.

A decision and whatever acts upon it exclude each other by the batch's row: an UPDATE here, FOR
SHARE there. So nothing is held after the sweep that releases it has passed.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Cursor, Database, notify
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.routes import ABORT_CHANNEL, OUTBOX_CHANNEL, PAUSED_LANE
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.batches.moves import COUNT_MOVES, COUNTS_MOVES
from turnmill.schemas.store.cancel import CANCEL
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.turns import Lane, TurnState

#: Hints of one transaction, and turns of one that cancels: it lasts a tenth of a second or two.
PAGE_HINTS = 5000
PAGE_TURNS = 2000

PAUSE = """
UPDATE batches SET paused_at = clock_timestamp(), swept_row = 0
WHERE id = %s AND paused_at IS NULL AND cancelled_at IS NULL RETURNING id
"""

RESUME = """
UPDATE batches SET paused_at = NULL, resumed_at = clock_timestamp(), swept_row = 0
WHERE id = %s AND paused_at IS NOT NULL AND cancelled_at IS NULL RETURNING id
"""

#: A cancelled batch is paused too: nothing of it starts while its turns are being cancelled.
CANCEL_BATCH = """
UPDATE batches SET cancelled_at = clock_timestamp(), swept_row = 0,
    paused_at = coalesce(paused_at, clock_timestamp())
WHERE id = %s AND cancelled_at IS NULL RETURNING id
"""

#: Sweeps that nobody works at for certain: workers look for them. In another order each time: a
#: round may end before the last, and none of them is to be the last in every round.
UNFINISHED = "SELECT id FROM batches WHERE swept_row IS NOT NULL ORDER BY random()"

#: The turn to sweep a batch, until the transaction ends. Whoever looks after the batch's turns
#: meanwhile does not take it: only sweeps wait for it.
_KEY = "hashtextextended('sweep of ' || %s::uuid, 0)"
_WAIT_TO_SWEEP = f"SELECT pg_advisory_xact_lock({_KEY})"
_MAY_SWEEP = f"SELECT pg_try_advisory_xact_lock({_KEY}) AS is_mine"

_DECIDED = """
SELECT paused_at, resumed_at, cancelled_at, swept_row FROM batches WHERE id = %s FOR SHARE
"""

#: Only of the decision that the sweep was for. A decision's times tell it from all others. Nobody
#: waits for the disk: after a crash of PostgreSQL the page is looked through again.
_NOTE = """
UPDATE batches SET swept_row = %s WHERE id = %s AND (paused_at, resumed_at, cancelled_at, swept_row)
    IS NOT DISTINCT FROM (%s::timestamptz, %s::timestamptz, %s::timestamptz, %s::int)
RETURNING set_config('synchronous_commit', 'off', true)
"""

#: The rows of a page, by their numbers: with a LIMIT in place of the second bound, and statistics
#: of before the batch, PostgreSQL sorts the whole batch for each page.
_NEXT = "%(after)s::int + %(size)s::int"  # psycopg sends small numbers as smallint
IN_PAGE = f"batch_id = %(batch)s AND batch_row > %(after)s AND batch_row <= {_NEXT}"

#: The last row of the page, even if it was never accepted. NULL: no row comes after `after`, or
#: the batch has none at all. least() and greatest() pass over NULL, so they do not say so.
LAST_ROW = f"""
(SELECT CASE WHEN max(batch_row) > %(after)s THEN least(max(batch_row), {_NEXT}) END
 FROM turns WHERE batch_id = %(batch)s)
"""

#: Hints are found by the ids of their turns, as an array: so PostgreSQL looks them up in the index,
#: whatever its statistics say, which are of before the last sweep. With a join in its place one
#: page of 200,000 hints was seen to take more than two minutes.
_PAGE = f"page AS (SELECT id FROM turns WHERE {IN_PAGE})"

#: A hint that somebody holds is being claimed or published: the claim that follows sees to it.
#: Hints in quarantine stay there, where a claim passes them over: only they know that they are.
_HOLD = f"""
WITH {_PAGE}, free AS (
    SELECT turn_id FROM outbox
    WHERE turn_id = ANY(ARRAY(SELECT id FROM page))
      AND lane NOT IN ('{PAUSED_LANE}', '{Lane.QUARANTINE}') FOR UPDATE SKIP LOCKED
), held AS (
    UPDATE outbox SET lane = '{PAUSED_LANE}', published_at = NULL, worker_id = NULL,
        own_until = NULL
    WHERE turn_id = ANY(ARRAY(SELECT turn_id FROM free))
)
SELECT {LAST_ROW} AS last_row
"""

#: Back to their places: the order of a lane is that of times that have not changed. Locked in the
#: order of ids: a worker may do the same page as the command.
_RELEASE = f"""
WITH {_PAGE}, held AS (
    SELECT turn_id FROM outbox
    WHERE turn_id = ANY(ARRAY(SELECT id FROM page)) AND lane = '{PAUSED_LANE}'
    ORDER BY turn_id FOR UPDATE
), released AS (
    UPDATE outbox o SET lane = (SELECT t.lane FROM turns t WHERE t.id = o.turn_id)
    WHERE turn_id = ANY(ARRAY(SELECT turn_id FROM held))
)
SELECT {LAST_ROW} AS last_row
"""

#: Turns that have ended are not locked: none of a cancelled batch opens again (`retry` refuses).
_OPEN_TURNS = f"""
SELECT {LAST_ROW} AS last_row, coalesce(array_agg(id), '{{}}') AS turn_ids,
    coalesce(array_agg(DISTINCT conversation_id), '{{}}') AS conversation_ids
FROM turns WHERE {IN_PAGE} AND state IN ({OPEN})
"""

_RUNNING = f"""
SELECT id, conversation_id FROM turns
WHERE state = '{TurnState.RUNNING}' AND batch_id = %s ORDER BY id
"""

_OPEN_NOW = f"SELECT id, state FROM turns WHERE id = ANY(%s) AND state IN ({OPEN})"


class _Decided(NamedTuple):
    """The row of `_DECIDED`."""

    paused_at: datetime | None
    resumed_at: datetime | None
    cancelled_at: datetime | None
    #: The row up to which the turns know; None: all do.
    swept_row: int | None


class _Page(NamedTuple):
    """The row of `_HOLD` and `_RELEASE`. No row was left: None."""

    last_row: int | None


class _OpenPage(NamedTuple):
    """The row of `_OPEN_TURNS`."""

    #: No row was left: None.
    last_row: int | None
    turn_ids: list[UUID]
    #: Those of the turns.
    conversation_ids: list[UUID]


class _RunningRow(NamedTuple):
    """A row of `_RUNNING`."""

    id: UUID
    conversation_id: UUID


class _IsMine(NamedTuple):
    """The row of `_MAY_SWEEP`."""

    is_mine: bool


class _OpenRow(NamedTuple):
    """A row of `_OPEN_NOW`."""

    id: UUID
    state: str


def sweep_page(database: Database, batch_id: UUID, *, yields: bool = False) -> int | None:
    """Bring the next page of a batch's turns in line with what was decided about the batch.

    Return the row up to which all are, or None at the end. Whoever sweeps the batch beside it
    comes first; with `yields` that counts as the end. Raises `DatabaseUnavailable`: the page may be
    swept again.
    """
    with database.cursor() as cursor:
        if not _takes_turn(cursor, batch_id, yields):
            return None
        found = fetch(cursor, _Decided, _DECIDED, (batch_id,))
        if not found or found[0].swept_row is None:
            return None
        decided = found[0]
        last_row = _sweep(cursor, batch_id, decided)
    database.run(_NOTE, (last_row, batch_id, *decided))
    return last_row


def cancel_running(database: Database, batch_id: UUID) -> None:
    """Cancel the turns of a batch that run: workers stop generating. Raises `DatabaseUnavailable`.

    They are few, and the page that they are on may be far.
    """
    running = database.fetch(_RunningRow, _RUNNING, (batch_id,))
    for start in range(0, len(running), PAGE_TURNS):
        rows = running[start : start + PAGE_TURNS]
        with database.cursor() as cursor:
            conversation_ids = [row.conversation_id for row in rows]
            _cancel(cursor, batch_id, [row.id for row in rows], conversation_ids)


def _takes_turn(cursor: Cursor, batch_id: UUID, yields: bool) -> bool:
    """In a statement of its own: the next one's snapshot shows what the other sweep has done."""
    if yields:
        return fetch(cursor, _IsMine, _MAY_SWEEP, (batch_id,))[0].is_mine
    cursor.execute(_WAIT_TO_SWEEP, (batch_id,))
    return True


def _sweep(cursor: Cursor, batch_id: UUID, decided: _Decided) -> int | None:
    page = {"batch": batch_id, "after": decided.swept_row, "size": PAGE_HINTS}
    if decided.cancelled_at is not None:
        (found,) = fetch(cursor, _OpenPage, _OPEN_TURNS, page | {"size": PAGE_TURNS})
        _cancel(cursor, batch_id, found.turn_ids, found.conversation_ids)
        return found.last_row
    (swept,) = fetch(cursor, _Page, _RELEASE if decided.paused_at is None else _HOLD, page)
    if decided.paused_at is None:
        notify(cursor, OUTBOX_CHANNEL)
    return swept.last_row


def _cancel(
    cursor: Cursor, batch_id: UUID, turn_ids: list[UUID], conversation_ids: list[UUID]
) -> None:
    """Cancel those of the turns that are still open, and tell the workers that hold them."""
    if not turn_ids:
        return
    lock_conversations(cursor, conversation_ids)
    lock_turns(cursor, turn_ids)
    open_now = fetch(cursor, _OpenRow, _OPEN_NOW, (turn_ids,))
    if not open_now:
        return
    cursor.execute(COUNTS_MOVES)
    cursor.execute(CANCEL, ([row.id for row in open_now],))
    moved = {
        "batch": batch_id,
        "state": TurnState.CANCELLED,
        "old_states": [row.state for row in open_now],
    }
    cursor.execute(COUNT_MOVES, moved)
    advance(cursor, conversation_ids)
    for row in open_now:
        if row.state == TurnState.RUNNING:
            notify(cursor, ABORT_CHANNEL, row.id.hex)
