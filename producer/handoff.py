"""Hand-off: from the bot to a person, what the person answers, and back to the bot."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from turnmill.producer.accept import accept_in
from turnmill.producer.conversations import Standing, lock_standing, say
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import NotFound, NotHandedOff
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.store import hand_off as store
from turnmill.schemas.turns import AcceptedTurn, Message, Role, TurnRequest

#: Why, where nobody says it.
ASKED_BY_OPERATOR = "An operator took it over."
ASKED_BY_USER = "The user asked for a person."

#: Those that wait longest first.
_LIST = """
SELECT c.id, b.name AS bot, c.handed_off_at, c.handed_off_because, c.next_seq - 1 AS turn_count,
    h.channel, h.thread
FROM conversations c JOIN bots b ON b.id = c.bot_id
LEFT JOIN LATERAL (
    SELECT channel, thread FROM channel_threads WHERE conversation_id = c.id LIMIT 1
) AS h ON true
WHERE c.tenant_id = %(tenant)s AND c.handed_off_at IS NOT NULL
  AND (%(after)s::uuid IS NULL OR (c.handed_off_at, c.id) > (
      SELECT handed_off_at, id FROM conversations WHERE id = %(after)s))
ORDER BY c.handed_off_at, c.id LIMIT %(limit)s
"""


class HandedOff(BaseModel):
    """A conversation that a person answers."""

    conversation_id: str
    bot: str
    handed_off_at: datetime
    because: str
    turn_count: int
    #: Where its user writes from; null for conversations of the API.
    channel: str | None
    thread: str | None


class HandedOffPage(BaseModel):
    conversations: list[HandedOff]
    #: The id to send as `after` for the next page; null at the end.
    next: str | None


def hand_off(database: Database, tenant_id: UUID, conversation_id: UUID, because: str) -> None:
    """Hand a conversation to a person; doing so twice is fine. Raises `NotFound`."""
    with database.cursor() as cursor:
        _lock(cursor, tenant_id, conversation_id)
        store.hand_off(cursor, [conversation_id], because)


def resume(database: Database, tenant_id: UUID, conversation_id: UUID) -> bool:
    """Let the bot answer again; False if it did already. Raises `NotFound`."""
    with database.cursor() as cursor:
        standing = _lock(cursor, tenant_id, conversation_id)
        return resume_in(cursor, standing, standing.policies)


def resume_in(cursor: Cursor, standing: Standing, policies: Policies) -> bool:
    """Let the bot answer a conversation, which is locked, again; False if it did already."""
    if cursor.execute(store.RESUME, (standing.conversation_id,)).fetchone() is None:
        return False
    say(cursor, standing.conversation_id, policies.texts.resumed)
    return True


def answer(
    database: Database, tenant_id: UUID, conversation_id: UUID, text: str, author: str
) -> AcceptedTurn:
    """Take a person's answer, and owe it to the thread that its user writes from.

    Raises:
        NotFound: the tenant has no such conversation.
        NotHandedOff: the bot answers it.
    """
    with database.cursor() as cursor:
        standing = _lock(cursor, tenant_id, conversation_id)
        if not standing.is_handed_off:
            raise NotHandedOff(
                "The bot answers this conversation. Hand it off first: "
                f"turnmill conversations hand-off {show_id(Prefix.CONVERSATION, conversation_id)}"
            )
        turn = note(cursor, standing, Message(role=Role.ASSISTANT, content=text), author)
        say(cursor, conversation_id, text)
        return turn


def note(cursor: Cursor, standing: Standing, message: Message, author: str) -> AcceptedTurn:
    """Keep what was said in a conversation that is handed off, as a turn that nobody is to answer.

    Whether a worker could answer it does not matter.
    """
    request = TurnRequest(
        tenant_id=standing.tenant_id,
        bot=standing.bot,
        messages=(message,),
        conversation_id=standing.conversation_id,
        author=author,
    )
    return accept_in(cursor, [request], is_for_people=True)[0]


def list_handed_off(
    database: Database, tenant_id: UUID, *, limit: int = 50, after: UUID | None = None
) -> HandedOffPage:
    """One page of the conversations that people answer; `after` is the last one of the page
    before."""
    params = {"tenant": tenant_id, "after": after, "limit": limit + 1}
    rows = database.run(_LIST, params)
    shown = [_handed_off(row) for row in rows[:limit]]
    following = shown[-1].conversation_id if len(rows) > limit else None
    return HandedOffPage(conversations=shown, next=following)


def _handed_off(row: Any) -> HandedOff:
    return HandedOff(
        conversation_id=show_id(Prefix.CONVERSATION, row.id),
        bot=row.bot,
        handed_off_at=row.handed_off_at,
        because=row.handed_off_because,
        turn_count=row.turn_count,
        channel=row.channel,
        thread=row.thread,
    )


def _lock(cursor: Cursor, tenant_id: UUID, conversation_id: UUID) -> Standing:
    standing = lock_standing(cursor, conversation_id)
    if standing is None or standing.tenant_id != tenant_id:
        raise NotFound("There is no such conversation.")
    return standing
