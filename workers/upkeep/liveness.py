"""Liveness: which worker processes live, which of them consume, and when a standby takes over."""

from uuid import UUID

from psycopg.sql import SQL

from turnmill.schemas.postgres.links import Link
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS, seen_within
from turnmill.schemas.store.tables import TAKEOVER_LOCK_CLASS

#: A process without its advisory lock counts as alive this much longer: a dropped
#: connection is replaced in less, and then nothing needs to be generated again.
GRACE_S = 1.2

ALIVE = f"""
alive AS MATERIALIZED (
    SELECT w.id, w.model, w.lanes, w.slots, w.seen_at, w.is_consuming FROM worker_liveness w
    WHERE {seen_within(GRACE_S, "w")} OR w.lock_key IN ({HELD_LOCKS})
)"""

#: Two statements, so that the second sees what the last holder of the lock did; in one message,
#: so that a process that is paused half-way does not keep the lock from the others. A consumer
#: that was silent for a whole lease is paused: its turns are requeued, and its place is free.
_TAKE_OVER = f"""
SELECT pg_advisory_xact_lock({TAKEOVER_LOCK_CLASS}, hashtext(model))
FROM worker_liveness WHERE id = {{worker_id}};
WITH {ALIVE}
UPDATE worker_liveness me SET is_consuming = true
WHERE me.id = {{worker_id}} AND EXISTS (
    SELECT FROM unnest(me.lanes) AS lane WHERE NOT EXISTS (
        SELECT FROM alive a
        WHERE a.is_consuming AND a.model = me.model AND lane = ANY(a.lanes) AND a.id <> me.id
          AND {seen_within("{silence_s}", "a")}))
"""


def take_over(connection: Link, worker_id: UUID, *, lease_s: float) -> bool:
    """Make a registered standby a consumer if one of its lanes has no other; of many, one wins."""
    silence_s = max(lease_s, GRACE_S)
    statements = SQL(_TAKE_OVER).format(worker_id=worker_id, silence_s=silence_s)
    cursor = connection.execute(statements)
    cursor.nextset()
    return cursor.rowcount == 1
