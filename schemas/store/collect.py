"""Collect: a message joins the last turn of its conversation, which no worker has begun."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.clock import MAX_DELAY_S
from turnmill.schemas.store.changes import literals
from turnmill.schemas.turns import TurnState

_UNBEGUN = literals({TurnState.WAITING, TurnState.QUEUED})


class Unbegun(NamedTuple):
    """The last turn of a conversation, while no attempt at it has begun."""

    id: UUID
    seq: int
    state: str
    input: list[dict[str, object]]
    params: dict[str, object]
    deadline_at: datetime | None


#: Lock the turn. A claim that is just being made is waited for, and then there is no such turn;
#: a claim that comes later passes over the locked turn, whose hint is published anew.
FIND_UNBEGUN = f"""
SELECT id, seq, state, input, params, deadline_at FROM turns
WHERE conversation_id = %(conversation)s AND seq = %(last)s AND state IN ({_UNBEGUN})
  AND attempt = 0 AND batch_id IS NULL AND author IS NOT DISTINCT FROM %(author)s
FOR NO KEY UPDATE
"""

#: The hint waits for what may still come, and at most five times as long in all.
COLLECT = f"""
WITH turn AS (
    UPDATE turns SET input = %(input)s, is_shared = true WHERE id = %(turn)s
    RETURNING id, accepted_at
)
UPDATE outbox SET is_immediate = false, published_at = NULL, worker_id = NULL, own_until = NULL,
    due_at = least(
        clock_timestamp() + make_interval(secs => least(%(quiet_s)s, {MAX_DELAY_S})),
        turn.accepted_at + make_interval(secs => 5 * %(quiet_s)s))
FROM turn WHERE turn_id = turn.id
"""
