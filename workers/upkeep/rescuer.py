"""The rescuer: requeue the turns of dead workers. The relay looks for lost hints.

Every worker process runs one; an advisory lock lets one sweep at a time. Each step of a sweep is a
statement and a transaction, so a rescuer that is paused between two of them blocks nobody. A row
that PostgreSQL refuses to change holds up no other (`isolated.py`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.clock import TOLERANCE_S, outlasts
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.routes import OUTBOX_CHANNEL
from turnmill.schemas.settings import WorkerSettings
from turnmill.schemas.store.requeue import REQUEUE_WEIGHED
from turnmill.schemas.store.tables import RESCUER_LOCK_KEY
from turnmill.schemas.turns import Lane, TurnState
from turnmill.workers.consumer.metrics import TURNS_RESCUED
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Ending, end_turns
from turnmill.workers.upkeep.batches import (
    finish_sweeps,
    forget_batch_moves,
    merge_batch_moves,
)
from turnmill.workers.upkeep.evidence import IS_INTERRUPTED, WEIGHED
from turnmill.workers.upkeep.isolated import isolated
from turnmill.workers.upkeep.keeping import cut_leases
from turnmill.workers.upkeep.liveness import ALIVE, GRACE_S

log = structlog.get_logger()

#: A statement that waited so long for a table's lock judges nobody, seconds: the workers waited
#: for the same lock with their renewals.
STALL_S = 1.0

#: Nothing is judged by a clock that has just stepped forward (`latest_s`): every lease looks
#: expired until its worker has renewed it.
_GUARD = f"""
guard AS MATERIALIZED (
    SELECT clock_timestamp() < to_timestamp(%(latest_s)s)
        AND clock_timestamp() < now() + make_interval(secs => {STALL_S})
        AND pg_try_advisory_xact_lock({RESCUER_LOCK_KEY}) AS is_mine
)"""

#: After a step back, leases and hints of before would last until the clock shows their times
#: again. They are cut to what they would be if written now: the leases of workers that were last
#: seen in the future (one that lives is seen twice a second), and hints published there.
_LONG_LEASES = f"""
FROM turns t LEFT JOIN worker_liveness w ON w.id = t.worker_id
WHERE (SELECT is_mine FROM guard) AND t.state = 'running'
  AND {outlasts("t.leased_until", "%(lease_s)s")}
  AND (w.id IS NULL OR w.seen_at > clock_timestamp() + make_interval(secs => {TOLERANCE_S}))
"""
_LATE_HINTS = f"""
FROM outbox WHERE (SELECT is_mine FROM guard)
  AND published_at > clock_timestamp() + make_interval(secs => {TOLERANCE_S})
