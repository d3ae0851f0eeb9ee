"""Drain: how a worker stops without losing or repeating anything.

SIGTERM (or Ctrl-C) stops the consuming; turns in work may finish until the deadline and are
then handed back, with what they have so far, for another worker to continue. Celery's own
warm shutdown cannot be used: with threads it stops the AMQP heartbeats, and the broker
gives the running turns away a second time.

An engine that hangs ends its process the same way, with a status that tells its supervisor to
start a fresh one. Threads cannot be killed: what does not come back in time is handed back
from here, and the process ends under it.
"""

import os
import signal
import threading
import time
from typing import Any

import structlog

from turnmill.schemas.outcomes import HANDED_BACK
from turnmill.workers.turn.answer import Worker
from turnmill.workers.turn.attempt import AbortReason
from turnmill.workers.vendor.celery import on_loop, request_exit, running_count

log = structlog.get_logger()

POLL_S = 0.05

#: After the hand-back was asked for: how long the engine may take to stop.
HAND_BACK_S = 1.0

#: After the drain: how long the process may take to end, the hand-back included.
LEAVE_S = 1.7

#: Exit status of a process whose engine hangs (EX_SOFTWARE).
HUNG_STATUS = 70


class Drain:
    """Stops one Celery worker, once."""

    def __init__(self, worker: Worker, drain_s: float) -> None:
        self._worker = worker
        self._drain_s = drain_s
        self._consumer: Any = None
        self._status = 0
        #: Never released: one drain is enough.
        self._begun = threading.Semaphore()

    def consuming(self, consumer: Any) -> None:
        """Celery has (re)connected and consumes; our handlers replace the ones it installed."""
        self._consumer = consumer
        self.listen()

    def listen(self) -> None:
        """Let the signals that stop a process come here."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, frame: object) -> None:
        """Start draining; a second signal hands everything back at once."""
        if not self._start():
            self._drain_s = 0.0

    def on_hang(self) -> None:
        """This process's slots are dwindling: let the neighbours finish, then end it."""
        self._status = HUNG_STATUS
        self._start()

    def _start(self) -> bool:
        """False if it has begun before."""
        if not self._begun.acquire(blocking=False):
            return False
        threading.Thread(target=self._run, name="drain", daemon=True).start()
        return True

    def _run(self) -> None:
        log.info("drain.started", turn_count=self._worker.leases.held_count, drain_s=self._drain_s)
        started_at = time.monotonic()
        self._worker.leases.stop_consuming()
        on_loop(self._consumer, self._cancel_queues)
        while self._is_busy() and time.monotonic() - started_at < self._drain_s:
            time.sleep(POLL_S)
        self._leave_in(LEAVE_S)
        handed_back_count = self._worker.leases.held_count
        self._worker.leases.stop_all(AbortReason.DRAIN)
        deadline = time.monotonic() + HAND_BACK_S
        while self._is_busy() and time.monotonic() < deadline:
            # A hint that was already on its way may have started since.
            self._worker.leases.stop_all(AbortReason.DRAIN)
            time.sleep(POLL_S)
        self._worker.give_up.set()
        log.info("drain.finished", handed_back_count=handed_back_count)
        request_exit(self._status)
        on_loop(self._consumer, lambda: None)  # wakes it
        for attempt in self._worker.leases.kept:
            if not attempt.has_outcome:
                self._worker.settler.settle(attempt.claim, HANDED_BACK)

    def _cancel_queues(self) -> None:
        """Run on Celery's loop: channels are not to be shared with other threads."""
        try:
            self._consumer.stop_consuming()
            log.info("drain.consuming_stopped")
        except Exception as error:
            # The connection is gone, and with it the consumers.
            log.info("drain.disconnected", error=type(error).__name__)

    def _leave_in(self, delay_s: float) -> None:
        """End the process under whatever still runs then; Celery and Python would wait for it.

        That may be an engine that hangs, or a server that does not answer the farewell.
        """
        timer = threading.Timer(delay_s, self._cut_short)
        timer.daemon = True
        timer.start()

    def _cut_short(self) -> None:
        log.warning("worker.cut_short", thread_count=threading.active_count())
        os._exit(self._status)

    def _is_busy(self) -> bool:
        """Whether turns are in work that may still end."""
        hung_count = self._worker.leases.hung_count
        running = (self._worker.leases.held_count, running_count())
        return max(running) > hung_count
