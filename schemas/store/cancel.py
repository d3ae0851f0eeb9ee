"""Cancel: an open turn ends, and with it its attempt and its hint."""

from turnmill.schemas.turns import TurnState, sources_of

CANCEL = f"""
WITH turn AS (
    UPDATE turns SET state = 'cancelled', settled_at = clock_timestamp(), leased_until = NULL,
                     error_code = 'cancelled', error_message = 'The turn was cancelled.'
    WHERE id = %s AND state IN ({sources_of(TurnState.CANCELLED)})
    RETURNING id, attempt
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'cancelled' FROM turn
    WHERE turn_id = turn.id AND number = turn.attempt AND ended_at IS NULL
), hint AS (
    DELETE FROM outbox USING turn WHERE turn_id = turn.id
)
SELECT id FROM turn
"""
