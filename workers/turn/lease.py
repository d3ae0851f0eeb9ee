"""Leases: the right of one attempt to one turn.

An attempt owns its turn while `turns` names its number and worker in state `running`; every
later write repeats that condition, so a worker that was paused or cut off can never
overwrite anything. One thread per process keeps the leases alive, holds the advisory lock
that tells the others this process lives, and passes on the news that a turn is lost.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.content import Document
from turnmill.schemas.errors import DatabaseOutdated, DatabaseUnavailable
from turnmill.schemas.ids import new_id
from turnmill.schemas.observability.telemetry import DATABASE_RECONNECTS
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.links import Link, Stop
from turnmill.schemas.routes import ABORT_CHANNEL
from turnmill.schemas.settings import WorkerSettings
from turnmill.schemas.store.claim import CLAIM
from turnmill.schemas.store.release import RELEASE, UPGRADE_POLL_S, refuse_older_database
from turnmill.schemas.store.tables import LIVENESS_LOCK_CLASS
from turnmill.schemas.turns import GenerationParams, Lane, Message
from turnmill.workers.consumer.metrics import LEASES_LOST
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.coalesce import Coalescer
from turnmill.workers.upkeep.clock import DatabaseClock
from turnmill.workers.upkeep.liveness import GRACE_S, take_over

log = structlog.get_logger()

#: How often a process says that it lives, and looks at the deadlines of its turns.
TICK_S = 0.5

#: A process that did not say for so long that it consumes has lost the broker, seconds.
UNCONSUMED_S = 5.0

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

#: The end of the lease says that the attempt is over as by a crash: the rescuer counts it. Only
#: running turns have a lease.
ABANDON = """
UPDATE turns SET leased_until = 'epoch'
WHERE id = %s AND attempt = %s AND worker_id = %s AND leased_until IS NOT NULL RETURNING id
"""

_REGISTER = """
INSERT INTO worker_liveness
    (id, host, pid, model, engine, lanes, slots, is_consuming, own_lanes,
    unavailable_because, version, capabilities)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(), is_consuming = EXCLUDED.is_consuming,
    unavailable_because = EXCLUDED.unavailable_because, capabilities = EXCLUDED.capabilities
RETURNING lock_key
"""

_LOCK = "SELECT pg_try_advisory_lock(%s, %s)"

#: The lock of a row that was deleted says nothing about the row that replaces it.
_UNLOCK = "SELECT pg_advisory_unlock_all()"

_NEW_LOCK_KEY = "UPDATE worker_liveness SET lock_key = DEFAULT WHERE id = %s RETURNING lock_key"

_SEEN = """
UPDATE worker_liveness
SET seen_at = clock_timestamp(), is_consuming = %s, unavailable_because = %s WHERE id = %s
RETURNING extract(epoch FROM clock_timestamp())::float AS now_s
"""


class AbortReason(StrEnum):
    LOST = "lost"  # cancelled, or taken over by another attempt: nothing left to write
    DEADLINE = "deadline"
    DRAIN = "drain"
    #: Longer than one attempt may take: the next one continues.
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Claim:
    """A turn as the attempt that won it sees it."""

    turn_id: UUID
    conversation_id: UUID
    worker_id: UUID
    #: With `worker_id`, the fence of every later write.
    attempt: int
    seq: int
    failures: int
    lane: Lane
    instructions: str
    messages: tuple[Message, ...]
    params: GenerationParams
    #: Passages for this turn alone.
    documents: tuple[Document, ...]
    #: As `Prompt.cache_namespace`: its tenant, where there are several.
    cache_namespace: str
    #: What earlier attempts produced and readers may have seen.
    kept_text: str
    kept_tokens: int
    next_position: int
    #: Seconds until nobody wants the reply any more.
    deadline_s: float | None
    #: Seconds since it was accepted, and of these since it was due, when it was claimed.
    age_s: float = 0.0
    queued_s: float = 0.0
    #: Why this worker cannot read the turn, whose messages are then empty.
    unreadable: str | None = None

    @property
    def fence(self) -> tuple[UUID, int, UUID]:
        """What `ABANDON` needs."""
        return self.turn_id, self.attempt, self.worker_id

    @property
    def params_left(self) -> GenerationParams:
        """The parameters for the rest of the reply: kept tokens count against max_tokens."""
        if not self.kept_tokens or self.params.max_tokens is None:
            return self.params
        left = self.params.max_tokens - self.kept_tokens
        return self.params.model_copy(update={"max_tokens": left})

    @property
    def is_complete(self) -> bool:
        """The kept tokens are all that the reply may have."""
        return self.params.max_tokens is not None and self.kept_tokens >= self.params.max_tokens


class Attempt:
    """One try at one turn, from claim to settle."""

    def __init__(self, claim: Claim, timeout_s: float) -> None:
        self.claim = claim
        #: Set when the engine must stop; `reason` says why.
        self.abort = Abort()
        self.reason: AbortReason | None = None
        #: The engine has let go of the turn; what is left is to settle it.
        self.has_outcome = False
        self._stopped_at = float("inf")
        limit_s = timeout_s if claim.deadline_s is None else min(timeout_s, claim.deadline_s)
        self._timeout_s = timeout_s
        self.began_at = time.monotonic()
        client_s = float("inf") if claim.deadline_s is None else claim.deadline_s
        self._deadline_at = self.began_at + client_s
        self.ends_at = self.began_at + limit_s
        #: The engine has added text to the reply.
        self.has_progressed = False

    def stop(self, reason: AbortReason) -> None:
        """Stop generating; the first reason stands."""
        if self.reason is None:
            self.reason = reason
            self._stopped_at = time.monotonic()
        self.abort.set()

    def progress(self, text: str, *, extends: bool) -> None:
        """Note what the engine has added to the reply. `extends`: the time for it begins anew."""
        self.has_progressed = self.has_progressed or bool(text)
        if extends:
            self.ends_at = min(time.monotonic() + self._timeout_s, self._deadline_at)

    def time_out(self, now: float) -> None:
        """Stop if the time is up (`time.monotonic`): the client's, or that of one attempt."""
        if now >= self.ends_at:
            is_clients = now >= self._deadline_at
            self.stop(AbortReason.DEADLINE if is_clients else AbortReason.TIMEOUT)

    def ignores_abort(self, since: float) -> bool:
        """Whether the engine was told to stop before this time (`time.monotonic`) and goes on."""
        return not self.has_outcome and self._stopped_at < since


