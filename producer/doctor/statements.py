"""What the doctor asks the tables of the work under way, and the rows that answer."""

from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.routes import DELIVERY_LANE, PAUSED_LANE
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.store.fleet.lanes import is_paused
from turnmill.schemas.store.fleet.liveness import RELAY_RUNS, seen_within
from turnmill.schemas.store.tables import PRUNER_LOCK_KEY, PRUNER_NAME, RESCUER_LOCK_KEY
from turnmill.schemas.turns import TurnState

#: Of more tenants the same is not said: those that it concerns most come first.
MOST_TENANTS = 5

_LIVE = f"""
live AS (
    SELECT model, unnest(lanes) AS lane FROM worker_liveness
    WHERE is_consuming AND {seen_within("%(lease_s)s")}
)
"""


class Unerased(NamedTuple):
    users: int
    age_s: int | None


UNERASED = """
SELECT count(*) AS users, extract(epoch FROM clock_timestamp() - min(at))::int AS age_s
FROM erasures
WHERE done_at IS NULL AND at < clock_timestamp() - make_interval(secs => %(age_s)s)
"""


class Undeleted(NamedTuple):
    """Files whose deletion fails for one reason."""

    reason: str
    is_forgotten: bool
    remedy: str
    files: int
    first: UUID
    age_s: int


UNDELETED = """
SELECT reason, is_forgotten, max(remedy) AS remedy, count(*) AS files,
    (array_agg(file_id ORDER BY failed_at))[1] AS first,
    extract(epoch FROM clock_timestamp() - min(failed_at))::int AS age_s
FROM (
    SELECT u.*, EXISTS (
        SELECT FROM erased_files e WHERE e.tenant_id = u.tenant_id AND e.file_id = u.file_id
    ) AS is_forgotten
    FROM undeleted_files u
) AS undeleted
GROUP BY reason, is_forgotten ORDER BY min(failed_at)
"""


class LaneWait(NamedTuple):
    """What waits unpublished in one lane of one model."""

    model: str
    lane: str
    turns: int
    age_s: int
    has_relay: bool


class LaneUnserved(NamedTuple):
    """What waits in one lane of one model that nobody consumes."""

    model: str
    lane: str
    turns: int
    age_s: int
    #: Workers of the lane that live and take no hints, for no reason of their own.
    idle: int


UNSERVED = f"""
WITH {_LIVE}
SELECT model, lane, count(*) AS turns,
       extract(epoch FROM clock_timestamp() - min(due_at))::int AS age_s,
       (SELECT count(*) FROM worker_liveness w
        WHERE w.model = outbox.model AND outbox.lane = ANY(w.lanes) AND NOT w.is_consuming
          AND w.draining_since IS NULL AND w.unavailable_because IS NULL
          AND {seen_within("%(lease_s)s", "w")})::int AS idle
FROM outbox
WHERE due_at < clock_timestamp() - make_interval(secs => %(age_s)s)
  AND lane NOT IN ('{DELIVERY_LANE}', '{PAUSED_LANE}')
  AND NOT {is_paused("outbox.lane", "outbox.model")}
  AND (model, lane) NOT IN (SELECT model, lane FROM live)
GROUP BY model, lane ORDER BY age_s DESC
"""


class Untaken(NamedTuple):
    channel: str
    deliveries: int
    age_s: int


#: A delivery worker takes a hint at once, and a platform's limit moves `due_at`. The queue of a
#: channel may be long, so the hint that was published last tells.
UNTAKEN = f"""
SELECT model AS channel, count(*) AS deliveries,
       extract(epoch FROM clock_timestamp() - min(due_at))::int AS age_s
FROM outbox WHERE lane = '{DELIVERY_LANE}' AND published_at IS NOT NULL
GROUP BY model HAVING max(due_at) < clock_timestamp() - make_interval(secs => %(age_s)s)
ORDER BY model
"""


class Undelivered(NamedTuple):
    channel: str
    tenant: str
    deliveries: int
    reason: str | None


UNDELIVERED = f"""
SELECT channel, tenants.name AS tenant, count(*) AS deliveries,
       (array_agg(coalesce(error_message, error_code) ORDER BY ordinal DESC))[1] AS reason
FROM deliveries JOIN tenants ON tenants.id = deliveries.tenant_id
WHERE state = '{DeliveryState.FAILED}'
GROUP BY channel, tenants.name ORDER BY channel, tenants.name
"""


class LeftPending(NamedTuple):
    deliveries: int


