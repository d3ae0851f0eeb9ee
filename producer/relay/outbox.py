"""The outbox, as the relay reads and marks it: which hints are due, and for whom.

A conversation's next turn goes to the worker that gave its last reply, for that one has its KV
cache: the hint is published to that worker's own queue, if the worker is alive and has a slot
free. One that is not claimed in time (`own_until`) is late, and is published to the lane's queue.
So a wrong guess costs a turn that time, once, and never more.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.postgres.clock import IS_DUE, is_due
from turnmill.schemas.routes import DELIVERY_LANE
from turnmill.schemas.store.fleet.deployment import DEPLOYMENT_ID
from turnmill.schemas.store.fleet.lanes import is_paused
from turnmill.schemas.store.fleet.liveness import seen_within
from turnmill.schemas.turns import TurnState

#: A worker says so often that it lives that one silent for so long is not waited for, seconds.
SEEN_S = 1.2

#: The models that hints are owed for, found by skipping through the index: a bot may have moved on
#: to another model since.
_OWED = """
owed (model) AS (
    (SELECT model FROM outbox WHERE published_at IS NULL ORDER BY model LIMIT 1)
    UNION ALL
    SELECT (SELECT o.model FROM outbox o WHERE o.published_at IS NULL AND o.model > owed.model
            ORDER BY o.model LIMIT 1)
    FROM owed WHERE owed.model IS NOT NULL
)
"""


def _ids_of(rows: str) -> str:
    """Write a condition's right side that makes PostgreSQL look a CTE's rows up by the key.

    It does not know how few rows the CTE has, and reads all of the outbox to join them: 172 ms for
    64 hints beside 300,000, instead of 5.
    """
    return f"ANY(ARRAY(SELECT turn_id FROM {rows}))"


#: Turns that were tried before are any worker's.
TAKE = f"""
WITH RECURSIVE {_OWED}, room AS (
    SELECT m.model, l.lane, %(window)s - (
        SELECT count(*) FROM outbox o
        WHERE o.model = m.model AND o.lane = l.lane AND o.published_at IS NOT NULL
    ) AS places
    FROM owed AS m CROSS JOIN unnest(%(lanes)s::text[]) AS l (lane)
    WHERE m.model IS NOT NULL AND NOT {is_paused("l.lane", "m.model")}
), taken AS (
    SELECT room.model, room.lane, due.turn_id FROM room CROSS JOIN LATERAL (
        SELECT turn_id FROM outbox
        WHERE model = room.model AND lane = room.lane AND published_at IS NULL
          AND {IS_DUE}
        ORDER BY deadline_at, due_at
        LIMIT least(greatest(room.places, 0), %(batch_size)s)
        FOR UPDATE SKIP LOCKED
    ) AS due
), held AS (
    SELECT taken.turn_id, w.id AS worker_id, w.slots,
        row_number() OVER (PARTITION BY w.id ORDER BY taken.turn_id) AS place
    FROM taken JOIN turns t ON t.id = taken.turn_id AND t.attempt = 0
    JOIN turns last ON last.conversation_id = t.conversation_id AND last.seq = t.seq - 1
    JOIN worker_liveness w ON w.id = last.worker_id
    WHERE taken.lane = ANY(%(warm_lanes)s)
      AND last.settled_at > clock_timestamp() - make_interval(secs => %(warm_s)s)
      AND w.is_consuming AND {seen_within(SEEN_S, "w")}
      AND w.model = taken.model AND taken.lane = ANY(w.own_lanes)
), busy AS (
    SELECT worker_id, count(*) AS turns FROM (
        SELECT worker_id FROM turns
        WHERE state = 'running' AND worker_id IN (SELECT worker_id FROM held)
          AND lane = ANY(%(warm_lanes)s)
        UNION ALL SELECT worker_id FROM outbox WHERE own_until IS NOT NULL
    ) AS work GROUP BY worker_id
), marked AS (
    UPDATE outbox SET published_at = clock_timestamp(), worker_id = held.worker_id,
        own_until = CASE WHEN held.place + coalesce(busy.turns, 0) <= held.slots
            THEN clock_timestamp() + make_interval(secs => %(ttl_s)s) END
    FROM taken LEFT JOIN held USING (turn_id) LEFT JOIN busy USING (worker_id)
    WHERE outbox.turn_id = taken.turn_id AND outbox.turn_id = {_ids_of("taken")}
    RETURNING outbox.turn_id, outbox.model, outbox.lane,
        CASE WHEN own_until IS NOT NULL THEN outbox.worker_id END AS own_worker_id,
        outbox.deadline_at, outbox.due_at
), late AS (
    UPDATE outbox SET published_at = clock_timestamp(), own_until = NULL WHERE turn_id IN (
        SELECT turn_id FROM outbox WHERE own_until IS NOT NULL
          AND {is_due("own_until", "%(ttl_s)s")} AND published_at IS NOT NULL
        FOR UPDATE SKIP LOCKED
    )
    RETURNING turn_id, model, lane, NULL::uuid, deadline_at, due_at
)
SELECT hint.*, {DEPLOYMENT_ID} AS deployment,
    set_config('synchronous_commit', 'off', true)
