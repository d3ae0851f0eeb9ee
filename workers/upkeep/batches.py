"""What workers do for batches: merge the rows that count turns, and finish sweeps."""

import time

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.batches.moves import FORGET_MOVES, MERGE, UNMERGED, Unmerged
from turnmill.schemas.store.batches.sweep import UNFINISHED, sweep_page

#: A round of sweeps ends after so long, seconds: its process looks after dead workers too.
ROUND_S = 0.5


def merge_batch_moves(database: Database) -> int:
    """Merge what has gathered since the last time; return the number of batches merged.

    Two processes that merge at once do no harm: the one that comes second finds nothing left.
    Raises `DatabaseUnavailable`.
    """
    busy = [row.batch_id for row in database.fetch(Unmerged, UNMERGED)]
    for batch_id in busy:
        database.run(MERGE, {"batch": batch_id})
    return len(busy)


def forget_batch_moves(database: Database) -> None:
    """Delete the rows of batches that the pruner has deleted. Raises `DatabaseUnavailable`."""
    database.run(FORGET_MOVES)


def finish_sweeps(database: Database) -> bool:
    """Continue the pauses, resumptions and cancellations whose commands were ended.

    A command that still sweeps a batch is left to it, and so is another worker. Return whether
    something remains for the next round. Raises `DatabaseUnavailable`.
    """
    ends_at = time.monotonic() + ROUND_S
    for row in database.fetch(Id, UNFINISHED):
        while sweep_page(database, row.id, yields=True) is not None:
            if time.monotonic() > ends_at:
                return True
    return False
