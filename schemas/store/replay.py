"""Replay and drop: the two ways out of being parked."""

#: The turns wait, and so does a later one that was due; `advance` then makes the first of them
#: due. One that was due in quarantine stays in that lane. A deadline said when nobody wants the
#: reply any more; whoever replays the turn does.
REPLAY = """
WITH replayed AS (
    UPDATE turns SET state = 'waiting', lane = coalesce(%(into)s::text, lane), failures = 0,
        crashes = 0, worker_id = NULL, leased_until = NULL, deadline_at = NULL,
        settled_at = NULL, error_code = NULL, error_message = NULL
    WHERE id = ANY(%(turns)s) AND state = 'parked'
    RETURNING conversation_id, seq
), first AS (
    SELECT conversation_id, min(seq) AS seq FROM replayed GROUP BY conversation_id
), rewound AS (
    UPDATE conversations c SET answered_seq = least(c.answered_seq, first.seq - 1)
    FROM first WHERE c.id = first.conversation_id
), put_back AS (
    UPDATE turns t SET state = 'waiting', lane = o.lane FROM first, outbox o
    WHERE t.conversation_id = first.conversation_id AND t.seq > first.seq
      AND t.state = 'queued' AND o.turn_id = t.id
    RETURNING t.id
)
DELETE FROM outbox USING put_back WHERE turn_id = put_back.id
"""

DROP = "UPDATE turns SET state = 'failed' WHERE id = ANY(%s) AND state = 'parked' RETURNING id"
