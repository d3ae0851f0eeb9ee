"""Discord, for the contract suite."""

import json
from typing import Any, ClassVar

from discord_interactions import verify_key

from turnmill.infra.mocks import discord

from .base import Sent


class DiscordPeer:
    secret = "made-up-key"  # noqa: S105
    section = f"""
        application_id = "{discord.APPLICATION_ID}"
        public_key = "{discord.public_key(secret)}"
        bot_token = {{ env = "CONTRACT_TOKEN" }}
    """
    variables: ClassVar = {"CONTRACT_TOKEN": "made-up.bot-token"}
    max_body_bytes = 1024 * 1024
    escapes = False
    signs = frozenset({"body", "time"})
    methods = "POST"
    is_json = True

    def message(self, text: str, event_id: str | None = None) -> Any:
        return discord.command("ask", text, **({"id": event_id} if event_id else {}))

    def attachment(self) -> Any:
        return discord.about_message("", [{"filename": "a.png", "content_type": "image/png"}])

    def own(self) -> Any:
        return discord.command("ask", "I answered.", user={"id": discord.APPLICATION_ID})

    def unknown(self) -> Any:
        return discord.interaction(5, {"custom_id": "modal", "components": []})

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = discord.sign(secret or self.secret, body, at=at)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        signature = sent.headers["X-Signature-Ed25519"]
        timestamp = sent.headers["X-Signature-Timestamp"]
        key = discord.public_key(self.secret)
        return bool(verify_key(sent.body, signature, timestamp, key))
