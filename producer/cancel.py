"""Cancel: any open turn ends at once, and its conversation continues.

The worker that holds a running turn is not asked: it is fenced from this commit on, and
told so that it stops generating.
"""

from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Cursor, Database, notify
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.routes import ABORT_CHANNEL, TURN_CHANNEL
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.cancel import CANCEL
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.store.interrupt import INTERRUPT
from turnmill.schemas.turns import Message

#: A tenant that does not exist.
NOBODY = UUID(int=0)


class _Found(NamedTuple):
    conversation_id: UUID


_FIND = "SELECT conversation_id FROM turns WHERE id = %s AND tenant_id = %s"

_IS_SHARED = "SELECT 1 FROM turns WHERE id = %s AND is_shared"


class _OpenTurn(NamedTuple):
    id: UUID
    input: list[dict[str, object]]


_OPEN_TURNS = f"""
SELECT t.id, t.input
FROM conversations c JOIN turns t ON t.conversation_id = c.id AND t.seq > c.answered_seq
WHERE c.id = %s AND t.state IN ({OPEN}) ORDER BY t.seq
"""


def cancel(
    database: Database, tenant_id: UUID, turn_id: UUID, *, spares_shared: bool = False
) -> bool:
    """Cancel a turn; False when it had ended before.

    With `spares_shared`, one that answers the messages of several calls is left as it is, too.

    Raises:
        NotFound: the tenant has no such turn.
        DatabaseUnavailable: nothing changed.
    """
    with database.cursor() as cursor:
        found = fetch(cursor, _Found, _FIND, (turn_id, tenant_id))
        if not found:
            raise NotFound("There is no such turn.")
        conversation_ids = [found[0].conversation_id]
        lock_conversations(cursor, conversation_ids)
        lock_turns(cursor, [turn_id])
        if spares_shared and cursor.execute(_IS_SHARED, (turn_id,)).fetchone():
            return False
        if cursor.execute(CANCEL, ([turn_id],)).fetchone() is None:
            return False
        advance(cursor, conversation_ids)
        notify_ended(cursor, [turn_id])
        return True


def cancel_anybodys(database: Database, turn_id: UUID) -> bool:
    """Cancel a turn, whichever tenant's it is: for operators. Raises as `cancel`."""
    tenants = database.fetch(Id, "SELECT tenant_id AS id FROM turns WHERE id = %s", (turn_id,))
    return cancel(database, tenants[0].id if tenants else NOBODY, turn_id)


def end_open_turns(cursor: Cursor, conversation_id: UUID, *, keeps_text: bool) -> list[Message]:
    """End all open turns of a conversation, which is locked; return what the cancelled ones asked.

    With `keeps_text` a running turn of whose reply something was streamed is completed with that
    text as its reply. The others are cancelled.
    """
    turns = fetch(cursor, _OpenTurn, _OPEN_TURNS, (conversation_id,))
    if not turns:
        return []
    turn_ids = [turn.id for turn in turns]
    lock_turns(cursor, sorted(turn_ids))
    if keeps_text:
        cursor.execute(INTERRUPT, (turn_ids,))
    cancelled = {row.id for row in fetch(cursor, Id, CANCEL, (turn_ids,))}
    advance(cursor, [conversation_id])
    notify_ended(cursor, turn_ids)
    asked = (turn.input for turn in turns if turn.id in cancelled)
    return [Message.model_validate(message) for messages in asked for message in messages]


def notify_ended(cursor: Cursor, turn_ids: list[UUID]) -> None:
    """Stop the workers that hold the turns, and wake the readers, when the transaction commits."""
    for turn_id in turn_ids:
        notify(cursor, ABORT_CHANNEL, turn_id.hex)
        notify(cursor, TURN_CHANNEL, turn_id.hex)
