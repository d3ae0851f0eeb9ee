"""Converse: what happens on a platform becomes part of a conversation, once.

Each event is one transaction: its id is taken (a platform sends an event until it is sure, and
perhaps to another replica), its thread is locked and leads to the conversation, and what becomes
of it is written together with the delivery that will bring the reply back.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.cancel import end_open_turns
from turnmill.producer.conversations import Standing, begin, lock_standing, say
from turnmill.producer.handoff import ASKED_BY_USER, note, resume_in
from turnmill.producer.ratings import rate_in
from turnmill.producer.texting import take
from turnmill.schemas.channels.events import Command, Event, Rating, UserMessage
from turnmill.schemas.channels.policies import CHANNEL_POLICIES, CommandName, Policies
from turnmill.schemas.content import text_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, new_id, parse_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.store import hand_off as store
from turnmill.schemas.store.channels.deliveries import INSERT_PENDING, advance_deliveries
from turnmill.schemas.store.channels.threads import (
    FIND_DELIVERED,
    FIND_EVENT,
    FIND_THREAD,
    FIND_TURNS_THREAD,
    LOCK_THREAD,
    NOTE_EVENT,
    RENEW_THREAD,
    SET_AUTHOR,
    TAKE_EVENT,
    TAKE_THREAD,
)
from turnmill.schemas.turns import AcceptedTurn, Message, Role, TurnRequest


class Kind(StrEnum):
    """What became of an event."""

    ACCEPTED = "accepted"  # a turn of its own
    COLLECTED = "collected"  # a part of a turn that has not begun
    DUPLICATE = "duplicate"  # it was received before
    REJECTED = "rejected"  # an earlier turn is open, and the policy wants one at a time
    HANDED_OFF = "handed_off"  # a person answers it, or was asked for
    ANSWERED = "answered"  # it is a person's answer
    UNREADABLE = "unreadable"  # nothing in it can be read, as of a photo alone
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
    """A platform's thread with its conversation, both locked."""

    standing: Standing
    #: Who began it, or asked for a person in it.
    author: str
    policies: Policies


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
    neither the conversation nor the bot has its own; `CHANNEL_POLICIES` complete them.

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
        received = _take(cursor, tenant_id, bot, defaults, event)
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


def _take(cursor: Cursor, tenant_id: UUID, bot: str, defaults: Policies, event: Event) -> Received:
    if isinstance(event, Rating):
        return _rate(cursor, tenant_id, event)
    # What follows a mention, and is no mention, must find the thread that the mention is to begin.
    cursor.execute(LOCK_THREAD, (event.address.channel, event.address.thread))
    if isinstance(event, UserMessage) and not event.begins and not _is_known(cursor, event):
        return Received(Kind.IGNORED)
    if isinstance(event, Command):
        event = _placed(cursor, tenant_id, event)
    thread = _take_thread(cursor, tenant_id, bot, defaults, event)
    match event:
        case UserMessage() if thread.standing.is_handed_off:
            return _pass_on(cursor, thread, event)
        case UserMessage(content=""):
            return _ask_for_text(cursor, thread)
        case UserMessage():
            command = thread.policies.command_in(text_of(event.content))
            if command is not None:
                return _obey(cursor, thread, event, command)
            return _hear(cursor, thread, event)
        case Command():
            return _obey(cursor, thread, event, event.name)


def _is_known(cursor: Cursor, event: Event) -> bool:
    address = event.address
    return cursor.execute(FIND_THREAD, (address.channel, address.thread)).fetchone() is not None


def _placed(cursor: Cursor, tenant_id: UUID, event: Command) -> Command:
    """Move a command to the thread of the turn that it names.

    Slack's answers to slash commands stand in no thread: the press of a button does not tell whose
    conversation it is. Who presses it there cannot write in it, and acts for the one who can.
    """
    turn_id, address = _read_turn(event.turn_id), event.address
    if turn_id is None:
        return event
    found = cursor.execute(FIND_TURNS_THREAD, (turn_id, tenant_id, address.channel)).fetchone()
    if found is None or found.thread == address.thread:
        return event
    changes = {"thread": found.thread, "target": found.target | address.target}
    moved = address.model_copy(update=changes)
    return event.model_copy(update={"address": moved, "author": found.author})


def _read_turn(shown: str | None) -> UUID | None:
    """Read the turn that a button names; None: it names none, or none of ours."""
    try:
        return None if shown is None else parse_id(Prefix.TURN, shown)
    except InvalidInput:
        return None


def _take_thread(
    cursor: Cursor, tenant_id: UUID, bot: str, defaults: Policies, event: Event
) -> _Thread:
    """Lock the thread and its conversation; begin one where it has none that fits.

    One that was another tenant's or bot's does not fit: the channel was configured anew.
    """
    params = _thread_params(tenant_id, event)
    found = cursor.execute(TAKE_THREAD, params).fetchone()
    assert found is not None
    author = found.author
    is_new = found.conversation_id == params["new"]
    standing = None if is_new else lock_standing(cursor, found.conversation_id)
    if standing is None:
        standing = begin(cursor, tenant_id, bot, found.conversation_id)
    elif (standing.tenant_id, standing.bot) != (tenant_id, bot):
        standing, author = _renew(cursor, tenant_id, bot, event), event.author
    policies = standing.policies.over(defaults.over(CHANNEL_POLICIES))
    return _Thread(standing, author, policies)


