"""What workers do for batches: merge the rows that count turns, and finish sweeps."""

import time
from functools import partial
from uuid import UUID

import psycopg
import structlog

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.batches.moves import (
    FORGET_MOVES,
    FORGOTTEN,
    MERGE,
    UNMERGED,
    Forgotten,
    Unmerged,
)
from turnmill.schemas.store.batches.sweep import UNFINISHED, sweep_page
from turnmill.workers.upkeep.isolated import isolated

log = structlog.get_logger()

#: A round of sweeps ends after so long, seconds: its process looks after dead workers too.
ROUND_S = 0.5


def merge_batch_moves(database: Database) -> int:
    """Merge what has gathered since the last time; return the number of batches merged.

    Two processes that merge at once do no harm: the one that comes second finds nothing left. A
    batch that cannot be merged holds up no other: the log names it. Raises `DatabaseUnavailable`.
    """
    busy = [row.batch_id for row in database.fetch(Unmerged, UNMERGED)]
    return sum(len(isolated(partial(_merge, database), [batch_id], "batch")) for batch_id in busy)


def _merge(database: Database, batch_ids: list[UUID]) -> list[UUID]:
    database.run(MERGE, {"batch": batch_ids[0]})
    return batch_ids


def forget_batch_moves(database: Database) -> None:
    """Delete the rows of batches that the pruner has deleted. Raises `DatabaseUnavailable`."""
    gone = [row.batch_id for row in database.fetch(Forgotten, FORGOTTEN)]
    isolated(lambda ids: database.run(FORGET_MOVES, (ids,)), gone, "batch")


def finish_sweeps(database: Database) -> bool:
    """Continue the pauses, resumptions and cancellations whose commands were ended.

    A command that still sweeps a batch is left to it, and so is another worker. A batch that cannot
    be swept holds up no other: the log names it. Return whether something remains for the next
    round. Raises `DatabaseUnavailable`.
    """
    ends_at = time.monotonic() + ROUND_S
    for row in database.fetch(Id, UNFINISHED):
        while _goes_on(database, row.id):
            if time.monotonic() > ends_at:
                return True
    return False


def _goes_on(database: Database, batch_id: UUID) -> bool:
    try:
        return sweep_page(database, batch_id, yields=True) is not None
    except psycopg.Error as error:
        # Without the server's text, which may quote what is in a row.
        log.error(
            "batch.sweep_failed",
            batch_id=batch_id.hex,
            error=type(error).__name__,
            sqlstate=error.sqlstate,
        )
        return False
