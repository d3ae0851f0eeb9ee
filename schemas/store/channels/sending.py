"""Sending: an attempt wins a delivery, remembers its steps, and ends.

An attempt owns its delivery while the row names its number and worker. A lease that is not given
back says that its holder died between a call to the platform and the commit: what that call did is
in doubt, and the next attempt finds out.
"""

from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.channels.deliveries import MAX_LEASE_S, DeliveryState
from turnmill.schemas.postgres.clock import HAS_STEPPED_BACK, IS_DUE, is_due, is_over, outlasts
from turnmill.schemas.routes import DELIVERY_LANE, OUTBOX_CHANNEL
from turnmill.schemas.store.changes import OPEN, UNSENT, delivery_change
from turnmill.schemas.store.channels.deliveries import HOLDING
from turnmill.schemas.store.outbox import OWE_HINTS

_CLAIM = delivery_change(to=DeliveryState.SENDING)
_AGAIN = delivery_change(DeliveryState.SENDING, to=DeliveryState.QUEUED)
_RETRY = delivery_change(DeliveryState.FAILED, to=DeliveryState.QUEUED)
_DROP = delivery_change(DeliveryState.QUEUED, DeliveryState.FAILED, to=DeliveryState.DROPPED)
_PENDING = f"state = '{DeliveryState.PENDING}'"
_QUEUED = f"state = '{DeliveryState.QUEUED}'"
_SENDING = f"state = '{DeliveryState.SENDING}'"

#: The longest pause before progress is shown again, seconds.
MAX_PROGRESS_S = 120.0

#: Nobody holds the row.
_IS_FREE = f"(leased_until IS NULL OR {is_over('leased_until')})"

#: No earlier delivery of the conversation is to be sent before `d`.
_IS_FIRST = f"""
NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.conversation_id = d.conversation_id
    AND e.ordinal < d.ordinal AND e.state IN ({HOLDING}))
"""

_HOLD = """
attempt = d.attempt + 1, worker_id = %(worker)s,
    leased_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
"""


class Details(NamedTuple):
    """A delivery with its turn: a row of `CLAIM_DELIVERY` and `CLAIM_PROGRESS`."""

    id: UUID
    kind: str
    turn_id: UUID | None
    conversation_id: UUID
    channel: str
    target: dict[str, str]
    content: str | None
    attempt: int
    failures: int
    progress: dict[str, object]
    worker_id: UUID
    is_doubtful: bool
    turn_state: str | None
    turn_error: str | None
    model: str | None
    lane: str | None
    reply: str | None
    shown: str | None
    is_handed_off: bool
    because: str | None
    bot_policies: dict[str, object] | None
    conversation_policies: dict[str, object] | None
    sources: list[object] | None
    sources_shown: int | None
    first_number: int | None
    #: Whether the turn was a sound.
    was_spoken: bool | None


#: What an attempt must know of the row `claimed` and of its turn.
_DETAILS = """
SELECT claimed.id, claimed.kind, claimed.turn_id, claimed.conversation_id, claimed.channel,
    claimed.target, claimed.content, claimed.attempt, claimed.failures, claimed.progress,
    claimed.worker_id, claimed.is_doubtful, t.state AS turn_state, t.error_code AS turn_error,
    t.model, t.lane, r.content AS reply, shown.text AS shown,
    c.handed_off_at IS NOT NULL AS is_handed_off, c.handed_off_because AS because,
    b.policies AS bot_policies, c.policies AS conversation_policies,
    s.sources, s.shown AS sources_shown, s.first_number,
    heard.readings @> '[{"kind": "audio"}]' AS was_spoken
FROM claimed
LEFT JOIN conversations c ON c.id = claimed.conversation_id
LEFT JOIN bots b ON b.id = c.bot_id
LEFT JOIN turns t ON t.id = claimed.turn_id
LEFT JOIN replies r ON r.turn_id = claimed.turn_id
LEFT JOIN turn_sources s ON s.turn_id = claimed.turn_id
LEFT JOIN turn_readings heard ON heard.turn_id = claimed.turn_id
LEFT JOIN LATERAL (
    SELECT string_agg(text, '' ORDER BY position) AS text FROM chunks
    WHERE turn_id = claimed.turn_id
) AS shown ON true
"""