def _renew(cursor: Cursor, tenant_id: UUID, bot: str, event: Event) -> Standing:
    """Give the thread, which is locked, a fresh conversation."""
    params = _thread_params(tenant_id, event)
    cursor.execute(RENEW_THREAD, params)
    return begin(cursor, tenant_id, bot, params["new"])


def _thread_params(tenant_id: UUID, event: Event) -> dict[str, Any]:
    return {
        "channel": event.address.channel,
        "thread": event.address.thread,
        "tenant": tenant_id,
        "new": new_id(),
        "author": event.author,
        "target": Jsonb(event.address.target),
    }


def _hear(cursor: Cursor, thread: _Thread, event: UserMessage) -> Received:
    """Take a message to the bot."""
    standing = thread.standing
    request = TurnRequest(
        tenant_id=standing.tenant_id,
        bot=standing.bot,
        messages=(Message(role=Role.USER, content=event.content),),
        conversation_id=standing.conversation_id,
        author=event.author,
    )
    taken = take(cursor, request, standing, thread.policies)
    if taken.turn is None:
        say(cursor, standing.conversation_id, thread.policies.texts.rejected)
        return Received(Kind.REJECTED, standing.conversation_id)
    if not taken.is_collected:
        _owe_reply(cursor, standing.tenant_id, event, taken.turn)
    kind = Kind.COLLECTED if taken.is_collected else Kind.ACCEPTED
    return Received(kind, standing.conversation_id, taken.turn.turn_id)


def _ask_for_text(cursor: Cursor, thread: _Thread) -> Received:
    """Say that nothing in a message can be read, unless a person reads it."""
    conversation_id = thread.standing.conversation_id
    if not thread.standing.is_handed_off:
        say(cursor, conversation_id, thread.policies.texts.unreadable)
    return Received(Kind.UNREADABLE, conversation_id)


def _pass_on(cursor: Cursor, thread: _Thread, event: UserMessage) -> Received:
    """Keep what is said while a person answers: by the user, or by somebody else to the user."""
    is_user = event.author == thread.author
    role = Role.USER if is_user else Role.ASSISTANT
    message = Message(role=role, content=event.content or "[attachment]")
    turn = note(cursor, thread.standing, message, event.author)
    kind = Kind.HANDED_OFF if is_user else Kind.ANSWERED
    return Received(kind, turn.conversation_id, turn.turn_id)


def _obey(
    cursor: Cursor, thread: _Thread, event: UserMessage | Command, command: CommandName
) -> Received:
    conversation_id = thread.standing.conversation_id
    match command:
        case CommandName.STOP if thread.standing.is_handed_off:
            return Received(Kind.IGNORED, conversation_id)
        case CommandName.STOP:
            end_open_turns(cursor, conversation_id, keeps_text=True)
            say(cursor, conversation_id, thread.policies.texts.stopped)
            return Received(Kind.STOPPED, conversation_id)
        case CommandName.RESET:
            return _reset(cursor, thread, event)
        case CommandName.HAND_OFF:
            if not thread.standing.is_handed_off:
                # Who asks for a person is the user, though somebody else may have begun the thread.
                place = (event.address.channel, event.address.thread)
                cursor.execute(SET_AUTHOR, (event.author, *place))
            store.hand_off(cursor, [conversation_id], ASKED_BY_USER)
            return Received(Kind.HANDED_OFF, conversation_id)
        case CommandName.RESUME:
            resumed = resume_in(cursor, thread.standing, thread.policies)
            return Received(Kind.RESUMED if resumed else Kind.IGNORED, conversation_id)


def _rate(cursor: Cursor, tenant_id: UUID, event: Rating) -> Received:
    if (turn_id := _rated_turn(cursor, event)) is None:
        return Received(Kind.IGNORED)
    channel = event.address.channel
    conversation_id = rate_in(
        cursor, tenant_id, turn_id, channel, event.author, event.score, event.comment
    )
    if conversation_id is None:
        return Received(Kind.IGNORED)
    return Received(Kind.RATED, conversation_id, turn_id)


def _rated_turn(cursor: Cursor, event: Rating) -> UUID | None:
    """The turn that a button names, or whose reply was sent as the message that it stands at."""
    if event.turn_id is not None:
        return _read_turn(event.turn_id)
    found = (event.address.channel, event.message_id)
    row = cursor.execute(FIND_DELIVERED, found).fetchone()
    return None if row is None else row.turn_id


def _reset(cursor: Cursor, thread: _Thread, event: UserMessage | Command) -> Received:
    old = thread.standing
    end_open_turns(cursor, old.conversation_id, keeps_text=True)
    # What nothing was sent of yet would come after the notice, which is another conversation's.
    cursor.execute(store.DROP_REPLIES, {"conversations": [old.conversation_id], "all": True})
    advance_deliveries(cursor, [old.conversation_id])
    cursor.execute(store.RESUME, (old.conversation_id,))
    fresh = _renew(cursor, old.tenant_id, old.bot, event)
    say(cursor, fresh.conversation_id, thread.policies.texts.reset)
    return Received(Kind.RESET, fresh.conversation_id)


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
