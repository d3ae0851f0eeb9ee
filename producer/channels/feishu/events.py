"""What Feishu sends, in our words. A word instead of an event says why there is none."""

from turnmill.producer.channels.feishu.payloads import (
    Callback,
    CardAction,
    Mention,
    Message,
    MessageReceived,
)
from turnmill.producer.channels.feishu.texts import files_of, text_of
from turnmill.schemas.channels.buttons import read_button
from turnmill.schemas.channels.events import Address, Event, UserMessage


def read_event(channel: str, bot: str | None, callback: Callback) -> Event | str:
    """Read a message, or a pressed button. Raises pydantic's `ValidationError`.

    `bot` is the bot's own open_id, where it is known.
    """
    match callback.header.event_type:
        case "im.message.receive_v1":
            received = MessageReceived.model_validate(callback.event)
            return _message(channel, bot, received)
        case "card.action.trigger":
            action = CardAction.model_validate(callback.event)
            return _action(channel, callback.header.event_id, action)
        case _:
            return "unknown"


def _message(channel: str, bot: str | None, received: MessageReceived) -> Event | str:
    message, sender = received.message, received.sender
    author = sender.sender_id.open_id
    if sender.sender_type != "user":
        return "own" if bot is not None and author == bot else "bot"
    is_direct = message.chat_type == "p2p"
    mentions = tuple(each for each in message.mentions if _is_of(each, bot))
    thread = _thread(message, is_direct=is_direct)
    target = {"message": message.message_id, "chat": message.chat_id, "thread": thread}
    if not is_direct or message.thread_id:
        target["in_thread"] = "yes"
    return UserMessage(
        # Feishu's page on the event says to tell repetitions by this, not by the event's id.
        event_id=message.message_id,
        address=Address(channel=channel, thread=thread, target=target),
        author=author or "",
        content=text_of(message, mentions),
        files=files_of(message),
        begins=is_direct or bool(mentions),
    )


def _is_of(mention: Mention, bot: str | None) -> bool:
    """Whether the bot was mentioned.

    An app without the scope `im:message.group_msg` receives of groups only what mentions it, so
    any mention counts where neither the bot's id nor the kind of the mention is known.
    """
    if bot is not None:
        return mention.id.open_id == bot
    return mention.mentioned_type in ("bot", None) and mention.key != "@_all"


def _thread(message: Message, *, is_direct: bool) -> str:
    """A direct chat is one conversation, but for its topics; in a group each first message is."""
    if is_direct and not message.thread_id:
        return message.chat_id
    return f"{message.chat_id}/{message.root_id or message.message_id}"


def _action(channel: str, event_id: str, action: CardAction) -> Event | str:
    """A button of one of our cards, whose value names its thread."""
    value, chat = action.action.value, action.context.open_chat_id
    thread = str(value.get("thread") or chat)
    target = {"message": action.context.open_message_id, "chat": chat, "thread": thread}
    if thread != chat:
        target["in_thread"] = "yes"
    return (
        read_button(
            str(value.get("turnmill", "")),
            event_id=event_id,
            address=Address(channel=channel, thread=thread, target=target),
            author=action.operator.open_id or "",
        )
        or "action"
    )
