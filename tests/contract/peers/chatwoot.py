"""Chatwoot, for the contract suite."""

import hashlib
import hmac
import json
from typing import Any, ClassVar

from turnmill.infra.mocks import chatwoot

from .base import Sent


class ChatwootPeer:
    section = """
        account_id = 1
        bot_token = { env = "CONTRACT_TOKEN" }
        webhook_secret = { env = "CONTRACT_SECRET" }
        url_token = { env = "CONTRACT_URL" }
    """
    secret = "made-up-webhook-secret"  # noqa: S105
    variables: ClassVar = {
        "CONTRACT_SECRET": secret,
        "CONTRACT_TOKEN": "made-up-bot-token",
        "CONTRACT_URL": "made-up-url-token",
    }
    max_body_bytes = 1024 * 1024
    escapes = False
    signs = frozenset({"body", "time"})
    methods = "POST"
    is_json = True

    def message(self, text: str, event_id: str | None = None) -> Any:
        fields = {} if event_id is None else {"id": int(event_id.removeprefix("Ev"))}
        return chatwoot.message(text, **fields)

    def attachment(self) -> Any:
        file = {"file_type": "image", "data_url": "https://chatwoot.example/rails/a/photo.png"}
        return chatwoot.message(None, attachments=[file])

    def own(self) -> Any:
        return chatwoot.by_agent("I answered.", sender=chatwoot.BOT)

    def unknown(self) -> Any:
        return {"event": "conversation_typing_on", "conversation": chatwoot.conversation()}

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = chatwoot.sign(secret or self.secret, body, at=at)
        return Sent(signed.headers, signed.body, {"token": self.variables["CONTRACT_URL"]})

    def is_valid(self, sent: Sent) -> bool:
        """Chatwoot has no library that verifies; this is what `lib/webhooks/trigger.rb` signs."""
        timestamp = sent.headers["X-Chatwoot-Timestamp"]
        message = f"{timestamp}.{sent.body.decode()}".encode()
        expected = "sha256=" + hmac.new(self.secret.encode(), message, hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected, sent.headers["X-Chatwoot-Signature"])
