"""Deliveries: they are inserted with their turn, or as a notice, and become due one by one.

A conversation's deliveries leave in the order of their ordinals. A pending one holds up none: its
turn is open, so only notices, which are news at once, can stand behind it and be queued.
"""

from collections.abc import Sequence
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.routes import DELIVERY_LANE, OUTBOX_CHANNEL
from turnmill.schemas.store.changes import OPEN, delivery_change, literals
from turnmill.schemas.store.outbox import OWE_HINTS

#: What is remembered of a reply for which the platform shows a sign already (`is_awaited`).
AWAITED = {"status": "awaited"}

#: Of turns that are being accepted: their progress may be shown at once.
INSERT_PENDING = """
INSERT INTO deliveries
    (id, tenant_id, conversation_id, turn_id, channel, target, kind, state, progress,
    progress_at)
SELECT id, tenant_id, conversation_id, turn_id, channel, target, 'reply', 'pending',
    coalesce(progress, '{}'), clock_timestamp()
FROM json_to_recordset(%s) AS d (id uuid, tenant_id uuid, conversation_id uuid, turn_id uuid,
    channel text, target jsonb, progress jsonb)
ON CONFLICT DO NOTHING
"""

#: A notice; it is queued behind what the conversation still owes (`advance_deliveries`).
INSERT_NOTICE = """
INSERT INTO deliveries
    (id, tenant_id, conversation_id, channel, target, kind, content, state)
SELECT %(id)s, tenant_id, conversation_id, channel, target, 'notice', %(content)s, 'queued'
FROM channel_threads WHERE conversation_id = %(conversation)s
RETURNING id
"""

_QUEUE = delivery_change(DeliveryState.PENDING, to=DeliveryState.QUEUED)

_RENEW = delivery_change(to=DeliveryState.PENDING)

#: Of turns that are replayed: their replies are owed anew, under another id, for what was sent
#: under the first one was another text.
RENEW_DELIVERIES = f"""
WITH renewed AS (
    UPDATE deliveries d SET {_RENEW.setting}, id = n.id, ordinal = DEFAULT, attempt = 0,
        failures = 0, worker_id = NULL, leased_until = NULL, progress = '{{}}',
        progress_at = clock_timestamp(), error_code = NULL, error_message = NULL, settled_at = NULL
    FROM unnest(%(turns)s::uuid[], %(ids)s::uuid[]) AS n (turn_id, id), deliveries old
    WHERE d.turn_id = n.turn_id AND d.{_RENEW.guard} AND old.turn_id = n.turn_id
    RETURNING old.id
)
DELETE FROM outbox USING renewed WHERE turn_id = renewed.id
"""

#: States of deliveries that hold up those behind them in their conversation.
HOLDING = literals({DeliveryState.QUEUED, DeliveryState.SENDING})

#: A head that has an outbox row keeps it: the row says when the next attempt is due. A notice that
#: was the head while a turn before it was open gives up its row to that turn's reply.
ADVANCE_DELIVERIES = f"""
WITH ended AS (
    UPDATE deliveries d SET {_QUEUE.setting}, progress_at = NULL
    WHERE d.conversation_id = ANY(%(conversations)s) AND d.{_QUEUE.guard}
      AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.id = d.turn_id AND t.state IN ({OPEN}))
    RETURNING d.id, d.conversation_id, d.ordinal, d.channel, d.state
), head AS (
    SELECT DISTINCT ON (conversation_id) id, conversation_id, channel, state FROM (
        SELECT * FROM ended
        UNION ALL SELECT id, conversation_id, ordinal, channel, state FROM deliveries
        WHERE conversation_id = ANY(%(conversations)s) AND state IN ({HOLDING})
    ) AS d ORDER BY conversation_id, ordinal
), displaced AS (
    DELETE FROM outbox o USING head, deliveries d
    WHERE d.conversation_id = head.conversation_id AND d.state = '{DeliveryState.QUEUED}'
      AND d.id <> head.id AND o.turn_id = d.id
), due AS (
    SELECT id AS turn_id, channel AS model, '{DELIVERY_LANE}' AS lane,
        NULL::timestamptz AS deadline_at, clock_timestamp() AS due_at, true AS is_immediate
    FROM head WHERE state = '{DeliveryState.QUEUED}'
      AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.turn_id = head.id)
), hinted AS ({OWE_HINTS} RETURNING turn_id)
SELECT pg_notify('{OUTBOX_CHANNEL}', '') FROM hinted LIMIT 1
"""


def advance_deliveries(cursor: Cursor, conversation_ids: Sequence[UUID]) -> None:
    """Queue the deliveries of ended turns and owe a hint for the first queued one of each.

    The conversations are locked. Derived from the tables alone, so running it once too often
    changes nothing.
    """
    cursor.execute(ADVANCE_DELIVERIES, {"conversations": list(conversation_ids)})
