"""Pause and resume lanes."""

from typing import NamedTuple

import structlog

from turnmill.producer.operations.remedies import model_option
from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.fleet.lanes import (
    ALL_MODELS,
    Pause,
    pause_lane,
    read_pauses,
    resume_lane,
)
from turnmill.schemas.turns import Lane

log = structlog.get_logger()


class _Model(NamedTuple):
    model: str


#: Models that a pause can be for: a bot's, a worker's, or one that turns still wait for.
_MODELS = """
WITH RECURSIVE owed (model) AS (
    (SELECT model FROM outbox WHERE published_at IS NULL ORDER BY model LIMIT 1)
    UNION ALL
    SELECT (SELECT o.model FROM outbox o WHERE o.published_at IS NULL AND o.model > owed.model
            ORDER BY o.model LIMIT 1)
    FROM owed WHERE owed.model IS NOT NULL
)
SELECT model FROM bots UNION SELECT model FROM worker_liveness
UNION SELECT model FROM owed WHERE model IS NOT NULL ORDER BY model
"""


def pause(database: Database, lane: Lane, model: str | None, *, by: str, reason: str) -> None:
    """Pause a lane of one model, or of all.

    Raises:
        NotFound: nothing uses the model.
    """
    if model is not None:
        _require_model(database, model)
    pause_lane(database, lane, model or ALL_MODELS, by=by, reason=reason)
    log.info("lane.paused", lane=lane, model=model)


def resume(database: Database, lane: Lane, model: str | None) -> Pause:
    """End a pause, exactly the one that was made: of one model, or of all.

    Raises:
        NotFound: there is no such pause; says which there are.
    """
    ended = resume_lane(database, lane, model or ALL_MODELS)
    if ended is None:
        wanted = f"Lane {lane} of model {model}" if model else f"Lane {lane}, of all models,"
        others = [each for each in read_pauses(database) if each.lane == lane]
        known = "".join(f" Paused: {resume_command(each)}" for each in others)
        raise NotFound(f"{wanted} is not paused.{known}")
    log.info("lane.resumed", lane=lane, model=model)
    return ended


def resume_command(pause: Pause) -> str:
    """The command that ends a pause."""
    return f"turnmill lanes resume {pause.lane}" + model_option(pause.model)


def _require_model(database: Database, model: str) -> None:
    known = [row.model for row in database.fetch(_Model, _MODELS)]
    if model not in known:
        raise NotFound(
            f"No bot, worker or turn uses the model '{model[:200]}'. Used: "
            f"{', '.join(known) or 'none'}."
        )