FROM (SELECT * FROM marked UNION ALL SELECT * FROM late) AS hint
ORDER BY hint.deadline_at, hint.due_at, hint.turn_id
"""


class DueHint(NamedTuple):
    """A row of `TAKE`: a hint to publish."""

    #: Or its delivery's.
    turn_id: UUID
    #: Or its channel.
    model: str
    lane: str
    #: The worker whose own queue it goes to; None: to the lane's queue.
    own_worker_id: UUID | None
    deadline_at: datetime
    due_at: datetime
    deployment: str


#: A row that somebody holds is being claimed; waiting for it could deadlock.
UNMARK = """
UPDATE outbox SET published_at = NULL WHERE turn_id IN (
    SELECT turn_id FROM outbox WHERE turn_id = ANY(%s) FOR UPDATE SKIP LOCKED
)
"""

#: Whether a hint is due that found no place, and in how many seconds the next one is due (a quiet
#: window or a pause before another attempt ends) or late.
#: A million hints of a paused batch are passed over by the index, those of a paused lane with it.
#: `now()` in place of the clock lets the index begin behind the hints that are due: with 300,000 of
#: them, which were tried before, the look took 85 ms.
NEXT = f"""
WITH RECURSIVE {_OWED}
SELECT EXISTS (
    SELECT 1 FROM owed CROSS JOIN unnest(%(lanes)s::text[]) AS l (lane) CROSS JOIN LATERAL (
        SELECT 1 FROM outbox
        WHERE model = owed.model AND lane = l.lane AND published_at IS NULL AND {IS_DUE}
        ORDER BY deadline_at, due_at LIMIT 1
    ) AS due WHERE NOT {is_paused("l.lane", "owed.model")}
) AS is_owed, extract(epoch FROM least((
    SELECT min(own_until) FROM outbox WHERE own_until IS NOT NULL AND published_at IS NOT NULL
), (
    SELECT min(due_at) FROM outbox
    WHERE published_at IS NULL AND NOT is_immediate AND due_at > now()
)) - clock_timestamp())::float AS next_in_s
"""


class NextHint(NamedTuple):
    """The row of `NEXT`."""

    is_owed: bool
    #: Until the next hint is due, or late at its worker; None: there is none.
    next_in_s: float | None


#: Lanes with hints that were published a while ago and are not claimed: lost, or behind others.
#: Those of a paused lane are dropped by workers, and are not missed.
STALE = f"""
SELECT model, lane, {DEPLOYMENT_ID} AS deployment, clock_timestamp() AS looked_at FROM outbox
WHERE published_at < clock_timestamp() - make_interval(secs => %(lost_after_s)s)
  AND own_until IS NULL AND NOT {is_paused("outbox.lane", "outbox.model")}
GROUP BY model, lane
"""


class StaleLane(NamedTuple):
    """A row of `STALE`."""

    model: str
    lane: str
    deployment: str
    looked_at: datetime


#: `depth` messages were in the lane's queue after `looked_at`. Hints claimed since then are in
#: `depth` and no longer here, so the difference is rather too small than too large. Counted in the
#: statement that marks: of two relays that look at once, the second finds nothing missing.
#: A hint whose turn, or delivery, is not queued is nobody's: it would be published for ever, and
#: take a place of the window.
REHINT = f"""
WITH missing AS (
    SELECT count(*) - %(depth)s AS hints FROM outbox
    WHERE model = %(model)s AND lane = %(lane)s AND published_at <= %(looked_at)s
      AND own_until IS NULL
), lost AS (
    SELECT turn_id FROM outbox
    WHERE model = %(model)s AND lane = %(lane)s AND own_until IS NULL
      AND published_at < clock_timestamp() - make_interval(secs => %(lost_after_s)s)
    ORDER BY published_at
    LIMIT (SELECT least(%(at_most)s, greatest(hints, 0)) FROM missing)
    FOR UPDATE SKIP LOCKED
), orphaned AS (
    DELETE FROM outbox USING lost
    LEFT JOIN turns t ON t.id = lost.turn_id
    LEFT JOIN deliveries d ON d.id = lost.turn_id
    WHERE outbox.turn_id = lost.turn_id AND outbox.turn_id = {_ids_of("lost")} AND CASE outbox.lane
        WHEN '{DELIVERY_LANE}' THEN d.state IS DISTINCT FROM '{DeliveryState.QUEUED}'
        ELSE t.state IS DISTINCT FROM '{TurnState.QUEUED}' END
    RETURNING outbox.turn_id
), rehinted AS (
    UPDATE outbox SET published_at = NULL FROM lost
    WHERE outbox.turn_id = lost.turn_id
      AND lost.turn_id NOT IN (SELECT turn_id FROM orphaned)
    RETURNING outbox.turn_id
)
SELECT missing.hints AS missing_count, (SELECT count(*) FROM rehinted) AS rehinted_count
FROM missing
"""


class Rehinted(NamedTuple):
    """The row of `REHINT`."""

    missing_count: int
    rehinted_count: int