#: Win one delivery, unless an earlier one of its conversation is to be sent first.
CLAIM_DELIVERY = f"""
WITH head AS (
    SELECT id, leased_until FROM deliveries d
    WHERE id = %(delivery)s AND channel = %(channel)s AND {_CLAIM.guard} AND {_IS_FREE}
      AND {_IS_FIRST}
    FOR UPDATE SKIP LOCKED
), hint AS (
    DELETE FROM outbox USING head WHERE turn_id = head.id AND {IS_DUE}
    RETURNING head.id, head.leased_until
), claimed AS (
    UPDATE deliveries d SET {_CLAIM.setting}, {_HOLD} FROM hint WHERE d.id = hint.id
    RETURNING d.*, hint.leased_until IS NOT NULL AS is_doubtful
) {_DETAILS}
"""

#: Whether a delivery that could not be claimed will be soon: its progress is just being shown.
IS_HELD = f"""
SELECT 1 FROM deliveries JOIN outbox AS o ON o.turn_id = id
WHERE id = %(delivery)s AND {_QUEUED} AND NOT {_IS_FREE} AND {IS_DUE}
"""

#: Have the hint of a delivery that is held published again in a while.
POSTPONE_HELD = f"""
UPDATE outbox o SET is_immediate = false, published_at = NULL, worker_id = NULL, own_until = NULL,
    due_at = clock_timestamp() + make_interval(secs => %(delay_s)s)
FROM deliveries
WHERE o.turn_id = id AND id = %(delivery)s AND {_QUEUED} AND NOT {_IS_FREE} AND {IS_DUE}
RETURNING id
"""

#: Deliveries of one channel whose progress is to be shown. One that stands behind another waits:
#: what is streamed of it would stand before the earlier reply.
_DUE_PROGRESS = f"""
FROM deliveries d
WHERE {_PENDING} AND channel = %(channel)s AND {is_due("progress_at", MAX_PROGRESS_S)}
  AND d.id <> ALL(%(resting)s::uuid[]) AND {_IS_FREE} AND {_IS_FIRST}
"""

DUE_PROGRESS = f"SELECT id {_DUE_PROGRESS} ORDER BY progress_at LIMIT %(limit)s"

#: Win them, or the one that is named.
CLAIM_PROGRESS = f"""
WITH due AS (
    SELECT id, leased_until {_DUE_PROGRESS}
      AND (%(delivery)s::uuid IS NULL OR d.id = %(delivery)s)
    ORDER BY progress_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE deliveries d SET {_HOLD} FROM due WHERE d.id = due.id
    RETURNING d.*, due.leased_until IS NOT NULL AS is_doubtful
) {_DETAILS}
"""

#: The fence of every later statement.
_MINE = "id = %(delivery)s AND attempt = %(attempt)s AND worker_id = %(worker)s"

#: The row is still of its holder: a queued one only if it was queued while its progress was shown.
#: The lease of one that was lost, or is retried by hand, has ended.
_IN_HAND = f"""
({_PENDING} OR {_SENDING} OR {_QUEUED} AND leased_until > to_timestamp(0))
"""

KEEP = f"""
UPDATE deliveries SET progress = %(progress)s,
    leased_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE {_MINE} AND {_IN_HAND} RETURNING id
"""

#: Progress was shown; `next_s`: when there may be more, null: never. A lease in doubt stays, ended.
RELEASE = f"""
UPDATE deliveries SET progress = %(progress)s,
    leased_until = CASE WHEN %(is_doubtful)s THEN to_timestamp(0) END,
    progress_at = CASE WHEN {_PENDING} AND %(next_s)s::float IS NOT NULL THEN
        clock_timestamp() + make_interval(secs => least(%(next_s)s, {MAX_PROGRESS_S})) END
WHERE {_MINE} RETURNING id
"""


def end_delivery(state: DeliveryState) -> str:
    """Build the statement that ends an attempt for good."""
    change = delivery_change(DeliveryState.SENDING, to=state)
    return f"""
UPDATE deliveries SET {change.setting}, progress = %(progress)s, settled_at = clock_timestamp(),
    leased_until = NULL, failures = failures + %(counts)s, error_code = %(code)s,
    error_message = %(message)s
WHERE {_MINE} AND {change.guard} RETURNING id
"""


