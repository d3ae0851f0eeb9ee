"""An outgoing webhook of Teams, for the contract suite."""

import base64
import hashlib
import hmac
import json
from typing import Any, ClassVar

from turnmill.infra.mocks.teams import webhooks

from .base import Sent


class TeamsWebhookPeer:
    section = """
        token = { env = "CONTRACT_TOKEN" }
        reply_url = { env = "CONTRACT_URL" }
    """
    variables: ClassVar = {
        "CONTRACT_TOKEN": webhooks.TOKEN,
        "CONTRACT_URL": "http://127.0.0.1:9/workflows/made-up",
    }
    max_body_bytes = 1024 * 1024
    escapes = False
    signs = frozenset({"body"})
    methods = "POST"
    is_json = True

    def message(self, text: str, event_id: str | None = None) -> Any:
        return webhooks.message(text, **({} if event_id is None else {"id": event_id}))

    def attachment(self) -> Any:
        return webhooks.message("", attachments=[{"contentType": "image/png", "name": "a.png"}])

    def own(self) -> Any:
        return webhooks.message("I answered.", **{"from": {"id": "28:webhook"}})

    def unknown(self) -> Any:
        return webhooks.message("", type="conversationUpdate")

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        token = webhooks.TOKEN if secret is None else base64.b64encode(secret.encode()).decode()
        signed = webhooks.sign(token, body)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        """Microsoft has no library for it; these are the steps of its page, in their order."""
        computed = hmac.new(base64.b64decode(webhooks.TOKEN), sent.body, hashlib.sha256)
        return (
            f"HMAC {base64.b64encode(computed.digest()).decode()}"
            == (sent.headers["Authorization"])
        )
