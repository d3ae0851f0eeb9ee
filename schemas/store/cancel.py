"""Cancel: open turns end, and with them their attempts and hints."""

from turnmill.schemas.store.changes import change
from turnmill.schemas.turns import TurnState

_CANCEL = change(to=TurnState.CANCELLED)

CANCEL = f"""
WITH turn AS (
    UPDATE turns SET {_CANCEL.setting}, settled_at = clock_timestamp(), leased_until = NULL,
                     error_code = 'cancelled', error_message = 'The turn was cancelled.'
    WHERE id = ANY(%s) AND {_CANCEL.guard}
    RETURNING id, attempt
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'cancelled' FROM turn
    WHERE turn.attempt > 0 AND turn_id = turn.id AND number = turn.attempt AND ended_at IS NULL
), hint AS (
    -- As an array: PostgreSQL looks the hints up by their ids, however many there are.
    DELETE FROM outbox WHERE turn_id = ANY(ARRAY(SELECT id FROM turn))
)
SELECT id FROM turn
"""
