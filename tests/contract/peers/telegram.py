"""Telegram, for the contract suite."""

import json
from typing import Any, ClassVar

from telegram import Update

from turnmill.infra.mocks.telegram import updates as telegram
from turnmill.infra.mocks.telegram.updates import Messenger

from .base import Sent


class TelegramPeer:
    section = """
        bot_token = { env = "CONTRACT_TOKEN" }
        secret_token = { env = "CONTRACT_SECRET" }
        username = "acme_bot"
    """
    secret = "a-made-up_SECRET-0123456789"  # noqa: S105
    variables: ClassVar = {"CONTRACT_SECRET": secret, "CONTRACT_TOKEN": "123456789:AAmade-up"}
    max_body_bytes = 1024 * 1024
    escapes = False
    signs: frozenset[str] = frozenset()
    methods = "POST"
    is_json = True

    def __init__(self) -> None:
        self._messenger = Messenger()

    def message(self, text: str, event_id: str | None = None) -> Any:
        number = int(event_id.removeprefix("Ev")) if event_id else None
        return self._messenger.update(number, message=self._messenger.message(text))

    def attachment(self) -> Any:
        return self._messenger.update(message=self._messenger.photo())

    def own(self) -> Any:
        return self._messenger.update(message=self._messenger.by_the_bot())

    def unknown(self) -> Any:
        return self._messenger.update(my_chat_member={"chat": {"id": 1}})

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = telegram.sign(secret or self.secret, body)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        """The library has no verifier apart from its server; it decodes what we make up."""
        update = Update.de_json(json.loads(sent.body), None)
        given = sent.headers["X-Telegram-Bot-Api-Secret-Token"]
        return update.effective_message is not None and given == self.secret
