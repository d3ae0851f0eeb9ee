"""The months of partitioned tables: made ahead, and dropped when nothing in them is needed.

Both need a lock for a moment that lets no claim and no settlement in. It is asked for without
waiting: whoever waits for such a lock makes everybody wait who comes after, for as long as the
slowest reader takes. While there is one, the month is left for the next round.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import psycopg
import structlog

from turnmill.schemas.postgres.links import Link
from turnmill.schemas.store.partitions import Month, create_month, months_from

log = structlog.get_logger()

#: Sleeps so many seconds; true when it is time to stop.
Pause = Callable[[float], bool]

#: Months that are there before they begin.
MONTHS_AHEAD = 2

#: The lock is free between two transactions of the lanes: asked for often, it is had.
_TRIES = 100
_TRY_EVERY_S = 0.02

#: What may be done under the lock, at most.
_HOLD_MS = 250


class _Listed(NamedTuple):
    name: str
    bounds: str


_LIST = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = %s::regclass ORDER BY 1
"""

_BOUNDS = re.compile(r"FROM \('?(\S+?)'?\) TO \('?(\S+?)'?\)")


class _IsNeeded(NamedTuple):
    """A row of `_ATTEMPTS_NEEDED` and `_REPLIES_NEEDED`."""

    is_needed: bool


#: The rescuer asks after the attempt of a running turn, and a queued one may run at any moment.
_ATTEMPTS_NEEDED = """
SELECT EXISTS (SELECT FROM turns WHERE state = 'running' AND id >= %(low)s AND id < %(high)s)
    OR EXISTS (SELECT FROM outbox WHERE turn_id >= %(low)s AND turn_id < %(high)s) AS is_needed
"""

#: A reply goes with its turn only. By the key, which passes quickly over what was deleted.
_REPLIES_NEEDED = """
SELECT count(*) > 0 AS is_needed FROM (
    SELECT FROM replies WHERE turn_id >= %(low)s AND turn_id < %(high)s ORDER BY turn_id LIMIT 1
) AS first
"""

_NEEDED = {"attempts": _ATTEMPTS_NEEDED, "replies": _REPLIES_NEEDED}


@dataclass(frozen=True, slots=True)
class Partition:
    name: str
    #: The first id that belongs here, and the first that does not any more.
    low: UUID
    high: UUID


def make_ahead(link: Link, table: str, now: datetime, pause: Pause) -> Iterator[str]:
    """Make the months that are missing from now on; their names."""
    there = _partitions(link, table)
    for month in months_from(Month.of(now), MONTHS_AHEAD + 1):
        low, high = month.first_id, month.next().first_id
        if any(partition.low <= low and high <= partition.high for partition in there):
            continue
        name = month.partition_of(table)
        if _came_early(link, table, low, high):
            # They stay where they are: to move them would take them from under their workers.
            log.warning("partition.missing", name=name)
            continue
        locks = (
            f"ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE",
            f"{table}_default IN ACCESS EXCLUSIVE MODE",
        )
        if _run_locked(link, locks, create_month(table, month), pause):
            yield name


def expired(link: Link, table: str, before: UUID) -> list[Partition]:
    """The partitions that hold only older turns, and nothing that is needed."""
    return [
        partition
        for partition in _partitions(link, table)
        if partition.high <= before and not _is_needed(link, table, partition)
    ]


def drop(link: Link, table: str, partition: Partition, pause: Pause) -> bool:
    """Drop it; false while it is needed after all, or while somebody reads the table for long."""
    locks = (f"ONLY {table}, {partition.name} IN ACCESS EXCLUSIVE MODE",)
    statements = (f"DROP TABLE {partition.name}",)
    return _run_locked(
        link, locks, statements, pause, lambda: not _is_needed(link, table, partition)
    )


def _run_locked(
    link: Link,
    locks: tuple[str, ...],
    statements: tuple[str, ...],
    pause: Pause,
    is_wanted: Callable[[], bool] = lambda: True,
) -> bool:
    """Run the statements under these locks; false if they were not to be had, or not wanted."""
    for _ in range(_TRIES):
        started_at = time.monotonic()
        try:
            with link.transaction():
                link.execute(f"SET LOCAL statement_timeout = {_HOLD_MS}")
                for lock in locks:
                    link.execute(f"LOCK TABLE {lock} NOWAIT")
                if not is_wanted():
                    return False
                for statement in statements:
                    link.execute(statement)
            held_s = round(time.monotonic() - started_at, 4)
            log.info("month.changed", statement=statements[-1], held_s=held_s)
            return True
        except psycopg.errors.LockNotAvailable:
            if pause(_TRY_EVERY_S):
                return False
        except psycopg.errors.QueryCanceled:
            break
    log.warning("partition.detach_deferred", statement=statements[-1])
    return False


def _came_early(link: Link, table: str, low: UUID, high: UUID) -> bool:
    default = f"SELECT FROM {table}_default WHERE turn_id >= %s AND turn_id < %s LIMIT 1"
    return link.execute(default, (low, high)).fetchone() is not None


def _is_needed(link: Link, table: str, partition: Partition) -> bool:
    span = {"low": partition.low, "high": partition.high}
    (row,) = link.fetch(_IsNeeded, _NEEDED[table], span)
    return row.is_needed


def _partitions(link: Link, table: str) -> list[Partition]:
    """Those with bounds; the default partition has none."""
    found = []
    for row in link.fetch(_Listed, _LIST, (table,)):
        if match := _BOUNDS.search(row.bounds):
            low, high = (_bound(text) for text in match.groups())
            found.append(Partition(row.name, low, high))
    return found


def _bound(text: str) -> UUID:
    return UUID(int=0) if text == "MINVALUE" else UUID(text)
