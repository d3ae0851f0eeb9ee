"""Standby: a worker whose model is warm, and that waits until no primary is left."""

import time

import structlog

from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.turns import DEFAULT_PARAMS, Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.answer import Worker

log = structlog.get_logger()

#: A stop is noticed this soon.
POLL_S = 0.05


def warm_up(engine: Engine) -> None:
    """One token, now: what an engine puts off until its first prompt is done when it counts."""
    prompt = Prompt((Message(role=Role.USER, content="Hello"),))
    params = DEFAULT_PARAMS.model_copy(update={"max_tokens": 1})
    try:
        for _ in engine.generate(prompt, params, Abort()):
            pass
    except TurnmillError as error:
        # The model is loaded; what ails it now may have passed by the time it is needed.
        log.warning("worker.warm_up_failed", error=error.message)


def wait_for_takeover(worker: Worker) -> bool:
    """Until this worker is the primary; False if it was stopped before."""
    log.info("worker.standing_by")
    started_at = time.monotonic()
    while not worker.leases.consuming.wait(POLL_S):
        if worker.give_up.is_set():
            log.info("worker.stood_down", waited_s=round(time.monotonic() - started_at, 3))
            return False
    log.info("worker.took_over", waited_s=round(time.monotonic() - started_at, 3))
    return True
