"""Interrupt: running turns end where they are, and what was streamed of their replies is said.

Their attempts, which still hold the leases, are fenced from the commit on.
"""

from turnmill.schemas.store.changes import change
from turnmill.schemas.turns import TurnState

_COMPLETE = change(TurnState.RUNNING, to=TurnState.COMPLETED)

#: A turn of whose reply nothing was streamed yet is left as it is. How many tokens its prompt has
#: only the engine knows.
INTERRUPT = f"""
WITH said AS (
    SELECT turn_id, string_agg(text, '' ORDER BY position) AS content,
        sum(token_count)::int AS token_count
    FROM chunks WHERE turn_id = ANY(%s) GROUP BY turn_id
), turn AS (
    UPDATE turns t SET {_COMPLETE.setting}, settled_at = clock_timestamp(), leased_until = NULL
    FROM said WHERE t.id = said.turn_id AND t.{_COMPLETE.guard} AND said.content ~ '\\S'
    RETURNING t.id, t.attempt, said.content, said.token_count
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'cancelled' FROM turn
    WHERE turn_id = turn.id AND number = turn.attempt AND ended_at IS NULL
), shown AS (
    DELETE FROM chunks USING turn WHERE turn_id = turn.id
), reply AS (
    INSERT INTO replies
        (turn_id, attempt, content, finish_reason, prompt_tokens, completion_tokens)
    SELECT id, attempt, content, 'length', 0, token_count FROM turn
)
SELECT id FROM turn
"""
