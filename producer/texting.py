"""Double texting: what becomes of a message while an earlier turn of its conversation is open.

The one place for channels and the API, inside the transaction that accepts the message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.accept import accept, accept_in, as_stored, asked_params, is_known, racing
from turnmill.producer.cancel import end_open_turns
from turnmill.producer.conversations import Standing, lock_standing
from turnmill.schemas.channels.policies import DoubleTexting, Policies
from turnmill.schemas.content import MAX_MESSAGE_CHARS
from turnmill.schemas.errors import ConversationBusy
from turnmill.schemas.joining import joined
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.store.collect import COLLECT, FIND_UNBEGUN, Unbegun
from turnmill.schemas.turns import MAX_MESSAGES, AcceptedTurn, Message, TurnRequest, TurnState

_HAS_OPEN = f"""
SELECT 1 FROM conversations c JOIN turns t ON t.conversation_id = c.id AND t.seq > c.answered_seq
WHERE c.id = %s AND t.state IN ({OPEN}) LIMIT 1
"""

_HAS_OTHERS = f"""
SELECT 1 FROM conversations c JOIN turns t ON t.conversation_id = c.id AND t.seq > c.answered_seq
WHERE c.id = %s AND t.state IN ({OPEN}) AND t.user_key IS DISTINCT FROM %s LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a message."""

    #: None: it was rejected.
    turn: AcceptedTurn | None
    #: It is a part of a turn that was accepted before.
    is_collected: bool = False


def accept_call(
    database: Database, request: TurnRequest, double_texting: DoubleTexting | None = None
) -> AcceptedTurn:
    """Accept what a call says, as the call's policy on double texting asks, or else as its
    conversation's and bot's do.

    Raises, besides what `accept` raises:
        ConversationBusy: the policy is to reject, and an earlier turn is open.
    """
    conversation_id = request.conversation_id
    if conversation_id is None:
        return accept(database, request)
    return racing(
        database, lambda cursor: _take_call(cursor, request, conversation_id, double_texting)
    )


def _take_call(
    cursor: Cursor,
    request: TurnRequest,
    conversation_id: UUID,
    double_texting: DoubleTexting | None,
) -> AcceptedTurn:
    standing = lock_standing(cursor, conversation_id)
    # What has no policy, or must not have one: accept answers it, or refuses it.
    if standing is None or standing.is_handed_off or is_known(cursor, request):
        return _accept(cursor, request)
    if (standing.tenant_id, standing.bot) != (request.tenant_id, request.bot):
        return _accept(cursor, request)
    policies = standing.policies
    if double_texting is not None:
        policies = policies.model_copy(update={"double_texting": double_texting})
    if policies.double_texting is DoubleTexting.COLLECT and request.idempotency_key is not None:
        # A turn that it were a part of would not be found by its key.
        return _accept(cursor, request, policies.quiet_s)
    turn = take(cursor, request, standing, policies).turn
    if turn is None:
        raise ConversationBusy(
            "An earlier message of the conversation is still being answered, and the policy is to "
            "reject another one. Send it again later, or with X-Turnmill-Double-Texting: enqueue."
        )
    return turn


def take(cursor: Cursor, request: TurnRequest, standing: Standing, policies: Policies) -> Taken:
    """Accept a message as the policy says. Its conversation is locked. Raises like `accept_many`.

    Without a policy on double texting the message is a turn of its own.
    """
    match policies.double_texting:
        case DoubleTexting.COLLECT:
            if turn := _collect(cursor, request, standing, policies.quiet_s):
                return Taken(turn, is_collected=True)
            return Taken(_accept(cursor, request, policies.quiet_s))
        case DoubleTexting.INTERRUPT:
            request = _of_one_user(cursor, request, standing)
            carried = end_open_turns(cursor, standing.conversation_id, keeps_text=True)
            return Taken(_accept(cursor, _carrying(request, carried)))
        case DoubleTexting.ROLLBACK:
            end_open_turns(cursor, standing.conversation_id, keeps_text=False)
        case DoubleTexting.REJECT:
            if cursor.execute(_HAS_OPEN, (standing.conversation_id,)).fetchone():
                return Taken(None)
    return Taken(_accept(cursor, request))


def _accept(cursor: Cursor, request: TurnRequest, delay_s: float = 0.0) -> AcceptedTurn:
    return accept_in(cursor, [request], delay_s=delay_s)[0]


def _of_one_user(cursor: Cursor, request: TurnRequest, standing: Standing) -> TurnRequest:
    """A turn that also answers what others asked uses nobody's memory."""
    others = (standing.conversation_id, request.user_key)
    if request.user_key is not None and cursor.execute(_HAS_OTHERS, others).fetchone():
        return request.model_copy(update={"user_key": None})
    return request


def _carrying(request: TurnRequest, carried: Sequence[Message]) -> TurnRequest:
    return request.model_copy(update={"carried": tuple(carried)}) if carried else request


def _collect(
    cursor: Cursor, request: TurnRequest, standing: Standing, quiet_s: float
) -> AcceptedTurn | None:
    """Add the message to the conversation's last turn, if its author waits for that one still.

    A call that asks for another reply, by its parameters or its time limit, is no part of it.
    """
    if not standing.last_seq:
        return None
    params = {
        "conversation": standing.conversation_id,
        "last": standing.last_seq,
        "author": request.author,
    }
    found = fetch(cursor, Unbegun, FIND_UNBEGUN, params)
    if not found or not _asks_alike(cursor, request, found[0]):
        return None
    turn = found[0]
    asked = as_stored(cursor, request).messages
    said = joined((*map(Message.model_validate, turn.input), *asked))
    if len(said) > MAX_MESSAGES or sum(len(each.text) for each in said) > MAX_MESSAGE_CHARS:
        return None
    shown = Jsonb([message.model_dump(mode="json") for message in said])
    cursor.execute(COLLECT, {"turn": turn.id, "input": shown, "quiet_s": quiet_s})
    return AcceptedTurn(
        turn_id=turn.id,
        conversation_id=standing.conversation_id,
        seq=turn.seq,
        state=TurnState(turn.state),
    )


def _asks_alike(cursor: Cursor, request: TurnRequest, turn: Unbegun) -> bool:
    if request.timeout_s is not None or turn.deadline_at is not None:
        return False
    return asked_params(cursor, request) == turn.params
