"""The relay: the only process that publishes.

It takes outbox rows in the order of their deadlines, marks them, and publishes their hints
with confirms; what the broker does not confirm is unmarked. A relay that dies in between
leaves marked rows whose hint the broker never had: `lost.py` finds them. Rows are
taken with SKIP LOCKED, so any number of relays may run. Which queue a hint goes to is said in
`outbox.py`.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import psycopg
import structlog

from turnmill.producer.relay.lost import LostHints
from turnmill.producer.relay.metrics import HINTS_PUBLISHED, IS_FULL, TAKE_S, WINDOW
from turnmill.producer.relay.outbox import NEXT, TAKE, UNMARK, DueHint, NextHint
from turnmill.producer.relay.publisher import Publisher
from turnmill.schemas.errors import BrokerUnavailable, DatabaseOutdated, DatabaseUnavailable
from turnmill.schemas.observability.telemetry import DATABASE_RECONNECTS, STUCK_AFTER_S, Health
from turnmill.schemas.postgres.database import Database, why_away
from turnmill.schemas.postgres.links import PLAN_ONCE, Stop
from turnmill.schemas.routes import DELIVERY_LANE, OUTBOX_CHANNEL
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.fleet.release import UPGRADE_POLL_S, refuse_older_database
from turnmill.schemas.store.tables import RELAY_NAME
from turnmill.schemas.turns import Lane

log = structlog.get_logger()

#: Pause while the broker's window is full; a slot of a worker frees a place.
WINDOW_POLL_S = 0.02

#: Pause before a late hint is looked for again: its row may be held by who claims it.
LATE_POLL_S = 0.005

#: What is published; hints of paused batches are in none of these.
_LANES = [*(lane.value for lane in Lane), DELIVERY_LANE]

#: Pause before the next try to reach PostgreSQL.
RECONNECT_S = 0.5


class Relay:
    """One thread that takes what is due, and several that publish it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.database, session=PLAN_ONCE)
        self._stopping = Stop()
        self._lost_hints = LostHints(settings, self._database)
        count = settings.relay.publishers
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="publisher")
        self._free: SimpleQueue[Publisher] = SimpleQueue()
        for _ in range(count):
            self._free.put(Publisher(settings))
        #: Why no hints go out at the moment: nothing connects, or the last ones were not confirmed.
        self._unready_because: str | None = "starting"
        self._looped_at = math.inf
        self.health = Health(stuck=self._why_stuck, unready=lambda: self._unready_because)
        WINDOW.set(settings.relay.window)

    def run(self) -> None:
        """Relay until `stop` is called from another thread."""
        log.info("relay.started", window=self._settings.relay.window)
        self._lost_hints.start()
        while not self._stopping.is_set():
            self._looped_at = time.monotonic()
            try:
                self._relay_while_connected()
            except DatabaseOutdated as error:
                self._unready_because = "the database is older than this release"
                log.error("database.outdated", reason=error.message)
                self._stopping.wait(UPGRADE_POLL_S)
            except (DatabaseUnavailable, psycopg.Error) as error:
                self._unready_because = "not connected to PostgreSQL"
                DATABASE_RECONNECTS.inc()
                log.warning("relay.disconnected", error=why_away(error))
                self._stopping.wait(RECONNECT_S)
        self._pool.shutdown(wait=True)
        self._lost_hints.close()
        while not self._free.empty():
            self._free.get().close()
        self._database.close()

    def stop(self) -> None:
        self._stopping.set()

    def _why_stuck(self) -> str | None:
        if time.monotonic() - self._looped_at > STUCK_AFTER_S:
            return f"the relay's loop has not come round for {STUCK_AFTER_S:g} s"
        return None

    def _relay_while_connected(self) -> None:
        with self._database.connect() as connection:
            refuse_older_database(connection.fetch)
            connection.execute(f"SET application_name = '{RELAY_NAME}'")
            connection.execute(f"LISTEN {OUTBOX_CHANNEL}")
            self._unready_because = None
            while not self._stopping.is_set():
                self._looped_at = time.monotonic()
                publisher = self._free.get()
                rows = self._take(publisher)
                if rows:
                    self._pool.submit(self._publish, publisher, rows)
                    continue
                self._free.put(publisher)
                # On the connection that listens: open at our end only, it would hear nothing.
                (due,) = connection.fetch(NextHint, NEXT, {"lanes": _LANES})
                IS_FULL.set(due.is_owed)
                pause_s = WINDOW_POLL_S if due.is_owed else self._settings.relay.sweep_s
                next_in_s = math.inf if due.next_in_s is None else due.next_in_s
                connection.wait_for_notifications(
                    min(pause_s, max(next_in_s, LATE_POLL_S)), self._stopping
                )

    def _take(self, publisher: Publisher) -> list[DueHint]:
        relay, affinity = self._settings.relay, self._settings.affinity
        try:
            with TAKE_S.time():
                return self._database.fetch(
                    DueHint,
                    TAKE,
                    {
                        "window": relay.window,
                        "batch_size": relay.batch_size,
                        "lanes": _LANES,
                        "warm_lanes": [lane.value for lane in affinity.warm_lanes],
                        "warm_s": affinity.warm_s,
                        "ttl_s": affinity.ttl_ms / 1000,
                    },
                )
        except BaseException:
            # The loop continues after any error, and needs its publishers back.
            self._free.put(publisher)
            raise

    def _publish(self, publisher: Publisher, rows: list[DueHint]) -> None:
        try:
            publisher.publish(rows)
            HINTS_PUBLISHED.labels("confirmed").inc(len(rows))
            self._unready_because = None
        except BrokerUnavailable as error:
            HINTS_PUBLISHED.labels("unconfirmed").inc(len(rows))
            self._unready_because = "the broker confirms no hints"
            log.warning("relay.stalled", error=error.message)
            self._unmark(rows)
            self._stopping.wait(self._settings.relay.sweep_s)
        finally:
            self._free.put(publisher)

    def _unmark(self, rows: list[DueHint]) -> None:
        try:
            self._database.run(UNMARK, ([row.turn_id for row in rows],))
        except DatabaseUnavailable as error:
            # They stay marked; the next look for lost hints misses them.
            log.warning("relay.stalled", error=error.message)
