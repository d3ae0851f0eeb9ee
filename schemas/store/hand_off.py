"""Hand-off: a person answers a conversation instead of its bot, until the bot is to resume.

In one transaction the conversation is marked, its open turns end, and deliveries of replies that
nothing was sent of are dropped. Later messages become turns that nobody is to answer: `accept`
looks at the mark under the conversation's lock.
"""

from collections.abc import Sequence
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.channels.policies import Texts
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.routes import ABORT_CHANNEL, TURN_CHANNEL
from turnmill.schemas.store.advance import advance
from turnmill.schemas.store.changes import OPEN, change, delivery_change
from turnmill.schemas.turns import TurnState

_LOCK_OPEN = f"""
SELECT 1 FROM conversations c JOIN turns t ON t.conversation_id = c.id AND t.seq > c.answered_seq
WHERE c.id = ANY(%s) AND t.state IN ({OPEN})
ORDER BY t.id FOR NO KEY UPDATE OF t
"""


def _own(name: str) -> str:
    """Build the SQL of a policy of the conversation's own, or else of its bot's."""
    return f"coalesce(c.policies #> '{{{name}}}', b.policies #> '{{{name}}}')"


_IS_WANTED = f"""
(NOT %(after_failure)s OR {_own("hands_off_failures")} = 'true')
"""

_HAND_OFF = change(to=TurnState.HANDED_OFF)

#: A conversation that is handed off stays so, with the time and the reason that it has.
HAND_OFF = f"""
WITH marked AS (
    UPDATE conversations c
    SET handed_off_at = clock_timestamp(), handed_off_because = %(because)s
    FROM bots b WHERE b.id = c.bot_id AND c.id = ANY(%(conversations)s)
      AND c.handed_off_at IS NULL AND {_IS_WANTED}
    RETURNING c.id, c.tenant_id, c.answered_seq, {_own("texts,handed_off")} #>> '{{}}' AS text,
        b.policies ->> 'knowledge' AS knowledge
), gap AS (
    -- What was asked last is a question that the bot did not get settled.
    INSERT INTO knowledge_gaps (id, tenant_id, collection_id, turn_id, question, verdict)
    SELECT n.id, marked.tenant_id, k.id, t.id, right(t.input -> -1 ->> 'content', 2000),
        'taken_over'
    FROM marked JOIN collections k
        ON k.tenant_id = marked.tenant_id AND k.name = marked.knowledge
    JOIN unnest(%(conversations)s::uuid[], %(gaps)s::uuid[]) AS n (conversation_id, id)
        ON n.conversation_id = marked.id
    CROSS JOIN LATERAL (
        SELECT id, input FROM turns WHERE conversation_id = marked.id ORDER BY seq DESC LIMIT 1
    ) AS t
    WHERE jsonb_typeof(t.input -> -1 -> 'content') = 'string'
        AND t.input -> -1 ->> 'role' = 'user'
    ON CONFLICT (turn_id) DO NOTHING
), turn AS (
    UPDATE turns t SET {_HAND_OFF.setting}, settled_at = clock_timestamp(), leased_until = NULL
    FROM marked WHERE t.conversation_id = marked.id AND t.seq > marked.answered_seq
      AND t.{_HAND_OFF.guard}
    RETURNING t.id, t.attempt
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'cancelled' FROM turn
    WHERE turn_id = turn.id AND number = turn.attempt AND ended_at IS NULL
), hint AS (
    DELETE FROM outbox USING turn WHERE turn_id = turn.id
), notice AS (
    INSERT INTO deliveries
        (id, tenant_id, conversation_id, channel, target, kind, content, state)
    SELECT n.id, h.tenant_id, h.conversation_id, h.channel, h.target, 'notice',
        coalesce(%(says)s, marked.text, %(text)s), '{DeliveryState.QUEUED}'
    FROM marked JOIN channel_threads h ON h.conversation_id = marked.id
    JOIN unnest(%(conversations)s::uuid[], %(notices)s::uuid[]) AS n (conversation_id, id)
        ON n.conversation_id = marked.id
)
SELECT pg_notify(channel, replace(id::text, '-', ''))
FROM turn CROSS JOIN unnest(ARRAY['{ABORT_CHANNEL}', '{TURN_CHANNEL}']) AS channel
"""

_DROP = delivery_change(DeliveryState.PENDING, DeliveryState.QUEUED, to=DeliveryState.DROPPED)

#: Of conversations that are handed off, or of all. A reply that was begun to be sent is left: what
#: the platform shows is ended.
DROP_REPLIES = f"""
WITH dropped AS (
    UPDATE deliveries d
    SET {_DROP.setting}, settled_at = clock_timestamp(), progress_at = NULL
    FROM conversations c
    WHERE c.id = ANY(%(conversations)s) AND (%(all)s OR c.handed_off_at IS NOT NULL)
      AND d.conversation_id = c.id
      AND d.kind = 'reply' AND d.{_DROP.guard} AND d.leased_until IS NULL AND d.progress = '{{}}'
    RETURNING d.id
)
DELETE FROM outbox USING dropped WHERE turn_id = dropped.id
"""

RESUME = """
UPDATE conversations SET handed_off_at = NULL, handed_off_because = NULL
WHERE id = %s AND handed_off_at IS NOT NULL RETURNING id
"""


def hand_off(
    cursor: Cursor,
    conversation_ids: Sequence[UUID],
    because: str,
    *,
    after_failure: bool = False,
    says: str | None = None,
) -> None:
    """Hand conversations, which are locked, to people, and tell their threads.

    With `after_failure` only those are handed off whose policy wants it after a failed turn.
    `says` is said instead of the policy's text; an empty one tells the platform, and not the user.
    """
    ids = list(conversation_ids)
    cursor.execute(_LOCK_OPEN, (ids,))
    cursor.execute(
        HAND_OFF,
        {
            "conversations": ids,
            "notices": [new_id() for _ in ids],
            "gaps": [new_id() for _ in ids],
            "because": because,
            "text": Texts().handed_off,
            "says": says,
            "after_failure": after_failure,
        },
    )
    cursor.execute(DROP_REPLIES, {"conversations": ids, "all": False})
    advance(cursor, ids)