SEND_AGAIN = f"""
WITH again AS (
    UPDATE deliveries SET {_AGAIN.setting}, progress = %(progress)s,
        failures = failures + %(counts)s, error_code = %(code)s, error_message = %(message)s,
        leased_until = CASE WHEN %(is_doubtful)s THEN to_timestamp(0) END
    WHERE {_MINE} AND {_AGAIN.guard} RETURNING id, channel
), due AS (
    SELECT id AS turn_id, channel AS model, '{DELIVERY_LANE}' AS lane,
        NULL::timestamptz AS deadline_at,
        clock_timestamp() + make_interval(secs => %(delay_s)s) AS due_at, false AS is_immediate
    FROM again
), hinted AS ({OWE_HINTS})
SELECT id, pg_notify('{OUTBOX_CHANNEL}', '') FROM again
"""

#: After a step back, leases of before would last until the clock shows their times again. They are
#: cut to what they would be if they began now. Processes may have longer leases than this one, so
#: a lease is only cut where a step is known of: to this process (`has_stepped_back`), by a worker
#: that was seen in the future, or by a lease that is longer than any can be.
LONG_LEASES = f"""
SELECT id FROM deliveries WHERE state IN ({UNSENT}) AND {outlasts("leased_until", "%(lease_s)s")}
  AND (%(has_stepped_back)s OR {HAS_STEPPED_BACK} OR {outlasts("leased_until", MAX_LEASE_S)})
"""

CUT_LEASES = f"""
UPDATE deliveries SET leased_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id IN ({LONG_LEASES} AND id = ANY(%(ids)s) FOR NO KEY UPDATE SKIP LOCKED) RETURNING id
"""

#: Conversations with a delivery whose worker died.
#: Not one that PostgreSQL refused to change just now: others are before it.
_AWAKE = "conversation_id <> ALL(%(resting)s::uuid[])"

LOST_DELIVERIES = f"""
SELECT DISTINCT conversation_id AS id FROM deliveries WHERE {_SENDING} AND {_IS_FREE} AND {_AWAKE}
LIMIT 100
"""

#: The lease stays, ended: what the dead worker's last call did is in doubt.
REQUEUE_LOST = f"""
UPDATE deliveries SET {_AGAIN.setting}, failures = failures + 1, leased_until = to_timestamp(0)
WHERE conversation_id = ANY(%(conversations)s) AND {_AGAIN.guard} AND {_IS_FREE}
"""

#: Conversations whose deliveries an older release's worker, or a hand, left behind: pending though
#: the turn has ended, or first in the queue and without a hint.
FORGOTTEN_DELIVERIES = f"""
SELECT DISTINCT conversation_id AS id FROM deliveries d WHERE state IN ({UNSENT}) AND {_AWAKE} AND (
    {_PENDING} AND NOT EXISTS (
        SELECT 1 FROM turns t WHERE t.id = d.turn_id AND t.state IN ({OPEN}))
    OR {_QUEUED} AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.turn_id = d.id)
        AND {_IS_FIRST}
) LIMIT 100
"""

#: By hand, of one tenant. A retried one counts its failures anew; what the last call of its last
#: attempt did is in doubt, for it may have used up the attempts by silence.
RETRY_FAILED = f"""
UPDATE deliveries SET {_RETRY.setting}, failures = 0, leased_until = to_timestamp(0),
    settled_at = NULL, error_code = NULL,
    error_message = NULL
WHERE id = ANY(%(deliveries)s) AND tenant_id = %(tenant)s AND {_RETRY.guard}
RETURNING id, conversation_id
"""

DROP_UNSENT = f"""
WITH dropped AS (
    UPDATE deliveries SET {_DROP.setting}, settled_at = clock_timestamp(), leased_until = NULL
    WHERE id = ANY(%(deliveries)s) AND tenant_id = %(tenant)s AND {_DROP.guard}
    RETURNING id, conversation_id
), hint AS (
    DELETE FROM outbox USING dropped WHERE turn_id = dropped.id
)
SELECT id, conversation_id FROM dropped
"""
