"""DingTalk, for the contract suite."""

import base64
import hashlib
import hmac
import json
from typing import Any, ClassVar

from turnmill.infra.mocks import dingtalk

from .base import Sent


class DingTalkPeer:
    section = """
        client_id = "dingturnmill"
        client_secret = { env = "CONTRACT_SECRET" }
    """
    secret = "made-up-client-secret"  # noqa: S105
    variables: ClassVar = {"CONTRACT_SECRET": secret}
    max_body_bytes = 1024 * 1024
    escapes = False
    signs = frozenset({"time"})
    methods = "POST"
    is_json = True

    def message(self, text: str, event_id: str | None = None) -> Any:
        fields = {} if event_id is None else {"msgId": event_id}
        return dingtalk.message(text, **fields)

    def attachment(self) -> Any:
        return dingtalk.message(msgtype="picture", content={"downloadCode": "made-up"})

    def own(self) -> Any:
        return dingtalk.message("I answered.", senderId=dingtalk.BOT)

    def unknown(self) -> Any:
        return {"EventType": "check_url"}

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = dingtalk.sign(secret or self.secret, body, at=at)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        """DingTalk has no library that verifies; this is its page's own example, word for word."""
        app_secret, timestamp = self.secret, sent.headers["timestamp"]
        app_secret_enc = app_secret.encode("utf-8")
        string_to_sign = f"{timestamp}\n{app_secret}"
        hmac_code = hmac.new(
            app_secret_enc, string_to_sign.encode("utf-8"), digestmod=hashlib.sha256
        ).digest()
        return base64.b64encode(hmac_code).decode("utf-8") == sent.headers["sign"]
