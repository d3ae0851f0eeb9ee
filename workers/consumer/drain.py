"""Drain: how a worker stops without losing or repeating anything.

SIGTERM (or Ctrl-C) stops the consuming; running turns may finish until the deadline and are
then handed back, with what they have so far, for another worker to continue. Celery's own
warm shutdown cannot be used: with threads it stops the AMQP heartbeats, and the broker
gives the running turns away a second time.

An engine that hangs ends its process the same way, with a status that tells its supervisor to
start a fresh one. Threads cannot be killed: what does not come back in time is handed back
from here, and the process ends under it.
"""

import time

import structlog

from turnmill.schemas.outcomes import HANDED_BACK
from turnmill.workers.consumer.stopping import POLL_S, Stopping
from turnmill.workers.turn.answer import Worker
from turnmill.workers.turn.attempt import AbortReason
from turnmill.workers.vendor.celery import running_count

log = structlog.get_logger()

#: After the hand-back was asked for: how long the engine may take to stop.
HAND_BACK_S = 1.0

#: After the drain: how long the process may take to end, the hand-back included.
LEAVE_S = 1.7

#: Exit status of a process whose engine hangs (EX_SOFTWARE).
HUNG_STATUS = 70


class Drain(Stopping):
    """Drains one worker of turns, once."""

    def __init__(self, worker: Worker, drain_s: float) -> None:
        super().__init__(drain_s)
        self._worker = worker

    def on_hang(self) -> None:
        """This process's slots are dwindling: let the neighbours finish, then end it."""
        self.status = HUNG_STATUS
        self.start()

    def run(self) -> None:
        log.info("drain.started", turn_count=self._worker.leases.held_count, drain_s=self.drain_s)
        started_at = time.monotonic()
        self._worker.leases.stop_consuming()
        self.stop_consuming()
        while self._is_busy() and time.monotonic() - started_at < self.drain_s:
            time.sleep(POLL_S)
        self.leave_in(LEAVE_S)
        handed_back_count = self._worker.leases.held_count
        self._worker.leases.stop_all(AbortReason.DRAIN)
        deadline = time.monotonic() + HAND_BACK_S
        while self._is_busy() and time.monotonic() < deadline:
            # A hint that was already on its way may have started since.
            self._worker.leases.stop_all(AbortReason.DRAIN)
            time.sleep(POLL_S)
        self._worker.give_up.set()
        log.info("drain.finished", handed_back_count=handed_back_count)
        self.end_loop()
        for attempt in self._worker.leases.kept:
            if not attempt.has_outcome:
                self._worker.settler.settle(attempt.claim, HANDED_BACK)

    def _is_busy(self) -> bool:
        """Whether turns run that may still end."""
        hung_count = self._worker.leases.hung_count
        running = (self._worker.leases.held_count, running_count())
        return max(running) > hung_count
