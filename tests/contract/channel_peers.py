"""The platforms of the contract suite: what each sends, and who judges its signatures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import SecretStr
from pywa.utils import webhook_updates_validator
from slack_sdk.signature import SignatureVerifier
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from telegram import Update

from turnmill.infra.mocks import webhook, whatsapp
from turnmill.infra.mocks.feishu import events as feishu
from turnmill.infra.mocks.feishu.payloads import Tenant
from turnmill.infra.mocks.slack import events as slack
from turnmill.infra.mocks.slack.payloads import Workspace
from turnmill.infra.mocks.telegram import updates as telegram
from turnmill.infra.mocks.telegram.updates import Messenger
from turnmill.schemas.channels.signatures import webhook_key


@dataclass(frozen=True, slots=True)
class Sent:
    """A signed request."""

    headers: dict[str, str]
    body: bytes


class Peer(Protocol):
    """A platform. Each message begins, or belongs to, the same conversation."""

    #: The section of `turnmill.toml`, without kind and bot.
    section: str
    #: What the section's references lead to.
    variables: Mapping[str, str]
    max_body_bytes: int
    #: Whether texts arrive with `&`, `<` and `>` escaped.
    escapes: bool
    #: What is signed: of `body` and `time`, those that a replay or a change would be found by.
    signs: frozenset[str]
    methods: str

    def message(self, text: str, event_id: str | None = None) -> Any: ...
    def attachment(self) -> Any: ...
    def own(self) -> Any: ...
    def unknown(self) -> Any: ...
    def encode(self, payload: Any) -> bytes: ...
    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent: ...

    def is_valid(self, sent: Sent) -> bool:
        """What the platform's own library says of a signature."""


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


class FeishuPeer:
    section = """
        app_id = "cli_turnmill"
        app_secret = { env = "CONTRACT_APP" }
        encrypt_key = { env = "CONTRACT_SECRET" }
        verification_token = { env = "CONTRACT_TOKEN" }
        open_id = "ou_bot"
    """
    secret = "made-up-encrypt-key"  # noqa: S105
    variables: ClassVar = {
        "CONTRACT_SECRET": secret,
        "CONTRACT_APP": "made-up-app-secret",
        "CONTRACT_TOKEN": Tenant().token,
    }
    #: Of the body before it is encrypted in blocks of 16 bytes: 1 MiB in base64 holds so much.
    max_body_bytes = (1024 * 1024 - len('{"encrypt": ""}')) // 4 * 3 // 16 * 16 - 16 - 1
    escapes = False
    signs = frozenset({"body", "time"})
    methods = "POST"

    def __init__(self) -> None:
        self._tenant = Tenant()

    def message(self, text: str, event_id: str | None = None) -> Any:
        return self._tenant.text(text, event_id=event_id)

    def attachment(self) -> Any:
        return self._tenant.message({"image_key": "img_1"}, "image")

    def own(self) -> Any:
        return self._tenant.text("I answered.", sender_type="app")

    def unknown(self) -> Any:
        return self._tenant.event("im.chat.updated_v1", {"chat_id": "oc_1"})

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        signed = feishu.sign(secret or self.secret, body, at=at)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        # Imported late: it takes seconds.
        from lark_oapi.core.model import RawRequest
        from lark_oapi.event.dispatcher_handler import EventDispatcherHandler

        seen: list[Any] = []
        builder = EventDispatcherHandler.builder(self.secret, self._tenant.token)
        handler = builder.register_p2_im_message_receive_v1(seen.append).build()
        request = RawRequest()
        request.uri, request.headers, request.body = "/", sent.headers, sent.body
        return handler.do(request).status_code == 200 and bool(seen)


def _event_id(body: bytes) -> str | None:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return payload.get("_id") if isinstance(payload, dict) else None


PEERS: dict[str, type[Peer]] = {
    "feishu": FeishuPeer,
    "slack": SlackPeer,
    "telegram": TelegramPeer,
    "webhook": WebhookPeer,
    "whatsapp": WhatsAppPeer,
}
