"""Signed webhooks, for the contract suite."""

import json
from typing import Any, ClassVar

from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from turnmill.infra.mocks import webhook
from turnmill.schemas.channels.signatures import webhook_key

from .base import Sent


class WebhookPeer:
    section = """
        secret = { env = "CONTRACT_SECRET" }
        url = "http://127.0.0.1:9/replies"
    """
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the specification
    variables: ClassVar = {"CONTRACT_SECRET": secret}
    max_body_bytes = 1024 * 1024
    escapes = False
    signs = frozenset({"body", "time"})
    methods = "POST"
    is_json = True

    def message(self, text: str, event_id: str | None = None) -> Any:
        # Where the id stands in a header, it travels within the payload until it is signed.
        return {"thread": "ticket-1", "author": "alice", "text": text, "_id": event_id}

    def attachment(self) -> Any:
        return {"thread": "ticket-2", "author": "alice", "text": "", "files": ["photo.png"]}

    def own(self) -> Any:
        return {"type": "turnmill.reply", "data": {"id": "dlv_1", "text": "I answered."}}

    def unknown(self) -> Any:
        return {"type": "user.created", "timestamp": "2026-11-29T10:00:00Z", "data": {}}

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        key = webhook_key(SecretStr(secret or self.secret))
        signed = webhook.sign(key, body, _event_id(body), at=at)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        try:
            Webhook(self.secret).verify(sent.body, sent.headers, json_parse=False)
        except WebhookVerificationError:
            return False
        return True


def _event_id(body: bytes) -> str | None:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return payload.get("_id") if isinstance(payload, dict) else None