class Leases:
    """All leases of this process."""

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        *,
        model: str,
        engine: str,
        own_lanes: Sequence[Lane] = (),
    ) -> None:
        """`own_lanes`: those for which this process consumes a queue of its own."""
        self.worker_id = new_id()
        self._database = database
        self._settings = settings
        self._model = model
        self._engine = engine
        self._own_lanes = own_lanes
        #: `claim(turn_id)`: win the turn for a new attempt, or None if there is nothing to
        #: win. Raises `DatabaseUnavailable`: whether it was won is unknown; its lease will tell.
        #: Nothing is claimed while the heartbeat has no connection: no lease could be renewed.
        self.claim = Coalescer(self._claim)
        #: What the engine declares, once it is loaded; published with the registration.
        self.capabilities: Capabilities | None = None
        #: Called when the engine hangs or has died: it will not get better in this process.
        self.on_hang: Callable[[], None] = lambda: None
        self.clock = DatabaseClock()
        #: When the engine last said anything, to whichever turn (`time.monotonic`).
        self.spoke_at = float("-inf")
        self._held: set[Attempt] = set()
        self._hung: set[Attempt] = set()
        #: Set once this process stops for good.
        self.draining = threading.Event()
        #: Why the engine takes no turns at the moment.
        self.unavailable_because: str | None = None
        #: Set while this process takes hints.
        self.consuming = threading.Event()
        #: When its consumers were last seen at the broker (`time.monotonic`); without end where
        #: nobody looks after them.
        self.consumed_at = float("inf")
        #: When the heartbeat's loop and Celery's last came round (`time.monotonic`).
        self.beat_at = self.looped_at = float("inf")
        #: Set once no hints come any more because the engine is away: those held are handed back.
        self.hands_back = threading.Event()
        self._stands_by = settings.mode == "standby"
        if not self._stands_by:
            self.consuming.set()
        self._lock = threading.Lock()
        self._stopping = Stop()
        self._registered = threading.Event()
        self._reconnected_at = float("-inf")
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    def start(self) -> None:
        """Register this process as alive; returns once the others can see it.

        Waits for a database that is away, or older than this release needs.
        """
        self._thread.start()
        self._registered.wait()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def stop_consuming(self) -> None:
        """Tell the others that this process takes no more hints: a standby need not wait."""
        self._stands_by = False
        self.draining.set()
        self.consuming.clear()

    @property
    def takes_hints(self) -> bool:
        has_consumers = time.monotonic() - self.consumed_at < UNCONSUMED_S
        return self.consuming.is_set() and self.unavailable_because is None and has_consumers

    def _claim(self, turn_ids: list[UUID]) -> list[Claim | None]:
        if self.reconnected_s < 0:
            raise DatabaseUnavailable("The worker's heartbeat is not connected to PostgreSQL.")
        rows = self._database.run(
            CLAIM,
            {
                "turns": turn_ids,
                "model": self._model,
                "worker": self.worker_id,
                "lease_s": self._settings.lease_s,
                "lanes": [lane.value for lane in self._settings.lanes],
            },
        )
        claims = {row.id: self._to_claim(row) for row in rows}
        # The same hint twice in one batch: the first one wins.
        return [claims.pop(turn_id, None) for turn_id in turn_ids]

    @contextmanager
    def hold(self, claim: Claim) -> Iterator[Attempt]:
        """Keep the lease alive inside the block."""
        attempt = Attempt(claim, self._settings.turn_timeout_s)
        with self._lock:
            for late in self._held:
                # This process lost the turn, by its lease, and has won it again.
                if late.claim.turn_id == claim.turn_id:
                    late.stop(AbortReason.LOST)
            self._held.add(attempt)
        try:
            yield attempt
        finally:
            with self._lock:
                self._held.discard(attempt)
                self._hung.discard(attempt)

    @property
    def reconnected_s(self) -> float:
        """Seconds since the connection was replaced, or PostgreSQL's clock stepped; endless if
        neither ever was, negative without a connection.
        """
        return time.monotonic() - self._reconnected_at

    @property
    def held_count(self) -> int:
        return len(self._held)

    def held_by_lane(self) -> Counter[Lane]:
        """Count the turns that attempts of this process hold, by lane."""
        return Counter(attempt.claim.lane for attempt in self._attempts())

    @property
    def hung_count(self) -> int:
        return len(self._hung)

    @property
    def kept(self) -> list[Attempt]:
        """The attempts whose leases are renewed: all but those that hang."""
        with self._lock:
            return list(self._held - self._hung)

    def stop_all(self, reason: AbortReason) -> None:
        for attempt in self._attempts():
            attempt.stop(reason)

    def _attempts(self) -> list[Attempt]:
        with self._lock:
            return list(self._held)

    def _to_claim(self, row: Any) -> Claim:
        messages, params, unreadable = _read(row)
        return Claim(
            turn_id=row.id,
            conversation_id=row.conversation_id,
            worker_id=self.worker_id,
            attempt=row.attempt,
            seq=row.seq,
            failures=row.failures,
            lane=Lane(row.lane),
            instructions=row.instructions,
            messages=messages,
            # An engine gets them in its prompt.
            params=params.model_copy(update={"documents": ()}),
            documents=params.documents,
            unreadable=unreadable,
            cache_namespace=row.tenant_id.hex if row.has_neighbours else "",
            kept_text=row.kept_text,
            kept_tokens=row.kept_tokens,
            next_position=row.next_position,
            deadline_s=self._deadline_s(row),
            age_s=max(row.now_s - row.accepted_s, 0.0),
            queued_s=max(row.queued_s, 0.0),
        )

    def _deadline_s(self, row: Any) -> float | None:
        """Seconds that are left of those that the client gave, whatever the clock did meanwhile."""
        if row.deadline_s is None:
            return None
        return float(row.deadline_s + self.clock.forward_between(row.accepted_s, row.now_s))

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
                log.warning("leases.disconnected", error=type(error).__name__)
                self._stopping.wait(TICK_S)

    def _register(self, connection: psycopg.Connection[Any]) -> None:
        refuse_older_database(lambda query: connection.execute(query).fetchall())
        identity = (
            self.worker_id,
            socket.gethostname(),
            os.getpid(),
            self._model,
            self._engine,
            [lane.value for lane in self._settings.lanes],
            self._settings.concurrency,
            self.takes_hints,
            [lane.value for lane in self._own_lanes],
            self.unavailable_because,
            RELEASE,
            self._declared(),
        )
        row = connection.execute(_REGISTER, identity).fetchone()
        assert row is not None
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
            None if self.capabilities is None else Jsonb(self.capabilities.model_dump(mode="json"))
        )

    def _try_lock(self, connection: psycopg.Connection[Any]) -> None:
        """Take the lock of this worker's row, or give the row another key for the next try.

        Another backend may hold the lock: this worker's own connection that was cut and that the
        server has not noticed yet, or a foreign one. Waiting for it would leave the worker without
        a lock, and after the worker's death its turns would look alive.
        """
        if self._lock_key is None:
            return
        cursor = connection.execute(_LOCK, (LIVENESS_LOCK_CLASS, self._lock_key))
        if cursor.fetchone()[0]:  # type: ignore[index]
            self._lock_key = None
        elif row := connection.execute(_NEW_LOCK_KEY, (self.worker_id,)).fetchone():
            self._lock_key = row.lock_key

    def _say_seen(self, connection: psycopg.Connection[Any]) -> bool:
        """False if this worker's row is gone."""
        asked_at = time.monotonic()
        row = connection.execute(
            _SEEN, (self.takes_hints, self.unavailable_because, self.worker_id)
        ).fetchone()
        if row is not None and (step_s := self.clock.observe(row.now_s, asked_at)):
            self._on_step(step_s)
        return row is not None

    def _on_step(self, step_s: float) -> None:
        """Renew the leases by the new time, and give the other workers time to do the same."""
        log.warning("clock.stepped", by_s=round(step_s, 3))
        self._renewed_at = float("-inf")
        self._reconnected_at = time.monotonic()

    def _take_over(self, connection: psycopg.Connection[Any]) -> None:
        """If this is a standby and nobody else is left; not while all come back from an outage."""
        if (
            self._stands_by
            and self.unavailable_because is None
            and self.reconnected_s >= GRACE_S
            and take_over(connection, self.worker_id, lease_s=self._settings.lease_s)
        ):
            self._stands_by = False
            self.consuming.set()

    def _beat(self, connection: Link) -> None:
        if not self._say_seen(connection):
            log.warning("worker.registration_lost", worker_id=self.worker_id.hex)
            self._register(connection)
        self._try_lock(connection)
        self._take_over(connection)
        self._renew_in_time(connection)
        self._listen(connection)
        now = time.monotonic()
        for attempt in self._attempts():
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
            for turn_id in connection.hear(left_s, self._stopping):
                for attempt in self._attempts():
                    if attempt.claim.turn_id.hex == turn_id:
                        attempt.stop(AbortReason.LOST)

    def _look_for_hung(self, connection: Link, now: float) -> None:
        """A thread cannot be killed; abandoned, its turn counts as a dead worker's."""
        hang_s = self._settings.hang_s
        if self.reconnected_s < hang_s:
            return  # what looks like an engine may be waiting for Postgres
        for attempt in self.kept:
            if attempt.ignores_abort(since=now - hang_s):
                with self._lock:
                    self._hung |= self._held & {attempt}
                turn_id, reason = attempt.claim.turn_id.hex, attempt.reason
                log.error("engine.hung", turn_id=turn_id, abort_reason=reason)
                connection.execute(ABANDON, attempt.claim.fence)
                self.on_hang()

    def _renew(self, connection: psycopg.Connection[Any]) -> None:
        asked = self.kept
        if not asked:
            return
        keys = [(attempt.claim.turn_id, attempt.claim.attempt) for attempt in asked]
        ids, numbers = (list(column) for column in zip(*keys, strict=True))
        cursor = connection.execute(_RENEW, (ids, numbers, self.worker_id, self._settings.lease_s))
        kept = {row.id for row in cursor}
        for attempt in asked:
            # A turn that settled meanwhile is not kept either; stopping it does nothing.
            if attempt.claim.turn_id not in kept:
                if not attempt.has_outcome and attempt.reason is None:
                    LEASES_LOST.inc()
                attempt.stop(AbortReason.LOST)


def _read(row: Any) -> tuple[tuple[Message, ...], GenerationParams, str | None]:
    """Read a turn's messages and parameters; why they cannot be read, if they cannot.

    An API of a newer release may have accepted the turn. The turns that are claimed by the same
    statement must not suffer for it.
    """
    try:
        messages = tuple(Message.model_validate(message) for message in row.input)
        return messages, GenerationParams.model_validate(row.params), None
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        return (), GenerationParams(), f"this worker's release does not know: {fields[:200]}"