#: Of an older release's workers; every delivery worker looks for such.
LEFT_PENDING = f"""
SELECT count(*) AS deliveries FROM deliveries d JOIN turns t ON t.id = d.turn_id
WHERE d.state = '{DeliveryState.PENDING}' AND t.state NOT IN ({OPEN})
  AND t.settled_at < clock_timestamp() - make_interval(secs => %(age_s)s)
"""


class HandedOff(NamedTuple):
    tenant: str
    conversations: int
    age_s: int


HANDED_OFF = f"""
SELECT tenants.name AS tenant, count(*) AS conversations,
       extract(epoch FROM clock_timestamp() - min(handed_off_at))::int AS age_s
FROM conversations JOIN tenants ON tenants.id = conversations.tenant_id
WHERE handed_off_at IS NOT NULL GROUP BY tenants.name ORDER BY age_s DESC LIMIT {MOST_TENANTS}
"""


class Parked(NamedTuple):
    tenant: str
    turns: int


PARKED = f"""
SELECT tenants.name AS tenant, count(*) AS turns
FROM turns JOIN tenants ON tenants.id = turns.tenant_id WHERE state = '{TurnState.PARKED}'
GROUP BY tenants.name ORDER BY turns DESC LIMIT {MOST_TENANTS}
"""


class Unguarded(NamedTuple):
    model: str


UNGUARDED = f"""
WITH {_LIVE}
SELECT DISTINCT model FROM live
WHERE model NOT IN (SELECT model FROM live WHERE lane = 'quarantine')
"""


class Away(NamedTuple):
    model: str
    workers: int
    reason: str


AWAY = f"""
SELECT model, count(*) AS workers, max(unavailable_because) AS reason FROM worker_liveness
WHERE unavailable_because IS NOT NULL AND {seen_within("%(lease_s)s")}
GROUP BY model ORDER BY model
"""


class Version(NamedTuple):
    version: str
    workers: int


#: A worker from before it said so has no version.
VERSIONS = f"""
SELECT coalesce(version, 'an older release') AS version, count(*) AS workers FROM worker_liveness
WHERE {seen_within("%(lease_s)s")}
GROUP BY 1 ORDER BY 1
"""

#: A full window keeps rows back on purpose.
UNPUBLISHED = f"""
SELECT model, lane, due.turns AS turns,
       extract(epoch FROM clock_timestamp() - due.due_at)::int AS age_s,
       {RELAY_RUNS} AS has_relay
FROM (
    SELECT model, lane, count(*) AS turns, min(due_at) AS due_at FROM outbox
    WHERE published_at IS NULL AND due_at < clock_timestamp() - make_interval(secs => %(age_s)s)
      AND lane <> '{PAUSED_LANE}' AND NOT {is_paused("outbox.lane", "outbox.model")}
    GROUP BY model, lane
) AS due
WHERE (
    SELECT count(*) FROM outbox o
    WHERE o.model = due.model AND o.lane = due.lane AND o.published_at IS NOT NULL
) < %(window)s
"""


class Oldest(NamedTuple):
    age_s: int | None


#: Each arm has its index; a waiting turn waits for one of these.
OLDEST = """
SELECT extract(epoch FROM clock_timestamp() - min(accepted_at))::int AS age_s FROM (
    SELECT min(accepted_at) AS accepted_at FROM turns
    WHERE state = 'running' AND lane = 'interactive'
    UNION ALL
    SELECT min(t.accepted_at) FROM outbox o JOIN turns t ON t.id = o.turn_id
    WHERE o.lane = 'interactive' AND t.state = 'queued'
) AS oldest
"""


class Squatter(NamedTuple):
    pid: int
    application_name: str
    part: str


#: A sweep is one statement, and the pruner's connection has a name: whoever else holds their locks
#: keeps them from working, for as long as that connection lives.
SQUATTERS = f"""
SELECT l.pid, a.application_name,
    CASE l.objid::bigint WHEN {RESCUER_LOCK_KEY} THEN 'rescuer' ELSE 'pruner' END AS part
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.objid::bigint = {RESCUER_LOCK_KEY} AND a.state <> 'active'
        AND a.state_change < clock_timestamp() - interval '1 s'
    OR l.objid::bigint = {PRUNER_LOCK_KEY} AND a.application_name <> '{PRUNER_NAME}')
"""


class ConsumedLane(NamedTuple):
    lane: str


CONSUMED = f"WITH {_LIVE} SELECT lane FROM live WHERE model = %(model)s"
