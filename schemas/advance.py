"""Moving a conversation on: the one statement by which a waiting turn becomes due."""

from uuid import UUID

from turnmill.schemas.database import Cursor
from turnmill.schemas.routes import OUTBOX_CHANNEL

_LOCK = "SELECT 1 FROM conversations WHERE id = %s FOR UPDATE"

_ADVANCE = f"""
WITH head AS (
    SELECT t.id, t.seq, t.state, t.model, t.lane, t.deadline_at
    FROM conversations c JOIN turns t ON t.conversation_id = c.id AND t.seq > c.answered_seq
    WHERE c.id = %(conversation)s AND t.state IN ('waiting', 'queued', 'running')
    ORDER BY t.seq LIMIT 1
), moved AS (
    UPDATE conversations SET answered_seq = coalesce((SELECT seq FROM head), next_seq) - 1
    WHERE id = %(conversation)s
), due AS (
    UPDATE turns t SET state = 'queued' FROM head
    WHERE t.id = head.id AND head.state = 'waiting'
), hinted AS (
    INSERT INTO outbox (turn_id, model, lane, deadline_at)
    SELECT id, model, lane, deadline_at FROM head WHERE state = 'waiting' RETURNING turn_id
)
SELECT pg_notify('{OUTBOX_CHANNEL}', '') FROM hinted
"""


def lock_conversation(cursor: Cursor, conversation_id: UUID) -> None:
    """Hold the conversation until the transaction ends.

    Whoever ends a turn takes this lock first, in a statement of its own: `accept` holds it
    while it adds a turn, and a snapshot older than the lock could not see that turn.
    """
    cursor.execute(_LOCK, (conversation_id,))


def advance(cursor: Cursor, conversation_id: UUID) -> None:
    """Make the first open turn due and count what stands before it as answered.

    Derived from the turns alone, so running it once too often changes nothing.
    """
    cursor.execute(_ADVANCE, {"conversation": conversation_id})
