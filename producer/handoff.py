"""Hand-off: from the bot to a person, what the person answers, and back to the bot."""

from uuid import UUID

from turnmill.producer.accept import accept_in, is_known, racing
from turnmill.producer.conversations import Standing, lock_standing, say
from turnmill.producer.operations.remedies import option_of_tenant
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import NotFound, NotHandedOff
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.store import hand_off as store
from turnmill.schemas.turns import AcceptedTurn, Message, Role, TurnRequest

#: Why, where nobody says it.
ASKED_BY_OPERATOR = "An operator took it over."
ASKED_BY_USER = "The user asked for a person."
TAKEN_OVER = "A person took it over on the platform."


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
    database: Database,
    tenant_id: UUID,
    conversation_id: UUID,
    text: str,
    author: str,
    idempotency_key: str | None = None,
) -> AcceptedTurn:
    """Take a person's answer, and owe it to the thread that its user writes from.

    An answer whose idempotency key is known was taken before, and is not sent again.

    Raises:
        NotFound: the tenant has no such conversation.
        NotHandedOff: the bot answers it.
        Conflict: the key was used before for something else.
    """

    def take(cursor: Cursor) -> AcceptedTurn:
        standing = _lock(cursor, tenant_id, conversation_id)
        message = Message(role=Role.ASSISTANT, content=text)
        request = _said(standing, message, author, idempotency_key)
        if not standing.is_handed_off and not is_known(cursor, request):
            raise NotHandedOff(
                "The bot answers this conversation. Hand it off first: "
                f"turnmill conversations hand-off {show_id(Prefix.CONVERSATION, conversation_id)}"
                f"{option_of_tenant(cursor, tenant_id)}"
            )
        (turn,) = accept_in(cursor, [request], is_for_people=True)
        if not turn.is_duplicate:
            say(cursor, conversation_id, text)
        return turn

    return racing(database, take)


def note(
    cursor: Cursor, standing: Standing, message: Message, author: str, user: str | None
) -> AcceptedTurn:
    """Keep what was said in a conversation that is handed off, as a turn that nobody is to answer.

    Whether a worker could answer it does not matter. `user` is the key of the user who said it.
    """
    said = _said(standing, message, author).model_copy(update={"user_key": user})
    return accept_in(cursor, [said], is_for_people=True)[0]


def _said(
    standing: Standing, message: Message, author: str, idempotency_key: str | None = None
) -> TurnRequest:
    return TurnRequest(
        tenant_id=standing.tenant_id,
        bot=standing.bot,
        messages=(message,),
        conversation_id=standing.conversation_id,
        author=author,
        idempotency_key=idempotency_key,
    )


def _lock(cursor: Cursor, tenant_id: UUID, conversation_id: UUID) -> Standing:
    standing = lock_standing(cursor, conversation_id)
    if standing is None or standing.tenant_id != tenant_id:
        raise NotFound("There is no such conversation.")
    return standing
