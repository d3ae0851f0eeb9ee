"""WhatsApp's Cloud API: what it sends, and the calls that it takes."""

import json
import time
from itertools import count
from typing import Any

from pydantic import SecretStr

from turnmill.infra.mocks.sending import JSON, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.schemas.channels.signatures import sign_whatsapp

Payload = dict[str, Any]

TOKEN = "EAAmock"  # noqa: S105 - of this mock only
NUMBER, USER = "106540352242922", "16505551234"
MAX_TEXT, MAX_WITH_BUTTONS, MAX_TITLE = 4096, 1024, 20

_numbers = count(int(time.time()))


def sign(secret: str, body: bytes) -> Signed:
    signature = sign_whatsapp(SecretStr(secret), body)
    return Signed({"Content-Type": JSON, "X-Hub-Signature-256": signature}, body)


def message(text: str | None, message_id: str | None = None, **fields: Any) -> Payload:
    """A message of the user; without text, what the fields bring."""
    content = {} if text is None else {"type": "text", "text": {"body": text}}
    found = message_id or f"wamid.{next(_numbers)}"
    sender = {"from": USER, "id": found, "timestamp": str(int(time.time()))}
    return {**sender, **content, **fields}


def change(field: str = "messages", **value: Any) -> Payload:
    metadata = {"display_phone_number": "15550783881", "phone_number_id": NUMBER}
    contacts = [{"profile": {"name": "Alice"}, "wa_id": USER}]
    named = {"contacts": contacts} if "messages" in value else {}
    shown = {"messaging_product": "whatsapp", "metadata": metadata, **named, **value}
    return {"field": field, "value": shown}


def batch(*changes: Payload) -> Payload:
    entry = {"id": "102290129340398", "changes": list(changes)}
    return {"object": "whatsapp_business_account", "entry": [entry]}


def encode(payload: Payload) -> bytes:
    return json.dumps(payload).encode()


class WhatsAppAPI(MockAPI):
    def __init__(self) -> None:
        super().__init__()
        #: Texts and the values of their buttons.
        self.messages: list[tuple[str, list[str]]] = []
        self.typing: list[str] = []
        #: A code that every message is refused with.
        self.error: int | None = None

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.messages]

    def name(self, call: Call) -> str:
        return "typing" if "typing_indicator" in call.given else "messages"

    def limited(self, retry_after_s: float) -> Reply:
        return _refuse(400, 131056)

    def answer(self, call: Call) -> Reply:
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            return _refuse(401, 190)
        if call.path.endswith(f"/{NUMBER}") and call.verb == "GET":
            return Reply(200, {"display_phone_number": "+1 555", "verified_name": "ACME"})
        if not call.path.endswith(f"/{NUMBER}/messages"):
            return _refuse(400, 100)
        if self.error is not None:
            return _refuse(400, self.error)
        if self.name(call) == "typing":
            self.typing.append(call.given["message_id"])
            return Reply(200, {"success": True})
        return self._message(call.given)

    def _message(self, given: Payload) -> Reply:
        buttons: list[Payload] = []
        if given["type"] == "interactive":
            text = given["interactive"]["body"]["text"]
            buttons = [each["reply"] for each in given["interactive"]["action"]["buttons"]]
        else:
            text = given["text"]["body"]
        is_long = len(text) > (MAX_WITH_BUTTONS if buttons else MAX_TEXT)
        is_wide = any(len(each["title"]) > MAX_TITLE for each in buttons) or len(buttons) > 3
        if is_long or is_wide or not text or given["to"] != USER:
            return _refuse(400, 100)
        self.messages.append((text, [each["id"] for each in buttons]))
        return Reply(200, {"messages": [{"id": f"wamid.{next(_numbers)}"}]})


def _refuse(status: int, code: int) -> Reply:
    return Reply(
        status, {"error": {"message": f"(#{code})", "type": "OAuthException", "code": code}}
    )
