"""Accept: turns come to be, and the broker is owed a hint for those that are due."""

from turnmill.schemas.store.outbox import OWE_HINTS
from turnmill.schemas.turns import TurnState

INSERT_TURNS = f"""
INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params,
                   idempotency_key, fingerprint, batch_id, batch_row, bot_version, author,
                   user_key, deadline_at, settled_at)
SELECT id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params,
       idempotency_key, fingerprint, batch_id, batch_row, bot_version, author,
       user_key, clock_timestamp() + make_interval(secs => timeout_s),
       CASE WHEN state = '{TurnState.HANDED_OFF}' THEN clock_timestamp() END
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::int[], %s::uuid[], %s::text[], %s::text[],
            %s::text[], %s::jsonb[], %s::jsonb[], %s::text[], %s::bytea[], %s::uuid[], %s::int[],
            %s::float[], %s::int[], %s::text[], %s::text[])
     AS n (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params,
           idempotency_key, fingerprint, batch_id, batch_row, timeout_s, bot_version, author,
           user_key)
"""

OWE_FIRST_HINTS = f"""
WITH due AS (
    SELECT id AS turn_id, model, lane, deadline_at,
        clock_timestamp() + make_interval(secs => %(delay_s)s) AS due_at,
        %(delay_s)s = 0 AS is_immediate
    FROM turns WHERE id = ANY(%(turns)s)
) {OWE_HINTS}
"""
