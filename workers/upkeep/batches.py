"""What workers do for batches: merge the rows that count turns, and finish sweeps."""

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.batches.moves import FORGET_MOVES, MERGE, UNMERGED, Unmerged
from turnmill.schemas.store.batches.sweep import UNFINISHED, sweep_page

#: Pages of one round: it lasts a second at most.
_PAGES = 5


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


def finish_sweeps(database: Database) -> None:
    """Go on with pauses, resumptions and cancellations whose commands may have been ended.

    A command that is still at it loses nothing by the help. Raises `DatabaseUnavailable`.
    """
    for row in database.fetch(Id, UNFINISHED):
        for _ in range(_PAGES):
            if sweep_page(database, row.id) is None:
                break
