"""The sweep: requeue the deliveries of dead workers, and those whose hint was lost."""

import threading
import time
from functools import partial
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.advance import lock_conversations
from turnmill.schemas.store.channels.deliveries import advance_deliveries
from turnmill.schemas.store.channels.sending import (
    CUT_LEASES,
    FORGOTTEN_DELIVERIES,
    LONG_LEASES,
    LOST_DELIVERIES,
    REQUEUE_LOST,
)
from turnmill.workers.delivery.claims import Holder
from turnmill.workers.delivery.metrics import DELIVERIES_LOST
from turnmill.workers.upkeep.isolated import Resting, isolated
from turnmill.workers.upkeep.keeping import cut_isolated

log = structlog.get_logger()

#: Pause between two sweeps, seconds. Any number of processes may sweep: they change nothing twice.
EVERY_S = 1.0


class _Now(NamedTuple):
    now_s: float


_NOW = "SELECT extract(epoch FROM clock_timestamp())::float AS now_s"


def _observe(holder: Holder) -> None:
    """Read the clock, and after a step back cut the leases of before."""
    asked_at = time.monotonic()
    (row,) = holder.database.fetch(_Now, _NOW)
    if step_s := holder.clock.observe(row.now_s, asked_at):
        log.warning("clock.stepped", by_s=round(step_s, 3))
    has_stepped_back = holder.clock.has_stepped_back(holder.lease_s)
    params: dict[str, object] = {"lease_s": holder.lease_s, "has_stepped_back": has_stepped_back}
    cut_isolated(holder.database, "delivery", LONG_LEASES, CUT_LEASES, params)


def sweep(holder: Holder, resting: Resting | None = None) -> int:
    """Requeue the deliveries of dead workers, and hint forgotten ones; the conversations' number.
    One thread of a process sweeps: it is the one that observes the clock.

    One that PostgreSQL refuses to change keeps no other.

    `resting`: those that were refused by earlier calls; this call keeps it up to date.

    Raises `DatabaseUnavailable`.
    """
    resting = Resting() if resting is None else resting
    _observe(holder)
    params = {"resting": resting.ids} | holder.judged
    lost = holder.database.fetch(Id, LOST_DELIVERIES, params)
    forgotten = holder.database.fetch(Id, FORGOTTEN_DELIVERIES, params)
    ids = sorted({row.id for row in (*lost, *forgotten)})
    swept = isolated(partial(_advance, holder), ids, "conversation")
    resting.add(set(ids).difference(swept))
    return len(swept)


def _advance(holder: Holder, conversation_ids: list[UUID]) -> list[UUID]:
    with holder.database.cursor() as cursor:
        lock_conversations(cursor, conversation_ids)
        params = {"conversations": conversation_ids} | holder.judged
        count = cursor.execute(REQUEUE_LOST, params).rowcount
        advance_deliveries(cursor, conversation_ids)
    if count:
        DELIVERIES_LOST.inc(count)
        log.warning("deliveries.rescued", lost_count=count)
    return conversation_ids


class Sweeper:
    """The thread that sweeps."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._resting = Resting()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        # At once for the first time: steps of the clock are known from then on.
        while not self._stopping.is_set():
            try:
                sweep(self._holder, self._resting)
            except DatabaseUnavailable as error:
                log.warning("sweeper.stalled", error=error.message)
            except Exception:
                # Nobody else looks after dead workers' deliveries.
                log.exception("sweeper.failed")
            self._stopping.wait(EVERY_S)
