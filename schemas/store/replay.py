"""Replay and drop: the two ways out of being parked. A batch replays what has failed, too."""

from turnmill.schemas.routes import PAUSED_LANE
from turnmill.schemas.store.changes import change
from turnmill.schemas.turns import TurnState

_REPLAY = change(TurnState.PARKED, TurnState.FAILED, to=TurnState.WAITING)
_PUT_BACK = change(TurnState.QUEUED, to=TurnState.WAITING)
_DROP = change(TurnState.PARKED, to=TurnState.FAILED)

#: The turns wait, and so does a later one that was due; `advance` then makes the first of them
#: due. One that was due in quarantine stays in that lane. A deadline said when nobody wants the
#: reply any more; whoever replays the turn does.
REPLAY = f"""
WITH replayed AS (
    UPDATE turns SET {_REPLAY.setting}, lane = coalesce(%(into)s::text, lane), failures = 0,
        crashes = 0, worker_id = NULL, leased_until = NULL, deadline_at = NULL,
        settled_at = NULL, error_code = NULL, error_message = NULL
    WHERE id = ANY(%(turns)s) AND {_REPLAY.guard}
    RETURNING conversation_id, seq
), first AS (
    SELECT conversation_id, min(seq) AS seq FROM replayed GROUP BY conversation_id
), rewound AS (
    UPDATE conversations c SET answered_seq = least(c.answered_seq, first.seq - 1)
    FROM first WHERE c.id = first.conversation_id
), put_back AS (
    UPDATE turns t SET {_PUT_BACK.setting},
        lane = CASE o.lane WHEN '{PAUSED_LANE}' THEN t.lane ELSE o.lane END
    FROM first, outbox o
    WHERE t.conversation_id = first.conversation_id AND t.seq > first.seq
      AND t.{_PUT_BACK.guard} AND o.turn_id = t.id
    RETURNING t.id
)
DELETE FROM outbox USING put_back WHERE turn_id = put_back.id
"""

DROP = f"UPDATE turns SET {_DROP.setting} WHERE id = ANY(%s) AND {_DROP.guard} RETURNING id"
