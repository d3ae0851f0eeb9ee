"""Pause, resume, cancel and retry batches.

What is decided holds when the decision is committed: workers begin no turn of a paused or cancelled
batch from then on. Then a sweep goes through the turns; it may be ended, for workers finish it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.parked.replay import Change, replay
from turnmill.schemas.batches import Batch
from turnmill.schemas.errors import BatchCancelled, NotFound, TurnmillError
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.batches.sweep import (
    CANCEL_BATCH,
    IN_PAGE,
    LAST_ROW,
    PAUSE,
    RESUME,
    cancel_running,
    sweep_page,
)
from turnmill.schemas.store.changes import literals
from turnmill.schemas.turns import TurnState

#: What `retry` takes up again.
FAILED = frozenset({TurnState.FAILED, TurnState.PARKED})


class _IsCancelled(NamedTuple):
    is_cancelled: bool


_CANCELLED = "SELECT cancelled_at IS NOT NULL AS is_cancelled FROM batches WHERE id = %s"

#: Rows looked through in one piece of a retry.
PAGE_ROWS = 2000


class _Now(NamedTuple):
    at: datetime


_NOW = "SELECT clock_timestamp() AS at"

_FAILED = f"state IN ({literals(FAILED)})"

#: The failed turns of a page, and all others of their conversations: a turn that is answered anew
#: must not overtake an earlier one. Those that failed since the retry began have had their chance.
_FIND_FAILED = f"""
SELECT {LAST_ROW} AS last_row, ARRAY(
    SELECT t.id FROM turns t
    WHERE t.conversation_id = ANY(ARRAY(
        SELECT conversation_id FROM turns WHERE {IN_PAGE} AND {_FAILED}))
      AND t.batch_id = %(batch)s AND t.{_FAILED} AND t.settled_at < %(before)s
      -- A conversation is taken up where its first failed row is.
      AND NOT EXISTS (
          SELECT FROM turns earlier
          WHERE earlier.conversation_id = t.conversation_id AND earlier.batch_id = t.batch_id
            AND earlier.batch_row <= %(after)s AND earlier.{_FAILED})
) AS turn_ids
"""

#: Receives the number of the row that a sweep has come to.
OnSwept = Callable[[int], None]


def pause(database: Database, batch: Batch, on_swept: OnSwept = lambda row: None) -> bool:
    """Let no further turn of the batch begin; False if it was paused before.

    Turns that run are answered.

    Raises:
        BatchCancelled: there is nothing to pause.
        DatabaseUnavailable: pause again; if it was decided, it holds.
    """
    return _decide(database, batch, PAUSE, on_swept)


def resume(database: Database, batch: Batch, on_swept: OnSwept = lambda row: None) -> bool:
    """Let the turns of a paused batch begin; False if it was not paused. Raises as `pause`."""
    return _decide(database, batch, RESUME, on_swept)


def cancel_batch(database: Database, batch: Batch, on_swept: OnSwept = lambda row: None) -> bool:
    """Cancel all turns of the batch that have not ended; False if it was cancelled before.

    Turns that run stop first. Raises `DatabaseUnavailable`: cancel again; if it was decided,
    workers finish it.
    """
    is_new = bool(database.run(CANCEL_BATCH, (batch.batch_id,)))
    cancel_running(database, batch.batch_id)
    _sweep(database, batch, on_swept)
    return is_new


class _FailedPage(NamedTuple):
    """The row of `_FIND_FAILED`."""

    #: None: no row was left.
    last_row: int | None
    turn_ids: list[UUID]


@dataclass(slots=True)
class Retried:
    """What a retry did."""

    replayed: int = 0
    #: Turns left as they are, because their conversations have been answered since.
    refused: int = 0
    #: Why the first of them was.
    refusal: TurnmillError | None = None

    def add(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.refusal is None:
                self.replayed += 1
            else:
                self.refused += 1
                self.refusal = self.refusal or change.refusal


def retry(database: Database, batch: Batch, on_swept: OnSwept = lambda row: None) -> Retried:
    """Put the failed turns of the batch back into their places, to be answered anew.

    Page by page, with no more than a page's turns in memory. A retry that was interrupted may be
    run again: what was put back has not failed any more.

    Raises:
        BatchCancelled: the rest stays as it is.
        DatabaseUnavailable: retry again for the others.
    """
    refuse_cancelled(database, batch)
    done, after = Retried(), 0
    (now,) = database.fetch(_Now, _NOW)
    while True:
        page = {"batch": batch.batch_id, "after": after, "size": PAGE_ROWS, "before": now.at}
        ((last_row, failed),) = database.fetch(_FailedPage, _FIND_FAILED, page)
        if last_row is None:
            return done
        if failed:
            refuse_cancelled(database, batch)
            done.add(replay(database, batch.tenant_id, failed, states=FAILED))
        after = last_row
        on_swept(after)


def refuse_cancelled(database: Database, batch: Batch) -> None:
    """Raise `BatchCancelled` if it was, and `NotFound` if it is gone."""
    found = database.fetch(_IsCancelled, _CANCELLED, (batch.batch_id,))
    if not found:
        raise NotFound("There is no such batch.")
    if found[0].is_cancelled:
        raise cancelled(batch)


def cancelled(batch: Batch) -> BatchCancelled:
    """Make the error that says so."""
    shown = show_id(Prefix.BATCH, batch.batch_id)
    return BatchCancelled(
        f"The batch {shown} was cancelled and stays so. "
        "To answer its file again, submit it under another name (--name)."
    )


def _decide(database: Database, batch: Batch, statement: str, on_swept: OnSwept) -> bool:
    is_new = bool(database.run(statement, (batch.batch_id,)))
    if not is_new:
        refuse_cancelled(database, batch)
    _sweep(database, batch, on_swept)
    return is_new


def _sweep(database: Database, batch: Batch, on_swept: OnSwept) -> None:
    while (row := sweep_page(database, batch.batch_id)) is not None:
        on_swept(row)
