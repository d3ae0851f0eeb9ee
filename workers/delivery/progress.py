"""Show people how far their turn is: a place in the queue, then the reply as it is written.

Each channel has a loop and threads for it alone, so that a slow platform holds up no other.
"""

import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog
from psycopg.types.json import Jsonb

from turnmill.schemas.errors import ChannelUnavailable, DatabaseUnavailable, DeliveryRefused
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.channels.progress import ESTIMATE, PLACE, Pace, Place
from turnmill.schemas.store.channels.sending import RELEASE
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Delivery, LeaseLost, Look
from turnmill.workers.delivery.calls.posting import guarded
from turnmill.workers.delivery.claims import DeliveryClaim, Holder, Remembered, claim_progress
from turnmill.workers.delivery.metrics import STEPS_SHOWN
from turnmill.workers.upkeep.isolated import Resting

log = structlog.get_logger()

#: Pause between two looks for deliveries whose progress is due, seconds.
POLL_S = 0.25

#: After a failure: progress is a courtesy, and the delivery itself has its own attempts.
AFTER_FAILURE_S = 5.0

#: For how long an estimate of a model's pace is good, seconds.
PACE_S = 5.0


class Progress:
    """The loop of one channel."""

    def __init__(
        self, holder: Holder, channel: str, deliveries: Mapping[str, Delivery], threads: int
    ) -> None:
        self._holder = holder
        self._channel = channel
        self._deliveries = deliveries
        self._threads = threads
        self._busy = 0
        self._resting = Resting()
        self._lock = threading.Lock()
        self._paces = Paces(holder.database)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"progress-{channel}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"progress-{channel}", daemon=True)

    @property
    def busy_count(self) -> int:
        """Steps under way."""
        with self._lock:
            return self._busy

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no more steps."""
        self._stopping.set()

    def close(self) -> None:
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                self._look()
            except DatabaseUnavailable as error:
                log.warning("progress.stalled", error=error.message)
            except Exception:
                log.exception("progress.failed")

    def _look(self) -> None:
        free = self._threads - self.busy_count
        if free <= 0:
            return
        for claim in claim_progress(self._holder, self._channel, free, self._resting):
            with self._lock:
                self._busy += 1
            self._pool.submit(self._step, claim)

    def _step(self, claim: DeliveryClaim) -> None:
        try:
            self._show(claim)
        except DatabaseUnavailable as error:
            log.warning("progress.stalled", error=error.message)
        except Exception:
            log.exception("progress.failed", delivery_id=claim.job.delivery_id.hex)
        finally:
            with self._lock:
                self._busy -= 1

    def _show(self, claim: DeliveryClaim) -> None:
        memory = Remembered(self._holder, claim)
        next_s: float | None = AFTER_FAILURE_S
        is_doubtful, result = claim.job.is_doubtful, "failed"
        try:
            look = self._look_at(claim)
            with guarded(memory.hold):
                next_s = self._deliveries[self._channel].show(claim.job, look, memory)
            result = "shown"
        except LeaseLost:
            return
        except DeliveryRefused as error:
            # The delivery itself will be refused too, and say so.
            log.warning("progress.refused", reason=error.message, channel=claim.channel)
            next_s = None
        except ChannelUnavailable as error:
            is_doubtful = is_doubtful or error.is_doubtful
            next_s = error.retry_after_s or AFTER_FAILURE_S
            log.info("progress.delayed", reason=error.message, channel=claim.channel)
        STEPS_SHOWN.labels(claim.channel, result).inc()
        params = {"next_s": next_s, "is_doubtful": is_doubtful, "progress": Jsonb(memory.value)}
        self._holder.database.run(RELEASE, claim.fence | params)

    def _look_at(self, claim: DeliveryClaim) -> Look:
        state = claim.turn_state or TurnState.CANCELLED
        if state is not TurnState.QUEUED:
            return Look(state, claim.shown)
        place, estimate_s = self._paces.place(claim)
        return Look(state, claim.shown, place, estimate_s)


class Paces:
    """How long queued turns wait, from how long the last ones took."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[tuple[str, str], tuple[float, Pace]] = {}

    def place(self, claim: DeliveryClaim) -> tuple[int, float | None]:
        """Turns before this one, and the seconds until it begins; None: nothing to go by."""
        (row,) = self._database.fetch(Place, PLACE, {"turn": claim.job.turn_id})
        pace = self._pace(claim.model or "", claim.lane or "")
        if not pace.slots or pace.turn_s is None:
            return row.place, None
        return row.place, math.ceil((row.place + 1) / pace.slots) * pace.turn_s

    def _pace(self, model: str, lane: str) -> Pace:
        known = self._known.get((model, lane))
        if known is None or time.monotonic() - known[0] > PACE_S:
            (pace,) = self._database.fetch(Pace, ESTIMATE, {"model": model, "lane": lane})
            known = self._known[model, lane] = (time.monotonic(), pace)
        return known[1]
