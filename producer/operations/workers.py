"""The workers of answers: which there are, what they do, and how one is drained from afar."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, id_range, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS, seen_within
from turnmill.schemas.turns import TurnState

log = structlog.get_logger()

#: A worker writes twice a second that it lives. Without its lock one that wrote within this time
#: lives too: its connection is being replaced, seconds.
_SEEN_S = 1.2

_WORKERS = f"""
WITH busy AS (
    SELECT worker_id, count(*) AS turns FROM turns
    WHERE state = '{TurnState.RUNNING}' GROUP BY worker_id
)
SELECT w.id, w.host, w.pid, w.model, w.engine, w.lanes, w.slots, w.started_at, w.seen_at,
    w.is_consuming, w.version, w.unavailable_because, w.drain_asked_at, w.drain_asked_by,
    w.draining_since, w.ended_lately,
    greatest(extract(epoch FROM clock_timestamp() - w.seen_at), 0)::float AS beat_age_s,
    greatest(extract(epoch FROM clock_timestamp() - w.started_at), 0)::float AS age_s,
    {seen_within(_SEEN_S, "w")} OR w.lock_key IN ({HELD_LOCKS}) AS is_alive,
    NOT {seen_within("%(lease_s)s", "w")} AS is_silent,
    coalesce(busy.turns, 0)::int AS busy
FROM worker_liveness w LEFT JOIN busy ON busy.worker_id = w.id
WHERE w.id BETWEEN %(low)s AND %(high)s ORDER BY w.model, w.id
"""

_ASK_TO_DRAIN = """
UPDATE worker_liveness SET drain_asked_at = clock_timestamp(), drain_asked_by = %s
WHERE id = %s AND drain_asked_at IS NULL
"""

_FIRST, _LAST = UUID(int=0), UUID(int=(1 << 128) - 1)


class WorkerState(StrEnum):
    """What a worker does, as its row and its lock tell."""

    CONSUMING = "consuming"
    DRAINING = "draining"
    #: Its engine takes no turns.
    AWAY = "engine away"
    #: It takes no hints, and no engine is the reason.
    IDLE = "not consuming"
    #: Its process lives and says nothing: it is paused, or cut off.
    SILENT = "silent"
    #: It ended after a drain.
    ENDED = "ended"
    DEAD = "dead"


class WorkerRow(NamedTuple):
    """A row of `_WORKERS`."""

    id: UUID
    host: str
    pid: int
    model: str
    engine: str
    lanes: list[str]
    #: Turns of each lane that run at once.
    slots: int
    started_at: datetime
    seen_at: datetime
    is_consuming: bool
    version: str | None
    unavailable_because: str | None
    drain_asked_at: datetime | None
    drain_asked_by: str | None
    draining_since: datetime | None
    #: By lane, the turns ended within each of `ENDED_WINDOWS_S`; None: its release does not say.
    ended_lately: dict[str, list[int]] | None
    beat_age_s: float
    age_s: float
    is_alive: bool
    is_silent: bool
    #: Turns that run.
    busy: int

    @property
    def shown_id(self) -> str:
        return show_id(Prefix.WORKER, self.id)

    @property
    def state(self) -> WorkerState:
        if not self.is_alive:
            return WorkerState.ENDED if self.draining_since else WorkerState.DEAD
        if self.is_silent:
            return WorkerState.SILENT
        if self.draining_since:
            return WorkerState.DRAINING
        if self.unavailable_because is not None:
            return WorkerState.AWAY
        return WorkerState.CONSUMING if self.is_consuming else WorkerState.IDLE


def list_workers(database: Database, lease_s: float) -> list[WorkerRow]:
    """List the workers, those that ended within the last hour too. Raises `DatabaseUnavailable`."""
    return _read(database, lease_s, _FIRST, _LAST)


def find_worker(database: Database, id_or_start: str, lease_s: float) -> WorkerRow:
    """Find the worker with this id, or the only one whose id starts like this.

    Raises:
        NotFound: there is none.
        InvalidInput: there are several, or this cannot be the start of an id.
    """
    found = _read(database, lease_s, *id_range(Prefix.WORKER, id_or_start))
    if not found:
        raise NotFound(f"There is no worker '{id_or_start[:80]}'. See: turnmill workers list")
    if len(found) > 1:
        raise InvalidInput(f"Several workers start with '{id_or_start}'; give more digits.")
    return found[0]


def ask_to_drain(database: Database, worker: WorkerRow, *, by: str) -> None:
    """Ask a worker to finish what it runs, to hand back the rest, and to end.

    It notices within half a second. Raises `NotFound`: it is dead.
    """
    if not worker.is_alive:
        how = "ended after a drain" if worker.state is WorkerState.ENDED else "is dead"
        raise NotFound(
            f"Worker {worker.shown_id} (process {worker.pid} on {worker.host}) {how}; it was last "
            f"seen at {worker.seen_at.isoformat(timespec='seconds')}. There is nothing to drain: "
            "other workers answer its turns."
        )
    database.run(_ASK_TO_DRAIN, (by, worker.id))
    log.info("worker.drain_asked", worker_id=worker.id.hex)


def _read(database: Database, lease_s: float, low: UUID, high: UUID) -> list[WorkerRow]:
    params = {"lease_s": lease_s, "low": low, "high": high}
    return database.fetch(WorkerRow, _WORKERS, params)
