"""WhatsApp's Cloud API: what it sends, and the calls that it takes."""

import json
import secrets
import time
from itertools import count

from pydantic import SecretStr

from turnmill.infra.mocks.sending import JSON, Payload, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.schemas.channels.signatures import sign_whatsapp

TOKEN = "EAAmock"  # noqa: S105 - of this mock only
NUMBER, USER = "106540352242922", "16505551234"
MAX_TEXT, MAX_WITH_BUTTONS, MAX_TITLE = 4096, 1024, 20
#: How long the address of a file is good, seconds.
ADDRESS_S = 300.0
_LOOKASIDE = "/whatsapp_business/attachments/"

_numbers = count(int(time.time()))


def sign(secret: str, body: bytes) -> Signed:
    signature = sign_whatsapp(SecretStr(secret), body)
    return Signed({"Content-Type": JSON, "X-Hub-Signature-256": signature}, body)


def message(text: str | None, message_id: str | None = None, **fields: object) -> Payload:
    """A message of the user; without text, what the fields bring."""
    content = {} if text is None else {"type": "text", "text": {"body": text}}
    found = message_id or f"wamid.{next(_numbers)}"
    sender = {"from": USER, "id": found, "timestamp": str(int(time.time()))}
    return {**sender, **content, **fields}


def change(field: str = "messages", **value: object) -> Payload:
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
        #: What the bot uploaded, by its id, and what it sent of that as voice messages.
        self.uploads: dict[str, bytes] = {}
        self.voices: list[bytes] = []
        #: What users sent, by its id.
        self.files: dict[str, bytes] = {}
        #: Where they are, as somebody says who is not Meta.
        self.lookaside_url: str | None = None
        #: Addresses of files by their key: the file and when it is good no more (`time.monotonic`).
        self.addresses: dict[str, tuple[str, float]] = {}
        #: A code that every message is refused with.
        self.error: int | None = None

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.messages]

    def name(self, call: Call) -> str:
        if call.path == _LOOKASIDE:
            return "download"
        if call.path.endswith(f"/{NUMBER}/media"):
            return "upload"
        if call.verb == "GET" and call.path.rpartition("/")[2] != NUMBER:
            return "media"
        return "typing" if "typing_indicator" in call.given else "messages"

    def limited(self, retry_after_s: float) -> Reply:
        return _refuse(400, 131056)

    def answer(self, call: Call) -> Reply:
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            return _refuse(401, 190)
        if call.path.endswith(f"/{NUMBER}") and call.verb == "GET":
            return Reply(200, {"display_phone_number": "+1 555", "verified_name": "ACME"})
        if self.name(call) == "media":
            return self._media(call)
        if self.name(call) == "download":
            return self._download(call)
        if self.name(call) == "upload":
            return self._upload(call.given)
        if not call.path.endswith(f"/{NUMBER}/messages"):
            return _refuse(400, 100)
        if self.error is not None:
            return _refuse(400, self.error)
        if self.name(call) == "typing":
            self.typing.append(call.given["message_id"])
            return Reply(200, {"success": True})
        return self._message(call.given)

    def _media(self, call: Call) -> Reply:
        media = call.path.rpartition("/")[2]
        if media not in self.files or call.query.get("phone_number_id") != NUMBER:
            return _refuse(400, 100)
        key = secrets.token_hex(8)
        self.addresses[key] = media, time.monotonic() + ADDRESS_S
        host = self.lookaside_url or self.url
        found = {"url": f"{host}{_LOOKASIDE}?mid={media}&hash={key}", "id": media}
        size = str(len(self.files[media]))
        return Reply(200, {"messaging_product": "whatsapp", "file_size": size, **found})

    def _upload(self, given: Payload) -> Reply:
        is_sound = given.get("type") == "audio/ogg; codecs=opus" and b"OpusHead" in given["file"]
        if given.get("messaging_product") != "whatsapp" or not is_sound:
            return _refuse(400, 100)
        number = f"upload{len(self.uploads)}"
        self.uploads[number] = given["file"]
        return Reply(200, {"id": number})

    def _voice(self, given: Payload) -> Reply:
        sound = self.uploads.get(given["audio"]["id"])
        if sound is None or given["audio"].get("voice") is not True or given["to"] != USER:
            return _refuse(400, 100)
        self.voices.append(sound)
        return Reply(200, {"messages": [{"id": f"wamid.{next(_numbers)}"}]})

    def _download(self, call: Call) -> Reply:
        media, until = self.addresses.get(call.query.get("hash", ""), ("", 0.0))
        is_good = media == call.query.get("mid") and time.monotonic() < until
        # Meta answers clients without a name with an error page.
        if not is_good or not call.headers.get("user-agent"):
            return Reply(404)
        return Reply(200, self.files[media], {"Content-Type": "application/octet-stream"})

    def _message(self, given: Payload) -> Reply:
        if given["type"] == "audio":
            return self._voice(given)
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
