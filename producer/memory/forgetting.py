"""Forget a user: whatever the user said, wherever it stands."""

from uuid import UUID

from turnmill.producer.memory.users import check_key
from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.advance import lock_conversations
from turnmill.schemas.store.memory.erasing import OPEN_TURNS, OpenTurn, cancel_turns
from turnmill.schemas.store.memory.erasures import Erasure, ask_erasure, find_erasure

#: At once: whoever comes back is another row.
_FORGET = "DELETE FROM users WHERE tenant_id = %s AND key = %s"


def forget_user(database: Database, tenant_id: UUID, key: str) -> Erasure:
    """Delete a user's facts and preferences, cancel the user's open turns, and note that what was
    said is to be erased; workers do it.

    Raises:
        InvalidInput: it is no user's key.
    """
    check_key(key)
    with database.cursor() as cursor:
        erasure = ask_erasure(cursor, tenant_id, key)
        turns = fetch(cursor, OpenTurn, OPEN_TURNS, {"tenant": tenant_id, "key": key})
        conversations = sorted({turn.conversation_id for turn in turns})
        lock_conversations(cursor, conversations)
        # After the conversations, as whoever accepts a message locks them.
        cursor.execute(_FORGET, (tenant_id, key))
        cancel_turns(cursor, [turn.id for turn in turns], conversations)
    return erasure


def read_erasure(database: Database, tenant_id: UUID, key: str) -> Erasure:
    """The erasure of a user, done or not.

    Raises:
        NotFound: the user was never forgotten.
        InvalidInput: it is no user's key.
    """
    check_key(key)
    found = find_erasure(database, tenant_id, key)
    if found is None:
        raise NotFound("This user was not forgotten.", param="user")
    return found
