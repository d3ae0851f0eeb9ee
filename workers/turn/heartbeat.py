"""The heartbeat: one thread per process that keeps the process registered and its leases alive.

It also holds the advisory lock that shows the others that this process lives, notices that turns
were lost or hang, and decides when a standby takes over.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import structlog
from psycopg.types.json import Jsonb

from turnmill.schemas.errors import DatabaseOutdated, DatabaseUnavailable
from turnmill.schemas.observability.telemetry import DATABASE_RECONNECTS
from turnmill.schemas.postgres.database import Database, why_away
from turnmill.schemas.postgres.links import Link, Stop
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.routes import ABORT_CHANNEL
from turnmill.schemas.settings import WorkerSettings
from turnmill.schemas.store.claim import ABANDON
from turnmill.schemas.store.fleet.liveness import LIVENESS_LOCK_CLASS
from turnmill.schemas.store.fleet.release import RELEASE, UPGRADE_POLL_S, refuse_older_database
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.metrics import LEASES_LOST
from turnmill.workers.turn.attempt import AbortReason
from turnmill.workers.upkeep.liveness import GRACE_S, take_over

if TYPE_CHECKING:
    from turnmill.workers.turn.leases import Leases

log = structlog.get_logger()

#: How often a process says that it lives, and looks at the deadlines of its turns.
TICK_S = 0.5

#: Locks the turns in the order of their ids, like everybody who locks several.
_RENEW = """
WITH kept AS (
    SELECT t.id FROM turns t JOIN unnest(%s::uuid[], %s::int[]) AS held (turn_id, attempt)
        ON t.id = held.turn_id AND t.attempt = held.attempt
    WHERE t.worker_id = %s AND t.state = 'running'
    ORDER BY t.id FOR NO KEY UPDATE OF t
)
UPDATE turns t SET leased_until = clock_timestamp() + make_interval(secs => %s)
FROM kept WHERE t.id = kept.id
RETURNING t.id
"""


class _LockKey(NamedTuple):
    """A row of `_REGISTER` and `_NEW_LOCK_KEY`."""

    lock_key: int


class _IsHeld(NamedTuple):
    is_held: bool


_REGISTER = """
INSERT INTO worker_liveness
    (id, host, pid, model, engine, lanes, slots, is_consuming, own_lanes,
    unavailable_because, version, capabilities)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(), is_consuming = EXCLUDED.is_consuming,
    unavailable_because = EXCLUDED.unavailable_because, capabilities = EXCLUDED.capabilities
RETURNING lock_key
"""

_LOCK = "SELECT pg_try_advisory_lock(%s, %s) AS is_held"

#: The lock of a row that was deleted says nothing about the row that replaces it.
_UNLOCK = "SELECT pg_advisory_unlock_all()"

_NEW_LOCK_KEY = "UPDATE worker_liveness SET lock_key = DEFAULT WHERE id = %s RETURNING lock_key"


class _Seen(NamedTuple):
    now_s: float
    is_drain_asked: bool


_SEEN = """
UPDATE worker_liveness
SET seen_at = clock_timestamp(), is_consuming = %s, unavailable_because = %s, ended_lately = %s,
    draining_since = CASE WHEN %s THEN coalesce(draining_since, clock_timestamp()) END
WHERE id = %s
RETURNING extract(epoch FROM clock_timestamp())::float AS now_s,
    drain_asked_at IS NOT NULL AS is_drain_asked
