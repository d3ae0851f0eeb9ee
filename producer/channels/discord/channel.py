"""Discord's interactions: https://discord.com/developers/docs/interactions/receiving-and-responding

Discord waits 3 s for an answer and does not send an interaction again. The answer says what people
see at once: "thinking…" until the reply takes its place, or a word that only the sender sees. Every
interaction is answered for itself, so nothing thinks for ever.
"""

import json
import re
from collections.abc import Sequence

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from pydantic import ValidationError

from turnmill.producer.channels.base import (
    JSON,
    Answer,
    Parsed,
    Request,
    content_of,
    read_json,
    remote_files,
)
from turnmill.producer.channels.discord.payloads import (
    ONE_CONVERSATION,
    CommandType,
    Interaction,
    InteractionType,
    User,
)
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.buttons import read_button
from turnmill.schemas.channels.events import Address, Command, Event, UserMessage
from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.channels.sections.discord import DiscordSection
from turnmill.schemas.channels.signatures import is_in_window
from turnmill.schemas.errors import BadSignature

#: How long an interaction's token is good, seconds.
TOKEN_S = 15 * 60

#: Commands beside `/ask` (and `Ask` in the menu of a message): docs/channels/discord.md.
COMMANDS = {
    "stop": CommandName.STOP,
    "reset": CommandName.RESET,
    "human": CommandName.HAND_OFF,
    "resume": CommandName.RESUME,
}
ASK = "ask"

#: Kinds of answers.
_PONG, _MESSAGE, _THINKING, _NOTHING = 1, 4, 5, 6
#: Only the sender sees it.
_EPHEMERAL = 1 << 6

_WORDS = {
    Kind.COLLECTED: "I will answer this together with your last message.",
    Kind.DUPLICATE: "I have this already.",
    Kind.REJECTED: "Not now, please.",
    Kind.UNREADABLE: "I cannot read this.",
    Kind.HANDED_OFF: "A person will read it.",
    Kind.ANSWERED: "Passed on.",
    Kind.RATED: "Thank you.",
    Kind.IGNORED: "There is nothing to do.",
}


class DiscordChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: DiscordSection) -> None:
        self._name = name
        self._application_id = section.application_id
        #: The bot's own, where a text begins with it.
        self._mention = re.compile(rf"^\s*(?:<@!?{section.application_id}>[\s,:]*)+")
        self._key = VerifyKey(bytes.fromhex(section.public_key))

    def verify(self, request: Request) -> None:
        """https://discord.com/developers/docs/interactions/overview#setting-up-an-endpoint

        Discord tries now and then whether a wrong signature is refused.
        """
        timestamp = request.headers.get("x-signature-timestamp", "")
        if not is_in_window(timestamp, request.arrived_at):
            raise BadSignature("The timestamp is missing, or more than 5 minutes off.")
        try:
            signature = bytes.fromhex(request.headers.get("x-signature-ed25519", ""))
            self._key.verify(timestamp.encode() + request.body, signature)
        except (BadSignatureError, ValueError):
            raise BadSignature(
                "The signature is missing or wrong. Compare the public key."
            ) from None

    def parse(self, request: Request) -> Parsed:
        payload = read_json(request.body)
        try:
            interaction = Interaction.model_validate(payload)
            if interaction.type == InteractionType.PING:
                return Parsed(ignored="ping", answer=_answer(_PONG))
            found = self._read(interaction, request.arrived_at)
        except ValidationError:
            return Parsed(answer=_say(_WORDS[Kind.IGNORED]))
        if isinstance(found, str):
            return Parsed(ignored=found, answer=_say(_WORDS[Kind.IGNORED]))
        is_button = interaction.type == InteractionType.COMPONENT
        return Parsed((found,), answer=_answer(_NOTHING) if is_button else _answer(_THINKING))

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        """What thinks is replaced by the reply, so nothing else may.

        What arrives twice may have been collected into an earlier turn, whose reply replaces
        another interaction's answer: it does not think.
        """
        for each in received:
            if parsed.events[0].kind == "message" and each.kind is Kind.ACCEPTED:
                return _answer(_THINKING)
            if parsed.answer == _answer(_NOTHING) and each.kind is not Kind.RATED:
                # The notice is all there is to say.
                return parsed.answer
            return _say(_WORDS.get(each.kind, "OK."))
        return parsed.answer

    def _read(self, interaction: Interaction, arrived_at: float) -> Event | str:
        """Read an interaction; a word says why it is no event. Raises `ValidationError`."""
        sender = interaction.sender
        if sender is None or not interaction.channel_id:
            return "unknown"
        if sender.id == self._application_id:
            return "own"
        if sender.bot:
            return "bot"
        match interaction.type:
            case InteractionType.COMMAND:
                return self._command(interaction, sender, arrived_at)
            case InteractionType.COMPONENT:
                return self._button(interaction, sender, arrived_at)
        return "unknown"

    def _command(self, interaction: Interaction, sender: User, arrived_at: float) -> Event | str:
        data = interaction.data
        address = self._address(interaction, sender, arrived_at)
        if (name := COMMANDS.get(data.name)) is not None and data.type == CommandType.WRITTEN:
            return Command(event_id=interaction.id, address=address, author=sender.id, name=name)
        if data.name.lower() != ASK:
            return "unknown"
        text, attached = data.text, tuple(data.resolved.attachments.values())
        if data.type == CommandType.MESSAGE:
            message = data.resolved.messages.get(data.target_id)
            if message is None:
                return "unknown"
            text, attached = self._mention.sub("", message.content), message.attachments
        return UserMessage(
            event_id=interaction.id,
            address=address,
            author=sender.id,
            content=content_of(
                text.strip(), [(each.filename, each.content_type) for each in attached]
            ),
            files=remote_files(
                (each.content_type or "", each.url, each.filename or "") for each in attached
            ),
            is_awaited=True,
        )

    def _button(self, interaction: Interaction, sender: User, arrived_at: float) -> Event | str:
        """A button under one of our messages: of the conversation of who asked there."""
        message = interaction.message
        asked = message and message.interaction_metadata and message.interaction_metadata.user
        event = read_button(
            interaction.data.custom_id,
            event_id=interaction.id,
            address=self._address(interaction, asked or sender, arrived_at),
            author=sender.id,
        )
        return event or "action"

    def _address(self, interaction: Interaction, user: User, arrived_at: float) -> Address:
        """A direct chat or a thread is one conversation; elsewhere each person has one."""
        channel = interaction.channel_id
        is_one = interaction.channel.type in ONE_CONVERSATION
        target = {
            "channel": channel,
            "token": interaction.token,
            "expires_at": str(int(arrived_at) + TOKEN_S),
        }
        thread = channel if is_one else f"{channel}/{user.id}"
        return Address(channel=self._name, thread=thread, target=target)


def _answer(kind: int, **data: object) -> Answer:
    return Answer(json.dumps({"type": kind, **({"data": data} if data else {})}).encode(), JSON)


def _say(text: str) -> Answer:
    """Say something to the sender alone."""
    return _answer(_MESSAGE, content=text, flags=_EPHEMERAL)
