"""Accept: turns come to be, and the broker is owed a hint for those that are due."""

from turnmill.schemas.store.outbox import OWE_HINTS
from turnmill.schemas.turns import TurnState

INSERT_TURNS = f"""
WITH inserted AS (
    INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input,
                       params, idempotency_key, fingerprint, batch_id, batch_row, bot_version,
                       author, user_key, deadline_at, settled_at)
    SELECT id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input,
           params, idempotency_key, fingerprint, batch_id, batch_row, bot_version,
           author, user_key, clock_timestamp() + make_interval(secs => timeout_s),
           CASE WHEN state = '{TurnState.HANDED_OFF}' THEN clock_timestamp() END
    FROM unnest(
        %(id)s::uuid[], %(tenant_id)s::uuid[], %(conversation_id)s::uuid[], %(seq)s::int[],
        %(bot_id)s::uuid[], %(model)s::text[], %(lane)s::text[], %(state)s::text[],
        %(input)s::jsonb[], %(params)s::jsonb[], %(idempotency_key)s::text[],
        %(fingerprint)s::bytea[], %(batch_id)s::uuid[], %(batch_row)s::int[],
        %(timeout_s)s::float[], %(bot_version)s::int[], %(author)s::text[], %(user_key)s::text[]
    ) AS n (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params,
            idempotency_key, fingerprint, batch_id, batch_row, timeout_s, bot_version, author,
            user_key)
    RETURNING id, model, lane, state, deadline_at
), due AS (
    SELECT id AS turn_id, model, lane, deadline_at,
        clock_timestamp() + make_interval(secs => %(delay_s)s) AS due_at,
        %(delay_s)s = 0 AS is_immediate
    FROM inserted WHERE state = '{TurnState.QUEUED}'
) {OWE_HINTS}
"""
