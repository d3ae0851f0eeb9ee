"""Moving a conversation on: the one statement by which a waiting turn becomes due."""

from collections.abc import Sequence
from uuid import UUID

from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.routes import OUTBOX_CHANNEL
from turnmill.schemas.store.changes import OPEN, change
from turnmill.schemas.store.channels.deliveries import advance_deliveries
from turnmill.schemas.store.outbox import OWE_HINTS
from turnmill.schemas.turns import TurnState

_LOCK = "SELECT 1 FROM conversations WHERE id = ANY(%s) ORDER BY id FOR UPDATE"

_LOCK_TURNS = "SELECT 1 FROM turns WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE"

_QUEUE = change(TurnState.WAITING, to=TurnState.QUEUED)

ADVANCE = f"""
WITH head AS (
    SELECT c.id AS conversation_id, c.next_seq, t.*
    FROM conversations c LEFT JOIN LATERAL (
        SELECT id, seq, state, model, lane, deadline_at FROM turns
        WHERE conversation_id = c.id AND seq > c.answered_seq
          AND state IN ({OPEN})
        ORDER BY seq LIMIT 1
    ) AS t ON true
    WHERE c.id = ANY(%s)
), moved AS (
    UPDATE conversations c SET answered_seq = coalesce(head.seq, head.next_seq) - 1
    FROM head WHERE c.id = head.conversation_id
), queued AS (
    UPDATE turns t SET {_QUEUE.setting} FROM head
    WHERE t.id = head.id AND t.{_QUEUE.guard}
    RETURNING t.id
), due AS (
    SELECT id AS turn_id, model, lane, deadline_at, clock_timestamp() AS due_at,
        true AS is_immediate
    FROM head JOIN queued USING (id)
), hinted AS ({OWE_HINTS} RETURNING turn_id)
SELECT pg_notify('{OUTBOX_CHANNEL}', '') FROM hinted LIMIT 1
"""


def lock_conversations(cursor: Cursor, conversation_ids: Sequence[UUID]) -> None:
    """Hold the conversations until the transaction ends.

    Whoever ends a turn takes this lock first, in a statement of its own: `accept` holds it
    while it adds a turn, and a snapshot older than the lock could not see that turn.
    """
    cursor.execute(_LOCK, (list(conversation_ids),))


def lock_turns(cursor: Cursor, turn_ids: Sequence[UUID]) -> None:
    """Hold the turns until the transaction ends; their conversations are locked before.

    Whoever ends a turn takes this lock too: the hint of a hand-back, or the chunks, that another
    transaction is just writing would be missing from a snapshot older than the lock, and stay
    behind for ever. All who lock several turns do so in the order of their ids.
    """
    cursor.execute(_LOCK_TURNS, (list(turn_ids),))


def advance(cursor: Cursor, conversation_ids: Sequence[UUID]) -> None:
    """Make the first open turn of each due and count what stands before it as answered.

    The deliveries of turns that have ended are queued with it. Derived from the tables alone, so
    running it once too often changes nothing.
    """
    cursor.execute(ADVANCE, (list(conversation_ids),))
    advance_deliveries(cursor, conversation_ids)
