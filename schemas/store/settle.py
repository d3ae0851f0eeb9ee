"""Settle: a running turn ends.

The statement repeats the fence: attempt number, worker, `running`. Zero rows mean that the turn
belongs to somebody else now.
"""

from turnmill.schemas.store.changes import ENDS
from turnmill.schemas.turns import TurnState

END = f"""
WITH ending AS (
    SELECT * FROM json_to_recordset(%s) AS e (turn_id uuid, attempt int, worker_id uuid,
        is_watched bool, state text, outcome text, error_code text, error_message text,
        content text, finish_reason text, prompt_tokens int, completion_tokens int,
        cached_tokens int, tool_calls jsonb, logprobs jsonb)
), ended AS (
    UPDATE turns t SET state = e.state, settled_at = clock_timestamp(), leased_until = NULL,
        error_code = e.error_code, error_message = e.error_message
    FROM ending e
    WHERE t.id = e.turn_id AND t.attempt = e.attempt AND t.worker_id = e.worker_id
      AND t.state = '{TurnState.RUNNING}' AND e.state IN ({ENDS})
    RETURNING e.*
), attempt AS (
    UPDATE attempts a SET ended_at = clock_timestamp(), outcome = e.outcome, error = e.error_code
    FROM ended e WHERE a.turn_id = e.turn_id AND a.number = e.attempt
), kept AS (
    DELETE FROM chunks c USING ended e WHERE c.turn_id = e.turn_id
), reply AS (
    INSERT INTO replies
        (turn_id, attempt, content, finish_reason, prompt_tokens, completion_tokens,
        cached_tokens, tool_calls, logprobs)
    SELECT turn_id, attempt, content, finish_reason, prompt_tokens, completion_tokens,
        cached_tokens, tool_calls, logprobs
    FROM ended WHERE content IS NOT NULL
)
SELECT turn_id, CASE WHEN is_watched THEN pg_notify(%s, replace(turn_id::text, '-', '')) END
FROM ended
"""
