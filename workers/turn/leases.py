"""Leases: the right of one attempt to one turn.

An attempt owns its turn while `turns` names its number and worker in state `running`; every
later write repeats that condition, so a worker that was paused or cut off can never
overwrite anything. `heartbeat.py` keeps the leases alive.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import WorkerSettings
from turnmill.schemas.store.claim import CLAIM, ClaimedRow
from turnmill.schemas.turns import Lane
from turnmill.workers.turn.attempt import AbortReason, Attempt
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.coalesce import Coalescer
from turnmill.workers.turn.heartbeat import Heartbeat
from turnmill.workers.upkeep.clock import DatabaseClock
from turnmill.workers.upkeep.ended import Ended

#: A process that did not say for so long that it consumes has lost the broker, seconds.
UNCONSUMED_S = 5.0


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
        #: `claim(turn_id)`: win the turn for a new attempt, or None if there is nothing to
        #: win. Raises `DatabaseUnavailable`: whether it was won is unknown; its lease will tell.
        #: Nothing is claimed while the heartbeat has no connection: no lease could be renewed.
        self.claim = Coalescer(self._claim)
        #: What the engine declares, once it is loaded; published with the registration.
        self.capabilities: Capabilities | None = None
        #: Called when the engine hangs or has died: it will not get better in this process.
        self.on_hang: Callable[[], None] = lambda: None
        #: Called when an operator asks this process to drain; more than once until it does.
        self.on_drain: Callable[[], object] = lambda: None
        #: The turns that this process has ended, for the rate that operators see.
        self.ended = Ended()
        self.clock = DatabaseClock()
        #: When the engine last said anything, to whichever turn (`time.monotonic`).
        self.spoke_at = float("-inf")
        self._held: set[Attempt] = set()
        self._hung: set[Attempt] = set()
        #: Of those that are held, the latest of each turn.
        self._latest: dict[UUID, Attempt] = {}
        #: Set once this process stops for good.
        self.draining = threading.Event()
        #: Why the engine takes no turns at the moment.
        self.unavailable_because: str | None = None
        #: Set while this process takes hints.
        self.consuming = threading.Event()
        #: When its consumers were last seen at the broker (`time.monotonic`); without end where
        #: nobody looks after them.
        self.consumed_at = float("inf")
        #: When Celery's loop last came round (`time.monotonic`).
        self.looped_at = float("inf")
        #: Set once no hints come any more because the engine is away: those held are handed back.
        self.hands_back = threading.Event()
        self.stands_by = settings.mode == "standby"
        if not self.stands_by:
            self.consuming.set()
        self._lock = threading.Lock()
        self.heartbeat = Heartbeat(
            self, database, settings, model=model, engine=engine, own_lanes=own_lanes
        )

    def start(self) -> None:
        """Register this process as alive; returns once the others can see it.

        Waits for a database that is away, or older than this release needs.
        """
        self.heartbeat.start()

    def close(self) -> None:
        self.heartbeat.close()

    def stop_consuming(self) -> None:
        """Tell the others that this process takes no more hints: a standby need not wait."""
        self.stands_by = False
        self.draining.set()
        self.consuming.clear()

    @property
    def takes_hints(self) -> bool:
        has_consumers = time.monotonic() - self.consumed_at < UNCONSUMED_S
        return self.consuming.is_set() and self.unavailable_because is None and has_consumers

    def _claim(self, turn_ids: list[UUID]) -> list[Claim | None]:
        if self.reconnected_s < 0:
            raise DatabaseUnavailable("The worker's heartbeat is not connected to PostgreSQL.")
        rows = self._database.fetch(
            ClaimedRow,
            CLAIM,
            {
                "turns": turn_ids,
                "model": self._model,
                "worker": self.worker_id,
                "lease_s": self._settings.lease_s,
                "lanes": [lane.value for lane in self._settings.lanes],
            },
        )
        claims = {row.id: Claim.of(row, self.worker_id, self.clock) for row in rows}
        # The same hint twice in one batch: the first one wins.
        return [claims.pop(turn_id, None) for turn_id in turn_ids]

    @contextmanager
    def hold(self, claim: Claim) -> Iterator[Attempt]:
        """Keep the lease alive inside the block."""
        attempt = Attempt(claim, self._settings.turn_timeout_s)
        with self._lock:
            if late := self._latest.get(claim.turn_id):
                # This process lost the turn, by its lease, and has won it again.
                late.stop(AbortReason.LOST)
            self._latest[claim.turn_id] = attempt
            self._held.add(attempt)
        try:
            yield attempt
        finally:
            with self._lock:
                if self._latest.get(claim.turn_id) is attempt:
                    del self._latest[claim.turn_id]
                self._held.discard(attempt)
                self._hung.discard(attempt)

    @property
    def reconnected_s(self) -> float:
        """Seconds since the connection was replaced, or PostgreSQL's clock stepped; endless if
        neither ever was, negative without a connection.
        """
        return self.heartbeat.reconnected_s

    @property
    def held_count(self) -> int:
        return len(self._held)

    def held_by_lane(self) -> Counter[Lane]:
        """Count the turns that attempts of this process hold, by lane."""
        return Counter(attempt.claim.lane for attempt in self.attempts())

    @property
    def hung_count(self) -> int:
        return len(self._hung)

    @property
    def kept(self) -> list[Attempt]:
        """The attempts whose leases are renewed: all but those that hang."""
        with self._lock:
            return list(self._held - self._hung)

    def stop_all(self, reason: AbortReason) -> None:
        for attempt in self.attempts():
            attempt.stop(reason)

    def attempts(self) -> list[Attempt]:
        with self._lock:
            return list(self._held)

    def abandon(self, attempt: Attempt) -> None:
        """Stop renewing the lease of an attempt whose engine does not let go of it."""
        with self._lock:
            self._hung |= self._held & {attempt}
