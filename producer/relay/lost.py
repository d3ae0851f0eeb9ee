"""Find hints that the broker lost, and have them published again.

A hint that nobody takes for a while is either lost or waits behind others, and its age does not
tell which. The broker's own count does: a lane whose queue holds fewer messages than the outbox
has published hints misses the difference, and the oldest hints are the missing ones, because a
queue is emptied in order. Never more are published again than are missing, so the broker holds at
most the relay's window and what workers have taken but not claimed.
"""

import threading
from collections import Counter

import psycopg
import structlog

from turnmill.producer.relay.metrics import HINTS_LOST
from turnmill.producer.relay.outbox import REHINT, STALE, Rehinted, StaleLane
from turnmill.producer.relay.publisher import Publisher
from turnmill.schemas.errors import BrokerUnavailable, DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings

log = structlog.get_logger()

#: Pause between two looks at the lanes that have old hints. A lane is judged by two looks: a hint
#: that is just being published or claimed is missing in one of them.
LOOK_S = 0.5


class LostHints:
    """The thread that looks, with a connection to the broker for it alone."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._lost_after_s = settings.worker.hint_lost_after_s
        self._publisher = Publisher(settings)
        #: Hints that the last look missed, by lane.
        self._missing: Counter[tuple[str, str]] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lost-hints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)
        self._publisher.close()

    def look(self) -> int:
        """Mark missing hints of stale lanes as unpublished; return how many.

        A hint whose turn or delivery is not queued is deleted: it would be published for ever. A
        lane that PostgreSQL refuses to change holds up no other.

        Raises:
            BrokerUnavailable: it could not be asked.
            DatabaseUnavailable: nothing was marked.
        """
        stale = self._database.fetch(StaleLane, STALE, {"lost_after_s": self._lost_after_s})
        missing: Counter[tuple[str, str]] = Counter()
        rehinted_count = 0
        for lane in stale:
            try:
                found = self._rehint(lane)
            except psycopg.Error as error:
                # Without the server's text, which may quote what is in a row.
                which = {"lane": lane.lane, "model": lane.model}
                log.error("hints.unchecked", error=type(error).__name__, **which)
                continue
            missing[lane.model, lane.lane] = max(found.missing_count - found.rehinted_count, 0)
            rehinted_count += found.rehinted_count
        self._missing = missing
        if rehinted_count:
            HINTS_LOST.inc(rehinted_count)
            log.info("hints.lost", rehinted_count=rehinted_count)
        return rehinted_count

    def _rehint(self, lane: StaleLane) -> Rehinted:
        depth = self._publisher.depth(lane.lane, lane.model, lane.deployment)
        (found,) = self._database.fetch(
            Rehinted,
            REHINT,
            {
                "model": lane.model,
                "lane": lane.lane,
                "lost_after_s": self._lost_after_s,
                "looked_at": lane.looked_at,
                "depth": depth,
                "at_most": self._missing[lane.model, lane.lane],
            },
        )
        return found

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
            except (BrokerUnavailable, DatabaseUnavailable) as error:
                # The relay's own thread meets the same outage, and logs it as a warning.
                log.debug("hints.unchecked", error=error.message)
            except psycopg.Error as error:
                # Tables that are not there yet, or locked.
                log.warning("hints.unchecked", error=type(error).__name__)
            except Exception:
                # Nobody else looks for lost hints.
                log.exception("hints.check_failed")
