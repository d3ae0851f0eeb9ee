"""Cancel: any open turn ends at once, and its conversation goes on.

The worker that holds a running turn is not asked: it is fenced from this commit on, and
told so that it stops generating.
"""

from uuid import UUID

from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database, notify
from turnmill.schemas.routes import ABORT_CHANNEL, TURN_CHANNEL
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.cancel import CANCEL

_FIND = "SELECT conversation_id FROM turns WHERE id = %s AND tenant_id = %s"


def cancel(database: Database, tenant_id: UUID, turn_id: UUID) -> bool:
    """Cancel a turn; False when it had ended before.

    Raises:
        NotFound: the tenant has no such turn.
        DatabaseUnavailable: nothing changed.
    """
    with database.cursor() as cursor:
        found = cursor.execute(_FIND, (turn_id, tenant_id)).fetchone()
        if found is None:
            raise NotFound("There is no such turn.")
        lock_conversations(cursor, [found.conversation_id])
        lock_turns(cursor, [turn_id])
        if cursor.execute(CANCEL, (turn_id,)).fetchone() is None:
            return False
        advance(cursor, [found.conversation_id])
        notify(cursor, ABORT_CHANNEL, turn_id.hex)
        notify(cursor, TURN_CHANNEL, turn_id.hex)
        return True
