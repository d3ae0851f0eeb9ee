"""For tests, ours and yours: a worker in this process that needs no broker.

It takes queued turns straight from the outbox and answers them with the real claim,
generation and settling code.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.clock import IS_DUE
from turnmill.schemas.settings import Settings
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.turn.answer import answer_turn


class _Due(NamedTuple):
    turn_id: UUID


_DUE = f"""
UPDATE outbox SET published_at = clock_timestamp()
WHERE published_at IS NULL AND {IS_DUE} AND model = %s AND lane = ANY(%s)
RETURNING turn_id
"""

POLL_S = 0.01


class InlineWorker:
    """Answers queued turns between `__enter__` and `__exit__`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inline-worker", daemon=True)

    def __enter__(self) -> "InlineWorker":
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(
            ThreadPoolExecutor(self._settings.worker.concurrency)
        )
        self.worker, _ = self._stack.enter_context(running_worker(self._settings))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.worker.give_up.set()
        self._pool.shutdown(wait=True)
        self._stack.close()

    def _run(self) -> None:
        lanes = [lane.value for lane in self._settings.worker.lanes]
        while not self._stopping.wait(POLL_S):
            try:
                rows = self.worker.database.fetch(
                    _Due, _DUE, (self._settings.engine.model_name, lanes)
                )
            except DatabaseUnavailable:
                continue
            for row in rows:
                self._pool.submit(self._answer, row.turn_id)

    def _answer(self, turn_id: UUID) -> None:
        while not self._stopping.is_set():
            try:
                answer_turn(self.worker, turn_id)
                return
            except DatabaseUnavailable:
                self._stopping.wait(POLL_S)
