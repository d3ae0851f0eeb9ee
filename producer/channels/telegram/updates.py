"""What Telegram sends, in our words. A word instead of an event says why there is none."""

import re

from turnmill.producer.channels.base import content_of
from turnmill.producer.channels.telegram.payloads import CallbackQuery, Entity, Message, Update
from turnmill.schemas.channels.buttons import read_button
from turnmill.schemas.channels.events import Address, Command, Event, RemoteFile, UserMessage
from turnmill.schemas.channels.policies import CommandName

#: Commands that Telegram's clients offer: docs/channels/telegram.md tells BotFather about them.
COMMANDS = {
    "stop": CommandName.STOP,
    "reset": CommandName.RESET,
    "human": CommandName.HAND_OFF,
    "resume": CommandName.RESUME,
}
#: Answered at once, without the bot: Telegram's clients send `/start` when a chat is opened.
EXPLAINED = ("start", "help")

_COMMAND = re.compile(r"/([A-Za-z0-9_]{1,32})(?:@([A-Za-z0-9_]+))?(?:\s+(.*))?", re.DOTALL)


class Reader:
    """Reads the updates of one bot."""

    def __init__(self, channel: str, bot_id: int, username: str | None) -> None:
        self._channel = channel
        self._bot_id = bot_id
        self._username = (username or "").removeprefix("@").lower()

    def read(self, update: Update) -> Event | str:
        if update.callback_query is not None:
            return self._button(update.update_id, update.callback_query)
        if update.message is not None:
            return self._message(update.update_id, update.message)
        return "edit" if update.edited_message is not None else "unknown"

    def _message(self, update_id: int, message: Message) -> Event | str:
        sender = message.sender
        if sender is None:
            return "unknown"
        if sender.id == self._bot_id:
            return "own"
        if sender.is_bot:
            return "bot"
        text = message.text if message.text is not None else (message.caption or "")
        if message.text is None and not message.caption and not message.files:
            # Somebody joined, a topic was opened, a game was played.
            return "service"
        command = _COMMAND.fullmatch(text.strip())
        if command and command[2] and command[2].lower() != self._username:
            return "other_bot"
        if message.chat.type != "private" and not command and not self._is_for_bot(message, text):
            return "not_addressed"
        address = self._address(message, sender.id)
        event_id, author = str(update_id), str(sender.id)
        if command and (word := command[1].lower()) in EXPLAINED:
            return "help"
        if command and (name := COMMANDS.get(word)) is not None:
            return Command(event_id=event_id, address=address, author=author, name=name)
        content = content_of(self._without_mention(text), message.files)
        files = tuple(
            RemoteFile(kind=kind, ref=each.file_id, name=each.file_name or "")
            for kind, each in message.readable
        )
        return UserMessage(
            event_id=event_id, address=address, author=author, content=content, files=files
        )

    def _button(self, update_id: int, query: CallbackQuery) -> Event | str:
        if query.message is None:
            return "action"
        event = read_button(
            query.data,
            event_id=str(update_id),
            address=self._address(query.message, query.sender.id),
            author=str(query.sender.id),
        )
        return event or "action"

    def _address(self, message: Message, user: int) -> Address:
        """A chat is one conversation, and so is each topic of a chat that has topics."""
        chat, topic = str(message.chat.id), message.topic
        target = {"chat": chat, "type": message.chat.type, "user": str(user)}
        target["message"] = str(message.message_id)
        if topic is not None:
            target["topic"] = str(topic)
        thread = chat if topic is None else f"{chat}/{topic}"
        return Address(channel=self._channel, thread=thread, target=target)

    def _is_for_bot(self, message: Message, text: str) -> bool:
        """Whether a message of a group mentions the bot, or answers it."""
        answered = message.reply_to_message
        if answered is not None and answered.sender and answered.sender.id == self._bot_id:
            return True
        entities = message.entities or message.caption_entities
        return any(self._is_mention(entity, text) for entity in entities)

    def _is_mention(self, entity: Entity, text: str) -> bool:
        if entity.type == "text_mention":
            return entity.user is not None and entity.user.id == self._bot_id
        if entity.type != "mention" or not self._username:
            return False
        return _part(text, entity).lower() == f"@{self._username}"

    def _without_mention(self, text: str) -> str:
        """The text, without the bot's own name where it begins with that."""
        if not self._username:
            return text.strip()
        mention = rf"^\s*(?:@{re.escape(self._username)}\b[\s,:]*)+"
        return re.sub(mention, "", text, flags=re.IGNORECASE).strip()


def _part(text: str, entity: Entity) -> str:
    units = text.encode("utf-16-le", "surrogatepass")
    part = units[2 * entity.offset : 2 * (entity.offset + entity.length)]
    return part.decode("utf-16-le", "replace")
