"""Double texting: what becomes of a message while an earlier turn of its conversation is open.

The one place for channels and the API, inside the transaction that accepts the message.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.types.json import Jsonb

from turnmill.producer.accept import accept_in
from turnmill.producer.cancel import end_open_turns
from turnmill.producer.conversations import Standing
from turnmill.schemas.channels.policies import DoubleTexting, Policies
from turnmill.schemas.content import MAX_MESSAGE_CHARS
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.store.collect import COLLECT, FIND_UNBEGUN
from turnmill.schemas.turns import MAX_MESSAGES, AcceptedTurn, Message, TurnRequest, joined

_HAS_OPEN = f"""
SELECT 1 FROM turns WHERE conversation_id = %s AND state IN ({OPEN}) LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a message."""

    #: None: it was rejected.
    turn: AcceptedTurn | None
    #: It is a part of a turn that was accepted before.
    is_collected: bool = False


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


def _carrying(request: TurnRequest, carried: Sequence[Message]) -> TurnRequest:
    return request.model_copy(update={"carried": tuple(carried)}) if carried else request


def _collect(
    cursor: Cursor, request: TurnRequest, standing: Standing, quiet_s: float
) -> AcceptedTurn | None:
    """Add the message to the conversation's last turn, if its author waits for that one still."""
    params = {
        "conversation": standing.conversation_id,
        "last": standing.last_seq,
        "author": request.author,
    }
    turn = cursor.execute(FIND_UNBEGUN, params).fetchone()
    if turn is None:
        return None
    said = joined((*map(Message.model_validate, turn.input), *request.messages))
    if len(said) > MAX_MESSAGES or sum(len(each.text) for each in said) > MAX_MESSAGE_CHARS:
        return None
    shown = Jsonb([message.model_dump(mode="json") for message in said])
    cursor.execute(COLLECT, {"turn": turn.id, "input": shown, "quiet_s": quiet_s})
    return AcceptedTurn(
        turn_id=turn.id,
        conversation_id=standing.conversation_id,
        seq=turn.seq,
        state=turn.state,
    )
