"""Where a queued turn stands, for people who wait for it."""

from typing import NamedTuple

from turnmill.schemas.store.fleet.liveness import seen_within
from turnmill.schemas.turns import TurnState


class Place(NamedTuple):
    place: int


#: Turns of the same model and lane that are taken before this one, 999 at most.
PLACE = """
SELECT count(*)::int AS place FROM (
    SELECT FROM outbox mine JOIN outbox other ON other.model = mine.model
        AND other.lane = mine.lane AND other.turn_id <> mine.turn_id
        AND (coalesce(other.deadline_at, 'infinity'), other.due_at)
            < (coalesce(mine.deadline_at, 'infinity'), mine.due_at)
    WHERE mine.turn_id = %(turn)s LIMIT 999
) AS earlier
"""


class Pace(NamedTuple):
    slots: int
    turn_s: float | None


#: How many turns a model answers at once, and how long the last ones took, seconds.
ESTIMATE = f"""
SELECT (
    SELECT coalesce(sum(slots), 0)::int FROM worker_liveness
    WHERE model = %(model)s AND %(lane)s = ANY(lanes) AND is_consuming
      AND {seen_within(10)}
) AS slots, (
    SELECT extract(epoch FROM avg(settled_at - started_at))::float FROM (
        SELECT model, state, settled_at, started_at FROM turns ORDER BY id DESC LIMIT 200
    ) AS latest
    WHERE model = %(model)s AND state = '{TurnState.COMPLETED}' AND settled_at > started_at
) AS turn_s
"""
