"""Converse: what happens on a platform becomes part of a conversation, once.

Each event is one transaction: its id is taken (a platform sends an event until it is sure, and
perhaps to another replica), its thread is locked and leads to the conversation, and what becomes
of it is written together with the delivery that will bring the reply back.
"""

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.cancel import end_open_turns
from turnmill.producer.conversations import Standing, begin, lock_standing, say
from turnmill.producer.handoff import ASKED_BY_USER, TAKEN_OVER, note, resume_in
from turnmill.producer.media.attached import attach
from turnmill.producer.memory.words import answer_about_memory
from turnmill.producer.ratings import rate_in
from turnmill.producer.texting import take
from turnmill.schemas.channels.events import (
    Answering,
    Change,
    Command,
    Event,
    Rating,
    Side,
    UserMessage,
)
from turnmill.schemas.channels.memory import user_key
from turnmill.schemas.channels.policies import CHANNEL_POLICIES, CommandName, Policies
from turnmill.schemas.content import text_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, new_id, parse_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.store import hand_off as store
from turnmill.schemas.store.channels.deliveries import AWAITED, INSERT_PENDING, advance_deliveries
from turnmill.schemas.store.channels.threads import (
    FIND_DELIVERED,
    FIND_EVENT,
    FIND_NAMED_THREAD,
    FIND_THREAD,
    LOCK_THREAD,
    NOTE_EVENT,
    RENEW_THREAD,
    SET_AUTHOR,
    TAKE_EVENT,
    TAKE_THREAD,
    FoundEvent,
    NamedThread,
    TakenThread,
    Target,
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
    REMEMBERED = "remembered"  # it was about what is remembered of the user
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
            found = fetch(cursor, FoundEvent, FIND_EVENT, (channel, event.event_id))
            return Received(Kind.DUPLICATE, *(found[0] if found else ()))
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
    if (past := _past_target(cursor, event)) is None and not event.begins:
        return Received(Kind.IGNORED)
    if isinstance(event, Command):
        event = _placed(cursor, tenant_id, event)
    has_changed = False
    if event.answering is not None:
        known, has_changed = event.answering.since(Answering.of(past or {}))
        target = event.address.target | known.stored
        address = event.address.model_copy(update={"target": target})
        event = event.model_copy(update={"address": address})
    thread = _take_thread(cursor, tenant_id, bot, defaults, event)
    thread, kind = _follow(cursor, thread, event) if has_changed else (thread, Kind.IGNORED)
    match event:
        case Change():
            return Received(kind, thread.standing.conversation_id)
        case UserMessage(is_answer=True) if not thread.standing.is_handed_off:
            return _take_over(cursor, thread, event)
        case UserMessage() if thread.standing.is_handed_off:
            return _pass_on(cursor, thread, event)
        case UserMessage(files=files) if files:
            event = attach(cursor, thread.standing.tenant_id, thread.standing.bot, event)
    match event:
        case UserMessage(content=""):
            return _ask_for_text(cursor, thread)
        case UserMessage():
            command = thread.policies.command_in(text_of(event.content))
            if command is not None:
                return _obey(cursor, thread, event, command)
            if said := answer_about_memory(cursor, thread.standing, thread.policies, event):
                say(cursor, thread.standing.conversation_id, said)
                return Received(Kind.REMEMBERED, thread.standing.conversation_id)
            return _hear(cursor, thread, event)
        case Command():
            return _obey(cursor, thread, event, event.name)


def _past_target(cursor: Cursor, event: Event) -> dict[str, str] | None:
    """The target of the thread's last event, where it matters; None: there is no such thread."""
    if event.begins and event.answering is None:
        return {}
    thread = (event.address.channel, event.address.thread)
    found = fetch(cursor, Target, FIND_THREAD, thread)
    return found[0].target if found else None


def _placed(cursor: Cursor, tenant_id: UUID, event: Command) -> Command:
    """Move a command to the thread of the turn or the conversation that it names.

    Slack's answers to slash commands stand in no thread: the press of a button does not tell whose
    conversation it is. Who presses it there cannot write in it, and acts for the one who can.
    """
    address, turn_id = event.address, _read_id(Prefix.TURN, event.turn_id)
    conversation_id = _read_id(Prefix.CONVERSATION, event.conversation_id)
    if turn_id is None and conversation_id is None:
        return event
    named = {"turn": turn_id, "conversation": conversation_id}
    asked = {"channel": address.channel, "tenant": tenant_id, **named}
    rows = fetch(cursor, NamedThread, FIND_NAMED_THREAD, asked)
    if not rows or rows[0].thread == address.thread:
        return event
    found = rows[0]
    changes = {"thread": found.thread, "target": found.target | address.target}
    moved = address.model_copy(update=changes)
    return event.model_copy(update={"address": moved, "author": found.author})


def _read_id(prefix: Prefix, shown: str | None) -> UUID | None:
    """Read what a button names; None: it names none, or none of ours."""
    try:
        return None if shown is None else parse_id(prefix, shown)
    except InvalidInput:
        return None


def _take_thread(
    cursor: Cursor, tenant_id: UUID, bot: str, defaults: Policies, event: Event
) -> _Thread:
    """Lock the thread and its conversation; begin one where it has none that fits.

    One that was another tenant's or bot's does not fit: the channel was configured anew.
    """
    new = new_id()
    params = _thread_params(tenant_id, event, new)
    (found,) = fetch(cursor, TakenThread, TAKE_THREAD, params)
    author = found.author
    is_new = found.conversation_id == new
    standing = None if is_new else lock_standing(cursor, found.conversation_id)
    if standing is None:
        standing = begin(cursor, tenant_id, bot, found.conversation_id)
    elif (standing.tenant_id, standing.bot) != (tenant_id, bot):
        standing, author = _renew(cursor, tenant_id, bot, event), event.author
    policies = standing.policies.over(defaults.over(CHANNEL_POLICIES))
    return _Thread(standing, author, policies)


def _renew(cursor: Cursor, tenant_id: UUID, bot: str, event: Event) -> Standing:
    """Give the thread, which is locked, a fresh conversation."""
    new = new_id()
    cursor.execute(RENEW_THREAD, _thread_params(tenant_id, event, new))
    return begin(cursor, tenant_id, bot, new)


def _thread_params(tenant_id: UUID, event: Event, new: UUID) -> dict[str, object]:
    return {
        "channel": event.address.channel,
        "thread": event.address.thread,
        "tenant": tenant_id,
        "new": new,
        "author": event.author,
        "target": Jsonb(event.address.target),
    }


def _follow(cursor: Cursor, thread: _Thread, event: Event) -> tuple[_Thread, Kind]:
    """Do here what people did on the platform. They see it there, and its user is not told."""
    standing = thread.standing
    match event.answering and event.answering.by:
        case Side.PEOPLE if not standing.is_handed_off:
            return _hand_off_quietly(cursor, thread), Kind.HANDED_OFF
        case Side.BOT if standing.is_handed_off:
            cursor.execute(store.RESUME, (standing.conversation_id,))
            resumed = replace(standing, is_handed_off=False)
            return replace(thread, standing=resumed), Kind.RESUMED
        case Side.NOBODY if standing.last_seq or standing.is_handed_off:
            return replace(thread, standing=_start_afresh(cursor, thread, event)), Kind.RESET
    return thread, Kind.IGNORED


def _hand_off_quietly(cursor: Cursor, thread: _Thread) -> _Thread:
    store.hand_off(cursor, [thread.standing.conversation_id], TAKEN_OVER, says="")
    return replace(thread, standing=replace(thread.standing, is_handed_off=True))


def _take_over(cursor: Cursor, thread: _Thread, event: UserMessage) -> Received:
    """A person answers what the bot was to answer, and keeps the conversation."""
    if event.answering is not None and event.answering.by is Side.NOBODY:
        return Received(Kind.IGNORED, thread.standing.conversation_id)
    return _pass_on(cursor, _hand_off_quietly(cursor, thread), event)


def _hear(cursor: Cursor, thread: _Thread, event: UserMessage) -> Received:
    """Take a message to the bot."""
    standing = thread.standing
    request = TurnRequest(
        tenant_id=standing.tenant_id,
        bot=standing.bot,
        messages=(Message(role=Role.USER, content=event.content),),
        conversation_id=standing.conversation_id,
        author=event.author,
        user_key=user_key(event.address.channel, event.author),
    )
    taken = take(cursor, request, standing, thread.policies)
    if taken.turn is None:
        say(cursor, standing.conversation_id, thread.policies.texts.rejected)
        return Received(Kind.REJECTED, standing.conversation_id)
    if event.is_cut:
        say(cursor, standing.conversation_id, thread.policies.texts.shortened)
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
    is_user = event.author == thread.author if event.is_answer is None else not event.is_answer
    role = Role.USER if is_user else Role.ASSISTANT
    message = Message(role=role, content=event.content or "[attachment]")
    user = user_key(event.address.channel, event.author) if is_user else None
    turn = note(cursor, thread.standing, message, event.author, user)
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
        return _read_id(Prefix.TURN, event.turn_id)
    found = (event.address.channel, event.message_id)
    rows = fetch(cursor, Id, FIND_DELIVERED, found)
    return rows[0].id if rows else None


def _reset(cursor: Cursor, thread: _Thread, event: UserMessage | Command) -> Received:
    fresh = _start_afresh(cursor, thread, event)
    say(cursor, fresh.conversation_id, thread.policies.texts.reset)
    return Received(Kind.RESET, fresh.conversation_id)


def _start_afresh(cursor: Cursor, thread: _Thread, event: Event) -> Standing:
    old = thread.standing
    end_open_turns(cursor, old.conversation_id, keeps_text=True)
    # What nothing was sent of yet would come after the notice, which is another conversation's.
    cursor.execute(store.DROP_REPLIES, {"conversations": [old.conversation_id], "all": True})
    advance_deliveries(cursor, [old.conversation_id])
    cursor.execute(store.RESUME, (old.conversation_id,))
    return _renew(cursor, old.tenant_id, old.bot, event)


def _owe_reply(cursor: Cursor, tenant_id: UUID, event: UserMessage, turn: AcceptedTurn) -> None:
    row = {
        "id": new_id(),
        "tenant_id": tenant_id,
        "conversation_id": turn.conversation_id,
        "turn_id": turn.turn_id,
        "channel": event.address.channel,
        "target": event.address.target,
        "progress": AWAITED if event.is_awaited else {},
    }
    cursor.execute(INSERT_PENDING, (json.dumps([row], default=str),))
