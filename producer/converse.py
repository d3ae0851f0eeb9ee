"""Converse: what happens on a platform becomes part of a conversation, once.

Each event is one transaction: its id is taken (a platform sends an event until it is sure, and
perhaps to another replica), its thread is locked and leads to the conversation, and what becomes
of it is written together with the delivery that will bring the reply back.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.accept import accept_in
from turnmill.schemas.channels.events import Event, UserMessage
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.store.channels.deliveries import INSERT_PENDING
from turnmill.schemas.store.channels.threads import (
    FIND_EVENT,
    NOTE_EVENT,
    RENEW_THREAD,
    TAKE_EVENT,
    TAKE_THREAD,
)
from turnmill.schemas.turns import AcceptedTurn, Message, Role, TurnRequest

#: Whether the conversation is another tenant's or bot's: the channel was configured anew.
_IS_FOREIGN = """
SELECT c.tenant_id <> %s OR b.name <> %s AS is_foreign
FROM conversations c JOIN bots b ON b.id = c.bot_id WHERE c.id = %s
"""


class Kind(StrEnum):
    """What became of an event."""

    ACCEPTED = "accepted"  # a turn of its own
    COLLECTED = "collected"  # a part of a turn that has not begun
    DUPLICATE = "duplicate"  # it was received before
    REJECTED = "rejected"  # an earlier turn is open, and the policy wants one at a time
    HANDED_OFF = "handed_off"  # a person answers it, or was asked for
    ANSWERED = "answered"  # it is a person's answer
    STOPPED = "stopped"
    RESET = "reset"
    RESUMED = "resumed"
    RATED = "rated"
    IGNORED = "ignored"  # nothing here is concerned


@dataclass(frozen=True, slots=True)
class Received:
    kind: Kind
    conversation_id: UUID | None = None
    #: The turn that the event became, or a part of, or was about.
    turn_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class _Thread:
    conversation_id: UUID
    #: Who began it.
    author: str


def receive(
    database: Database,
    channel: str,
    tenant_id: UUID,
    bot: str,
    defaults: Policies,
    event: Event,
) -> Received:
    """Take an event of a platform, in one transaction.

    `channel` is its name in the configuration. `defaults` are the channel's policies, where
    neither the conversation nor the bot has its own.

    Raises:
        UnknownBot: the tenant has no bot of this name.
        InvalidInput: no live worker can do what the message asks for.
        DatabaseUnavailable: nothing was received, or it was and the platform will find out when
            it sends the event again.
    """
    with database.cursor() as cursor:
        if cursor.execute(TAKE_EVENT, (channel, event.event_id)).fetchone() is None:
            found = cursor.execute(FIND_EVENT, (channel, event.event_id)).fetchone()
            return Received(Kind.DUPLICATE, *(found or ()))
        received = _take(cursor, tenant_id, bot, event)
        cursor.execute(
            NOTE_EVENT,
            {
                "channel": channel,
                "event": event.event_id,
                "turn": received.turn_id,
                "conversation": received.conversation_id,
            },
        )
        return received


def _take(cursor: Cursor, tenant_id: UUID, bot: str, event: Event) -> Received:
    if not isinstance(event, UserMessage):
        return Received(Kind.IGNORED)
    thread = _take_thread(cursor, tenant_id, bot, event)
    request = TurnRequest(
        tenant_id=tenant_id,
        bot=bot,
        messages=(Message(role=Role.USER, content=event.content),),
        conversation_id=thread.conversation_id,
        author=event.author,
    )
    (turn,) = accept_in(cursor, [request])
    _owe_reply(cursor, tenant_id, event, turn)
    return Received(Kind.ACCEPTED, turn.conversation_id, turn.turn_id)


def _take_thread(cursor: Cursor, tenant_id: UUID, bot: str, event: Event) -> _Thread:
    """Lock the thread and find its conversation, a fresh one where it has none that fits."""
    address, fresh = event.address, new_id()
    params = {
        "channel": address.channel,
        "thread": address.thread,
        "tenant": tenant_id,
        "new": fresh,
        "author": event.author,
        "target": Jsonb(address.target),
    }
    found = cursor.execute(TAKE_THREAD, params).fetchone()
    assert found is not None
    owner = cursor.execute(_IS_FOREIGN, (tenant_id, bot, found.conversation_id)).fetchone()
    if owner is not None and owner.is_foreign:
        cursor.execute(RENEW_THREAD, params)
        return _Thread(fresh, event.author)
    return _Thread(found.conversation_id, found.author)


def _owe_reply(cursor: Cursor, tenant_id: UUID, event: Event, turn: AcceptedTurn) -> None:
    row = {
        "id": new_id(),
        "tenant_id": tenant_id,
        "conversation_id": turn.conversation_id,
        "turn_id": turn.turn_id,
        "channel": event.address.channel,
        "target": event.address.target,
        "expires_in_s": None,
    }
    cursor.execute(INSERT_PENDING, (json.dumps([row], default=str),))
