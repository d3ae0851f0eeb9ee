"""WhatsApp, for the contract suite."""

from typing import Any, ClassVar

from pywa.utils import webhook_updates_validator

from turnmill.infra.mocks import whatsapp

from .base import Sent


class WhatsAppPeer:
    section = f"""
        phone_number_id = "{whatsapp.NUMBER}"
        app_secret = {{ env = "CONTRACT_SECRET" }}
        verify_token = {{ env = "CONTRACT_VERIFY" }}
        access_token = {{ env = "CONTRACT_TOKEN" }}
    """
    secret = "0123456789abcdef0123456789abcdef"  # noqa: S105
    variables: ClassVar = {
        "CONTRACT_SECRET": secret,
        "CONTRACT_VERIFY": "made-up-verify-token",
        "CONTRACT_TOKEN": "EAAmade-up",
    }
    max_body_bytes = 3 * 1024 * 1024
    escapes = False
    signs = frozenset({"body"})
    methods = "GET, POST"
    is_json = True

    def message(self, text: str, event_id: str | None = None) -> Any:
        return whatsapp.batch(whatsapp.change(messages=[whatsapp.message(text, event_id)]))

    def attachment(self) -> Any:
        image = {"id": "1", "mime_type": "image/jpeg", "sha256": "x"}
        message = whatsapp.message(None, type="image", image=image)
        return whatsapp.batch(whatsapp.change(messages=[message]))

    def own(self) -> Any:
        echoes = [whatsapp.message("I answered.")]
        return whatsapp.batch(whatsapp.change("smb_message_echoes", message_echoes=echoes))

    def unknown(self) -> Any:
        return whatsapp.batch(whatsapp.change("account_update", event="VERIFIED_ACCOUNT"))

    def encode(self, payload: Any) -> bytes:
        return whatsapp.encode(payload)

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = whatsapp.sign(secret or self.secret, body)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        return webhook_updates_validator(
            self.secret, sent.body, sent.headers["X-Hub-Signature-256"]
        )
