"""Stop a Celery worker without its own warm shutdown, which stops the heartbeats of AMQP."""

import os
import signal
import threading
from abc import ABC, abstractmethod
from typing import Any

import structlog

from turnmill.workers.vendor.celery import on_loop, request_exit

log = structlog.get_logger()

POLL_S = 0.05


class Stopping(ABC):
    """Stops one Celery worker, once, in a thread that `run` is the body of."""

    def __init__(self, drain_s: float) -> None:
        self.drain_s = drain_s
        self.status = 0
        self._consumer: Any = None
        #: Never released: one drain is enough.
        self._begun = threading.Semaphore()

    @abstractmethod
    def run(self) -> None:
        """Let the work end, then Celery's loop."""

    def consuming(self, consumer: object) -> None:
        """Celery has (re)connected and consumes; our handlers replace the ones it installed."""
        self._consumer = consumer
        self.listen()

    def listen(self) -> None:
        """Let the signals that stop a process come here."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, frame: object) -> None:
        """Start draining; a second signal ends the wait at once."""
        if not self.start():
            self.drain_s = 0.0

    def start(self) -> bool:
        """False if it has begun before."""
        if not self._begun.acquire(blocking=False):
            return False
        threading.Thread(target=self.run, name="drain", daemon=True).start()
        return True

    def stop_consuming(self) -> None:
        """Take no more hints, as soon as Celery's loop comes round."""
        on_loop(self._consumer, self._cancel_queues)

    def end_loop(self) -> None:
        """End Celery's loop, and with it the process."""
        request_exit(self.status)
        on_loop(self._consumer, lambda: None)  # wakes it

    def leave_in(self, delay_s: float) -> None:
        """End the process under whatever still runs then; Celery and Python would wait for it.

        The engine may hang, or the broker may not answer when its connection is closed.
        """
        timer = threading.Timer(delay_s, self._cut_short)
        timer.daemon = True
        timer.start()

    def _cancel_queues(self) -> None:
        """Run on Celery's loop: channels are not to be shared with other threads."""
        try:
            self._consumer.stop_consuming()
            log.info("drain.consuming_stopped")
        except Exception as error:
            # The connection is gone, and with it the consumers.
            log.info("drain.disconnected", error=type(error).__name__)

    def _cut_short(self) -> None:
        log.warning("worker.drain_deadline_exceeded", thread_count=threading.active_count())
        os._exit(self.status)