"""

_FUTURE = f"""
WITH {_GUARD}
SELECT t.id, true AS is_lease {_LONG_LEASES}
UNION ALL SELECT turn_id, false {_LATE_HINTS}
"""

_CUT_LEASES = f"""
WITH {_GUARD}, held AS (
    SELECT t.id {_LONG_LEASES} AND t.id = ANY(%(turns)s)
    ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE turns t SET leased_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
FROM held WHERE t.id = held.id RETURNING t.id
"""

_CUT_HINTS = f"""
WITH {_GUARD}, hinted AS (
    SELECT turn_id {_LATE_HINTS} AND turn_id = ANY(%(turns)s) FOR UPDATE SKIP LOCKED
)
UPDATE outbox o SET published_at = clock_timestamp()
FROM hinted WHERE o.turn_id = hinted.turn_id RETURNING o.turn_id AS id
"""

#: A worker without a row is not dead: its row was deleted, or restored away, and it writes it
#: again at its next beat. Should it be dead after all, its leases expire.
_IS_LOST = """
t.state = 'running'
AND (t.leased_until < clock_timestamp() OR t.worker_id IN (
    SELECT id FROM worker_liveness EXCEPT SELECT id FROM alive))"""

_LOST = f"""
WITH {_GUARD}, {ALIVE}
SELECT t.id FROM turns t WHERE (SELECT is_mine FROM guard) AND {_IS_LOST} ORDER BY t.id
"""

#: Looked at again under the lock, for the worker may be back; an attempt that is younger than the
#: snapshot (`seen`) is nobody's to judge. Turns whose crashes in quarantine are too many are left
#: to `_park`. A turn whose attempt has no row any more (a hand, a month that was dropped) is
#: requeued like any other.
_REQUEUE_LOST = f"""
WITH {_GUARD}, {ALIVE}, lost AS (
    SELECT t.id, t.attempt, t.worker_id, t.conversation_id, t.crashes + 1 AS crashes, t.model,
        t.lane, t.deadline_at, a.lane IS NOT DISTINCT FROM '{Lane.QUARANTINE}' AS is_alone,
        {IS_INTERRUPTED} AS is_interrupted
    FROM turns seen JOIN turns t ON t.id = seen.id AND t.attempt = seen.attempt
    LEFT JOIN attempts a ON a.turn_id = seen.id AND a.number = seen.attempt
    WHERE (SELECT is_mine FROM guard) AND seen.id = ANY(%(turns)s) AND {_IS_LOST}
    ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
), {WEIGHED}, {REQUEUE_WEIGHED}
SELECT weighed.*, pg_notify('{OUTBOX_CHANNEL}', '') FROM weighed
"""

#: Rows of workers long dead say nothing any more.
_LONG_DEAD = f"""
WITH {ALIVE}
SELECT w.id FROM worker_liveness w WHERE w.seen_at < clock_timestamp() - interval '1 hour'
AND w.id NOT IN (SELECT id FROM alive)
"""
_FORGET = """
DELETE FROM worker_liveness
WHERE id = ANY(%s) AND seen_at < clock_timestamp() - interval '1 hour'
"""


class _Future(NamedTuple):
    """A row of `_FUTURE`: a turn, whose lease is too long, or else whose hint is of the future."""

    id: UUID
    is_lease: bool


class _Lost(NamedTuple):
    """A row of `_REQUEUE_LOST`: a turn whose attempt was lost, as it was."""

    id: UUID
    attempt: int
    worker_id: UUID
    conversation_id: UUID
    crashes: int
    model: str
    lane: str
    deadline_at: datetime | None
    is_alone: bool
    is_interrupted: bool
    is_isolated: bool
    #: Parked: its crashes in quarantine are too many.
    is_spent: bool


def sweep(database: Database, settings: WorkerSettings, *, latest_s: float = float("inf")) -> int:
    """Requeue or park lost turns; return how many.

    `latest_s`: PostgreSQL's Unix time at the latest, unless its clock has stepped forward.
    Raises `DatabaseUnavailable`.
    """
    began_at = time.monotonic()
    clock: dict[str, object] = {"latest_s": latest_s}
    _cut_future(database, clock | {"lease_s": settings.lease_s})
    if time.monotonic() - began_at >= STALL_S:
        return 0
    lost = _requeue_lost(database, clock | {"quarantine_after": settings.quarantine_after})
    spent = {row.id: row for row in lost if row.is_spent}
    isolated(lambda ids: _park(database, [spent[turn_id] for turn_id in ids]), list(spent))
    if lost:
        for row in lost:
            TURNS_RESCUED.labels("parked" if row.is_spent else "requeued").inc()
        log.info("turns.rescued", lost_count=len(lost))
    return len(lost)


def _cut_future(database: Database, params: dict[str, object]) -> None:
    future = database.fetch(_Future, _FUTURE, params)

    def cut(statement: str, ids: list[UUID]) -> int:
        return len(isolated(lambda some: run(statement, some), ids))

    def run(statement: str, ids: list[UUID]) -> list[Id]:
        return database.fetch(Id, statement, params | {"turns": ids})

    leases = cut(_CUT_LEASES, [row.id for row in future if row.is_lease])
    hints = cut(_CUT_HINTS, [row.id for row in future if not row.is_lease])
    if leases or hints:
        log.warning("clock.stepped_back", lease_count=leases, hint_count=hints)


def forget_workers(database: Database) -> None:
    """Delete the rows of workers long dead. Raises `DatabaseUnavailable`."""
    dead = [row.id for row in database.fetch(Id, _LONG_DEAD)]
    isolated(lambda ids: database.run(_FORGET, (ids,)), dead, "worker")


def _requeue_lost(database: Database, params: dict[str, object]) -> list[_Lost]:
    return isolated(
        lambda ids: database.fetch(_Lost, _REQUEUE_LOST, params | {"turns": ids}),
        [row.id for row in database.fetch(Id, _LOST, params)],
    )


def _park(database: Database, rows: list[_Lost]) -> list[bool]:
    ended = end_turns(database, [_spent(row) for row in rows])
    for row in rows:
        log.error("turn.parked", turn_id=row.id.hex, crash_count=row.crashes)
    return ended


def _spent(row: _Lost) -> Ending:
    return Ending(
        row.id,
        row.conversation_id,
        row.attempt,
        row.worker_id,
        is_watched=True,
        state=TurnState.PARKED,
        outcome="crashed",
        error_code="worker_lost",
        error_message=f"The turn ran in {row.crashes} workers that ended, alone in the last ones.",
    )


class Rescuer:
    """The thread that sweeps.

    After an outage of PostgreSQL everybody looks dead. A process that was cut off itself
    therefore waits until the others had time to come back too.
    """

    def __init__(self, database: Database, settings: WorkerSettings, leases: Leases) -> None:
        self._database = database
        self._settings = settings
        self._leases = leases
        self._stopping = threading.Event()
        self._wake = threading.Event()
        #: The last sweep waited for a table, or for PostgreSQL as a whole.
        self._has_stalled = False
        #: The last round left something of a batch's pause, resumption or cancellation.
        self._has_sweeps = False
        self._thread = threading.Thread(target=self._run, name="rescuer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Sweep now: somebody saw a sign of a dead worker."""
        self._wake.set()

    def close(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        sweeps = 0
        while not self._stopping.is_set():
            if self._leases.reconnected_s < GRACE_S:
                self._stopping.wait(GRACE_S / 4)
                continue
            try:
                for chore in (self._sweep, *self._chores(sweeps)):
                    self._do(chore)
                sweeps += 1
            except DatabaseUnavailable as error:
                self._has_stalled = True
                log.warning("rescuer.stalled", error=error.message)
            self._wake.wait(self._settings.rescue_every_s)
            self._wake.clear()

    def _do(self, chore: Callable[[], object]) -> None:
        """Whatever ails one chore holds up none of the others. Raises `DatabaseUnavailable`."""
        try:
            chore()
        except DatabaseUnavailable:
            raise
        except Exception:
            # Without a rescuer nothing looks after dead workers: it must not die of one turn.
            log.exception("rescuer.failed")

    def _chores(self, sweeps: int) -> Iterator[Callable[[], object]]:
        """Yield the chores beside the sweep; most of them do not belong to every round."""
        yield lambda: cut_leases(self._database, self._settings.lease_s)
        if sweeps % 5 == 0:
            yield lambda: merge_batch_moves(self._database)
        if sweeps % 5 == 0 or self._has_sweeps:
            yield self._finish_sweeps
        if sweeps % 600 == 0:
            yield lambda: forget_workers(self._database)
            yield lambda: forget_batch_moves(self._database)

    def _finish_sweeps(self) -> None:
        self._has_sweeps = False
        self._has_sweeps = finish_sweeps(self._database)

    def _sweep(self) -> None:
        """After a stall, find out first whether the tables are free again, and judge nobody.

        Then the workers, which waited as well, get time to renew their leases.
        """
        had_stalled, began_at = self._has_stalled, time.monotonic()
        latest_s = float("-inf") if had_stalled else self._leases.clock.latest_s
        sweep(self._database, self._settings, latest_s=latest_s)
        self._has_stalled = time.monotonic() - began_at >= STALL_S
        if had_stalled:
            self._stopping.wait(GRACE_S)
