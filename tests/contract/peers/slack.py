"""Slack, for the contract suite."""

import json
from typing import Any, ClassVar

from slack_sdk.signature import SignatureVerifier

from turnmill.infra.mocks.slack import events as slack
from turnmill.infra.mocks.slack.payloads import Workspace

from .base import Sent


class SlackPeer:
    section = """
        signing_secret = { env = "CONTRACT_SECRET" }
        bot_token = { env = "CONTRACT_TOKEN" }
    """
    secret = "0123456789abcdef0123456789abcdef"  # noqa: S105 - a made-up one
    variables: ClassVar = {"CONTRACT_SECRET": secret, "CONTRACT_TOKEN": "xoxb-made-up"}
    max_body_bytes = 1024 * 1024
    escapes = True
    signs = frozenset({"body", "time"})
    methods = "POST"
    is_json = True

    def __init__(self) -> None:
        self._workspace = Workspace()
        self._thread = self._workspace.mention("")["ts"]

    def message(self, text: str, event_id: str | None = None) -> Any:
        event = self._workspace.mention(text, thread_ts=self._thread)
        return self._workspace.callback(event, event_id)

    def attachment(self) -> Any:
        files = [self._workspace.file()]
        event = self._workspace.direct_message("", subtype="file_share", files=files)
        return self._workspace.callback(event)

    def own(self) -> Any:
        return self._workspace.callback(self._workspace.by_the_bot())

    def unknown(self) -> Any:
        return self._workspace.callback({"type": "channel_rename", "channel": {"id": "C1"}})

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = slack.sign(secret or self.secret, body, at=at)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        return SignatureVerifier(self.secret).is_valid_request(sent.body, sent.headers)
