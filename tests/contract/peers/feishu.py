"""Feishu and Lark, for the contract suite."""

import json
from typing import Any, ClassVar
from warnings import catch_warnings, simplefilter

from turnmill.infra.mocks.feishu import events as feishu
from turnmill.infra.mocks.feishu.payloads import Tenant

from .base import Sent


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
    is_json = True

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
        # Imported late: it takes seconds. From Python 3.12 on its own libraries are deprecated.
        with catch_warnings():
            simplefilter("ignore", DeprecationWarning)
            from lark_oapi.core.model import RawRequest
            from lark_oapi.event.dispatcher_handler import EventDispatcherHandler

        seen: list[Any] = []
        builder = EventDispatcherHandler.builder(self.secret, self._tenant.token)
        handler = builder.register_p2_im_message_receive_v1(seen.append).build()
        request = RawRequest()
        request.uri, request.headers, request.body = "/", sent.headers, sent.body
        return handler.do(request).status_code == 200 and bool(seen)
