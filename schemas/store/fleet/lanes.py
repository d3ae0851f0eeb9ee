"""Lanes that an operator has paused: their turns are accepted and kept, and nobody claims them.

A pause is a row. The relay publishes no hint of a paused lane, and a claim leaves its turns alone,
so hints that the broker already has are dropped. The resume marks them as unpublished. Workers and
relays of a release that does not know pauses empty what the broker has, and publish.
"""

from datetime import datetime
from typing import NamedTuple

from turnmill.schemas.postgres.database import Cursor, Database, notify
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.routes import OUTBOX_CHANNEL
from turnmill.schemas.turns import Lane

#: In `lane_pauses.model`: whatever the model.
ALL_MODELS = ""

_PAUSES = "SELECT lane, model, paused_at, paused_by, reason FROM lane_pauses ORDER BY lane, model"

#: A second pause replaces the reason of the first one, not its time. Without a reason of its own it
#: leaves the first one and its author alone.
_PAUSE = """
INSERT INTO lane_pauses (lane, model, paused_by, reason)
VALUES (%(lane)s, %(model)s, %(by)s, %(reason)s)
ON CONFLICT (lane, model) DO UPDATE SET paused_by = excluded.paused_by, reason = excluded.reason
WHERE excluded.reason <> ''
"""

_RESUME = """
DELETE FROM lane_pauses WHERE lane = %s AND model = %s
RETURNING lane, model, paused_at, paused_by, reason
"""

#: A row that somebody holds is found with the lost hints.
_UNPUBLISH = """
UPDATE outbox SET published_at = NULL, own_until = NULL, worker_id = NULL WHERE turn_id IN (
    SELECT turn_id FROM outbox
    WHERE lane = %(lane)s AND %(model)s::text IN (model, '') AND published_at IS NOT NULL
    FOR UPDATE SKIP LOCKED
)
"""


class Pause(NamedTuple):
    """A row of `lane_pauses`."""

    lane: str
    #: `ALL_MODELS`, or the only model whose lane is paused.
    model: str
    paused_at: datetime
    paused_by: str
    reason: str

    def covers(self, lane: str, model: str) -> bool:
        """Whether the pause holds for a model's lane."""
        return self.lane == lane and self.model in (ALL_MODELS, model)


def is_paused(lane: str, model: str) -> str:
    """Build the condition that a lane is paused, from SQL expressions of lane and model."""
    return (
        f"EXISTS (SELECT FROM lane_pauses p WHERE p.lane = {lane} "
        f"AND p.model IN ('{ALL_MODELS}', {model}))"
    )


def read_pauses(database: Database) -> list[Pause]:
    """List the pauses that hold. Raises `DatabaseUnavailable`."""
    return database.fetch(Pause, _PAUSES)


def pause_lane(database: Database, lane: Lane, model: str, *, by: str, reason: str) -> None:
    """Let nobody claim turns of a lane; running turns finish. Raises `DatabaseUnavailable`."""
    database.run(_PAUSE, {"lane": lane.value, "model": model, "by": by, "reason": reason})


def resume_lane(database: Database, lane: Lane, model: str) -> Pause | None:
    """End a pause and return it; None if there is none. Raises `DatabaseUnavailable`."""
    with database.cursor() as cursor:
        ended = fetch(cursor, Pause, _RESUME, (lane.value, model))
        if ended:
            _publish_again(cursor, lane, model)
    return ended[0] if ended else None


def _publish_again(cursor: Cursor, lane: Lane, model: str) -> None:
    """Publish the hints again that workers have dropped: at most the relay's window."""
    cursor.execute(_UNPUBLISH, {"lane": lane.value, "model": model})
    notify(cursor, OUTBOX_CHANNEL)