"""


class Heartbeat:
    """The thread behind `Leases`."""

    def __init__(
        self,
        leases: "Leases",
        database: Database,
        settings: WorkerSettings,
        *,
        model: str,
        engine: str,
        own_lanes: Sequence[Lane] = (),
    ) -> None:
        self._leases = leases
        self._database = database
        self._settings = settings
        self._model = model
        self._engine = engine
        self._own_lanes = own_lanes
        #: When the loop last came round (`time.monotonic`).
        self.beat_at = float("inf")
        self._stopping = Stop()
        self._registered = threading.Event()
        self._reconnected_at = float("-inf")
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    def start(self) -> None:
        """Start the thread; returns once this process is registered."""
        self._thread.start()
        self._registered.wait()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def reconnected_s(self) -> float:
        """Seconds since the connection was replaced, or PostgreSQL's clock stepped; endless if
        neither ever was, negative without a connection.
        """
        return time.monotonic() - self._reconnected_at

    def _keep(self) -> None:
        """The thread: stay registered as long as the process lives, over every reconnect."""
        while not self._stopping.is_set():
            self.beat_at = time.monotonic()
            try:
                with self._database.connect() as connection:
                    self._register(connection)
                    while not self._stopping.is_set():
                        self._beat(connection)
                        self.beat_at = time.monotonic()
                    self._say_seen(connection)
            except DatabaseOutdated as error:
                log.error("database.outdated", reason=error.message)
                self._stopping.wait(UPGRADE_POLL_S)
            except (DatabaseUnavailable, psycopg.Error) as error:
                self._reconnected_at = float("inf")
                DATABASE_RECONNECTS.inc()
                log.warning("leases.disconnected", error=why_away(error))
                self._stopping.wait(TICK_S)

    def _register(self, connection: Link) -> None:
        refuse_older_database(connection.fetch)
        identity = (
            self._leases.worker_id,
            socket.gethostname(),
            os.getpid(),
            self._model,
            self._engine,
            [lane.value for lane in self._settings.lanes],
            self._settings.concurrency,
            self._leases.takes_hints,
            [lane.value for lane in self._own_lanes],
            self._leases.unavailable_because,
            RELEASE,
            self._declared(),
        )
        (row,) = connection.fetch(_LockKey, _REGISTER, identity)
        connection.execute(f"LISTEN {ABORT_CHANNEL}")
        connection.execute(_UNLOCK)
        self._lock_key: int | None = row.lock_key
        self._try_lock(connection)
        self._renewed_at = float("-inf")
        is_first = not self._registered.is_set()
        self._reconnected_at = float("-inf") if is_first else time.monotonic()
        self._registered.set()

    def _declared(self) -> Jsonb | None:
        return (
            None
            if self._leases.capabilities is None
            else Jsonb(self._leases.capabilities.model_dump(mode="json"))
        )

    def _try_lock(self, connection: Link) -> None:
        """Take the lock of this worker's row, or give the row another key for the next try.

        Another backend may hold the lock: this worker's own connection that was cut and that the
        server has not noticed yet, or a foreign one. Waiting for it would leave the worker without
        a lock, and after the worker's death its turns would look alive.
        """
        if self._lock_key is None:
            return
        (lock,) = connection.fetch(_IsHeld, _LOCK, (LIVENESS_LOCK_CLASS, self._lock_key))
        if lock.is_held:
            self._lock_key = None
        elif rows := connection.fetch(_LockKey, _NEW_LOCK_KEY, (self._leases.worker_id,)):
            self._lock_key = rows[0].lock_key

    def _say_seen(self, connection: Link) -> bool:
        """False if this worker's row is gone."""
        leases, asked_at = self._leases, time.monotonic()
        state = (
            leases.takes_hints,
            leases.unavailable_because,
            Jsonb(leases.ended.lately()),
            leases.draining.is_set(),
        )
        rows = connection.fetch(_Seen, _SEEN, (*state, leases.worker_id))
        if not rows:
            return False
        (row,) = rows
        if step_s := leases.clock.observe(row.now_s, asked_at):
            self._on_step(step_s)
        if row.is_drain_asked and not leases.draining.is_set():
            log.info("drain.asked")
            leases.on_drain()
        return True

    def _on_step(self, step_s: float) -> None:
        """Renew the leases by the new time, and give the other workers time to do the same."""
        log.warning("clock.stepped", by_s=round(step_s, 3))
        self._renewed_at = float("-inf")
        self._reconnected_at = time.monotonic()

    def _take_over(self, connection: Link) -> None:
        """If this is a standby and nobody else is left; not while all come back from an outage."""
        if (
            self._leases.stands_by
            and self._leases.unavailable_because is None
            and self.reconnected_s >= GRACE_S
            and take_over(connection, self._leases.worker_id, lease_s=self._settings.lease_s)
        ):
            self._leases.stands_by = False
            self._leases.consuming.set()

    def _beat(self, connection: Link) -> None:
        if not self._say_seen(connection):
            log.warning("worker.registration_lost", worker_id=self._leases.worker_id.hex)
            self._register(connection)
        self._try_lock(connection)
        self._take_over(connection)
        self._renew_in_time(connection)
        self._listen(connection)
        now = time.monotonic()
        for attempt in self._leases.attempts():
            attempt.time_out(now)
        self._look_for_hung(connection, now)

    def _renew_in_time(self, connection: Link) -> None:
        now = time.monotonic()
        if now - self._renewed_at >= self._settings.lease_s / 4:
            self._renew(connection)
            self._renewed_at = now

    def _listen(self, connection: Link) -> None:
        """For the rest of the tick; a stopping process is not kept waiting for its end."""
        ends_at = time.monotonic() + TICK_S
        while (left_s := ends_at - time.monotonic()) > 0 and not self._stopping.is_set():
            for turn_id in connection.wait_for_notifications(left_s, self._stopping):
                for attempt in self._leases.attempts():
                    if attempt.claim.turn_id.hex == turn_id:
                        attempt.stop(AbortReason.LOST)

    def _look_for_hung(self, connection: Link, now: float) -> None:
        """A thread cannot be killed; abandoned, its turn counts as a dead worker's."""
        hang_s = self._settings.hang_s
        if self.reconnected_s < hang_s:
            return  # what looks like an engine may be waiting for Postgres
        for attempt in self._leases.kept:
            if attempt.ignores_abort(since=now - hang_s):
                self._leases.abandon(attempt)
                turn_id, reason = attempt.claim.turn_id.hex, attempt.reason
                log.error("engine.hung", turn_id=turn_id, abort_reason=reason)
                connection.execute(ABANDON, attempt.claim.fence)
                self._leases.on_hang()

    def _renew(self, connection: Link) -> None:
        asked = self._leases.kept
        if not asked:
            return
        keys = [(attempt.claim.turn_id, attempt.claim.attempt) for attempt in asked]
        ids, numbers = (list(column) for column in zip(*keys, strict=True))
        held = (ids, numbers, self._leases.worker_id, self._settings.lease_s)
        kept = {row.id for row in connection.fetch(Id, _RENEW, held)}
        for attempt in asked:
            # A turn that settled meanwhile is not kept either; stopping it does nothing.
            if attempt.claim.turn_id not in kept:
                if not attempt.has_outcome and attempt.reason is None:
                    LEASES_LOST.inc()
                attempt.stop(AbortReason.LOST)
