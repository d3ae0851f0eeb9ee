"""Chatwoot's webhook of an agent bot: https://www.chatwoot.com/docs/product/others/agent-bots/

Chatwoot waits 5 seconds for the answer. A failure (of 500 and 429 the third) opens a conversation
that is pending, so that people answer it.
"""

from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from turnmill.producer.channels.base import JSON, Answer, Parsed, Request, content_of, read_json
from turnmill.producer.channels.chatwoot.payloads import (
    Attachment,
    Changed,
    Conversation,
    Message,
)
from turnmill.producer.converse import Received
from turnmill.schemas.channels.events import (
    Address,
    Answering,
    Change,
    Event,
    Side,
    UserMessage,
)
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection
from turnmill.schemas.channels.signatures import are_equal, is_in_window, sign_chatwoot
from turnmill.schemas.errors import BadSignature

_SIDES = {"pending": Side.BOT, "resolved": Side.NOBODY}

#: Events that an agent bot gets too, and that say nothing new.
_IGNORED = {"message_updated": "edit", "webwidget_triggered": "opened"}


class ChatwootChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: ChatwootSection) -> None:
        self._name = name
        self._account_id = section.account_id
        secret, token = section.webhook_secret, section.url_token
        self._secret = None if secret is None else secret.read()
        self._token = None if token is None else token.read().get_secret_value()

    def verify(self, request: Request) -> None:
        """Check what the section has secrets for: the signature, the token in the address, or
        both."""
        given = request.query.get("token", "")
        if self._token is not None and not are_equal(given, self._token):
            raise BadSignature("The address has no ?token=, or another one than url_token.")
        if self._secret is None:
            return
        timestamp = request.headers.get("x-chatwoot-timestamp", "")
        if not is_in_window(timestamp, request.arrived_at):
            raise BadSignature(
                "The timestamp is missing, or more than 5 minutes off. Chatwoot signs for agent "
                "bots from 4.13 on; before it, use url_token."
            )
        signature = request.headers.get("x-chatwoot-signature", "")
        if not are_equal(signature, sign_chatwoot(self._secret, timestamp, request.body)):
            raise BadSignature("The signature is missing or wrong. Compare webhook_secret.")

    def parse(self, request: Request) -> Parsed:
        payload = read_json(request.body)
        try:
            found = self._read(payload)
        except ValidationError:
            return Parsed()
        return Parsed(ignored=found) if isinstance(found, str) else Parsed((found,))

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer

    def _read(self, payload: dict[str, object]) -> Event | str:
        """Read an event. Raises pydantic's `ValidationError`."""
        match payload.get("event"):
            case "message_created":
                return self._message(Message.model_validate(payload))
            case "conversation_opened" | "conversation_resolved":
                return self._change(Changed.model_validate(payload))
            case str() as name:
                return _IGNORED.get(name, "unknown")
        return "unknown"

    def _message(self, message: Message) -> Event | str:
        if (why := self._ignored(message)) is not None:
            return why
        assert message.sender is not None
        is_answer = message.message_type == "outgoing"
        return UserMessage(
            event_id=f"message:{message.id}",
            address=self._address(message.conversation),
            author=f"{'user' if is_answer else 'contact'}:{message.sender.id}",
            content=content_of((message.content or "").strip(), map(_file, message.attachments)),
            is_answer=is_answer,
            begins=not is_answer,
            answering=_answering(message.conversation),
        )

    def _ignored(self, message: Message) -> str | None:
        sender = message.sender
        if message.account.id != self._account_id:
            return "account"
        if message.private:
            return "note"
        if sender is not None and sender.type == "agent_bot":
            return "own"
        is_team = sender is not None and sender.type == "user"
        if sender is None or {"incoming": is_team, "outgoing": not is_team}.get(
            message.message_type, True
        ):
            # Campaigns, automations, templates, and Chatwoot's own assistant.
            return "bot"
        return None

    def _change(self, changed: Changed) -> Event:
        return Change(
            event_id=f"{changed.event}:{changed.id}:{changed.as_of!r}",
            address=self._address(changed),
            author="chatwoot",
            answering=_answering(changed),
        )

    def _address(self, conversation: Conversation) -> Address:
        number = str(conversation.id)
        target = {"conversation": number, "inbox": conversation.channel}
        return Address(channel=self._name, thread=number, target=target)


def _answering(conversation: Conversation) -> Answering:
    by = _SIDES.get(conversation.status, Side.PEOPLE)
    return Answering(by=by, as_of=conversation.as_of)


def _file(attachment: Attachment) -> tuple[str | None, str | None]:
    name = unquote(urlsplit(attachment.data_url).path.rpartition("/")[2])
    return name or None, attachment.file_type or None
