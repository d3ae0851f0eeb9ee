"""The task: a hint arrives, the turn is answered, the hint is acknowledged.

Whatever happens inside, the task returns or rejects. Postgres knows what became of the
turn; the broker only needs to know that this hint has been looked at.
"""

from uuid import UUID

import structlog
from celery import Celery, Task
from celery.exceptions import Reject

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.routes import ANSWER_TASK
from turnmill.workers.turn.answer import Worker, answer_turn
from turnmill.workers.turn.backoff import backoff_s
from turnmill.workers.upkeep.rescuer import Rescuer
from turnmill.workers.vendor.celery import silence_rejections

log = structlog.get_logger()


def register_tasks(app: Celery, worker: Worker, rescuer: Rescuer) -> None:
    """Give the app its one task, bound to this process's worker."""
    # `engine.away` and the drain's events report once why hints are handed back.
    silence_rejections()

    @app.task(name=ANSWER_TASK, bind=True, acks_late=True, ignore_result=True, send_events=False)  # type: ignore[untyped-decorator]
    def answer(task: Task, turn_id: str, lane: str = "", model: str = "", **_: object) -> None:
        """Answer a turn; lane and model are there for people who look into the broker.

        Arguments of later versions are ignored.
        """
        was_redelivered = bool((task.request.delivery_info or {}).get("redelivered"))
        try:
            is_answered = _answer(worker, UUID(turn_id))
        except BaseException as error:
            if isinstance(error, Reject):
                raise
            # A MemoryError or SystemExit that escapes costs the threads pool a slot for good.
            log.exception("hint.failed", turn_id=turn_id)
            return
        if not is_answered and was_redelivered:
            # The broker gave this hint to somebody before: that worker may have just died.
            rescuer.wake()


def _answer(worker: Worker, turn_id: UUID) -> bool:
    """Wait out an engine or Postgres that is away; hand the hint back if others may take it."""
    if not worker.availability.wait():
        raise Reject("the engine is away", requeue=True)
    tries = 0
    while True:
        try:
            return answer_turn(worker, turn_id)
        except DatabaseUnavailable as error:
            tries += 1
            log.warning("claim.stalled", turn_id=turn_id.hex, error=error.message)
            if worker.give_up.wait(backoff_s(tries, cap_s=2.0)):
                raise Reject("stopping while the database is away", requeue=True) from None
