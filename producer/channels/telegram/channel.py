"""Telegram's webhook: https://core.telegram.org/bots/api#setwebhook

The answer to an update may call one method of the Bot API
(https://core.telegram.org/bots/api#making-requests-when-getting-updates). So a pressed button is
answered, "typing" is shown and `/help` explains itself with nothing to wait for.
"""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from turnmill.producer.channels.base import JSON, Answer, Parsed, Request, read_json
from turnmill.producer.channels.telegram.payloads import Update
from turnmill.producer.channels.telegram.updates import Reader
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.channels.signatures import are_equal
from turnmill.schemas.errors import BadSignature, SettingsError

HELP = (
    "Write to me and I will answer. In groups mention me, or reply to one of my messages.\n"
    "/stop ends my current reply.\n/reset starts a new conversation.\n/human asks for a person."
)


class TelegramChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: TelegramSection) -> None:
        self._secret = section.secret_token.read().get_secret_value()
        self._reader = Reader(name, bot_id_of(section), section.username)

    def verify(self, request: Request) -> None:
        """Compare the secret that `setWebhook` gave to Telegram. Nothing signs body or time: an
        update that is sent again is known by its `update_id`."""
        given = request.headers.get("x-telegram-bot-api-secret-token", "")
        if not are_equal(given, self._secret):
            raise BadSignature(
                "The secret token is missing or wrong. Register it: "
                "turnmill channels check NAME --url URL --register"
            )

    def parse(self, request: Request) -> Parsed:
        payload = read_json(request.body)
        try:
            update = Update.model_validate(payload)
        except ValidationError:
            return Parsed()
        found = self._reader.read(update)
        answer = _answer(update, found if isinstance(found, str) else "")
        if isinstance(found, str):
            return Parsed(ignored=found, answer=answer)
        return Parsed((found,), answer=answer)

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        is_waiting = any(each.kind in (Kind.ACCEPTED, Kind.COLLECTED) for each in received)
        is_button = not parsed.events or parsed.events[0].kind != "message"
        return parsed.answer if is_waiting or is_button else Answer()


def bot_id_of(section: TelegramSection) -> int:
    """The bot's id, which stands before the colon of its token. Raises `SettingsError`."""
    number, _, key = section.bot_token.read().get_secret_value().partition(":")
    if not number.isdecimal() or not key:
        raise SettingsError(
            "The bot token is not of the form 123456789:AA…. Copy it again from @BotFather."
        )
    return int(number)


def _answer(update: Update, ignored: str) -> Answer:
    """The call that is made by the answer itself."""
    if (query := update.callback_query) is not None:
        # The client shows a spinner on the button until then.
        return _call("answerCallbackQuery", callback_query_id=query.id)
    message = update.message
    if message is None or ignored not in ("", "help"):
        return Answer()
    place: dict[str, object] = {"chat_id": message.chat.id}
    if message.topic is not None:
        place["message_thread_id"] = message.topic
    if ignored == "help":
        return _call("sendMessage", **place, text=HELP)
    return _call("sendChatAction", **place, action="typing")


def _call(method: str, **fields: object) -> Answer:
    return Answer(json.dumps({"method": method, **fields}).encode(), JSON)
