"""DingTalk: the messages that it sends, and the calls that it takes.

https://open.dingtalk.com/document/orgapp/receive-message and
https://open.dingtalk.com/document/orgapp/chatbots-send-one-on-one-chat-messages-in-batches
"""

import json
import secrets
import time
from dataclasses import dataclass

from pydantic import SecretStr

from turnmill.infra.mocks.sending import JSON, Payload, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.schemas.channels.signatures import sign_dingtalk

CLIENT_ID, CLIENT_SECRET = "dingturnmill", "made-up-client-secret"
USER, CONVERSATION = "manager4220", "cidturnmill=="
BOT = "$:LWCP_v1:$bot"
#: Bytes of `msgParam`, and of a message to a session's webhook.
MAX_PARAM, MAX_SESSION = 15_000, 20_000

_SEND_DIRECT = "/v1.0/robot/oToMessages/batchSend"
_SEND_GROUP = "/v1.0/robot/groupMessages/send"
_SESSION = "/robot/sendBySession"
_FILES = "/v1.0/robot/messageFiles/download"
_DOWNLOAD = "/files/"


def sign(secret: str, body: bytes, *, at: float | None = None) -> Signed:
    """Sign a body as of now, or of another time (Unix seconds)."""
    timestamp = str(int((time.time() if at is None else at) * 1000))
    signature = sign_dingtalk(SecretStr(secret), timestamp)
    return Signed({"Content-Type": JSON, "timestamp": timestamp, "sign": signature}, body)


def message(text: str | None = None, msgtype: str = "text", **fields: object) -> Payload:
    """A message to the bot, in a direct chat unless the fields say otherwise."""
    now_ms = int(time.time() * 1000)
    said = {} if text is None else {"text": {"content": text}}
    return {
        "conversationId": CONVERSATION,
        "conversationType": "1",
        "chatbotCorpId": "dingcorp",
        "chatbotUserId": BOT,
        "msgId": f"msg{secrets.token_hex(12)}",
        "senderNick": "Alice",
        "senderStaffId": USER,
        "senderCorpId": "dingcorp",
        "senderId": "$:LWCP_v1:$alice",
        "isAdmin": False,
        "createAt": now_ms,
        "sessionWebhook": "https://oapi.dingtalk.com/robot/sendBySession?session=made-up",
        "sessionWebhookExpiredTime": now_ms + 5_400_000,
        "robotCode": CLIENT_ID,
        "msgtype": msgtype,
        **said,
        **fields,
    }


def in_group(text: str, **fields: object) -> Payload:
    """A message that mentions the bot in a group, without the mention, as DingTalk sends it."""
    group: Payload = {"conversationType": "2", "conversationTitle": "General", "isInAtList": True}
    return message(f" {text}", **(group | fields))


def encode(payload: Payload) -> bytes:
    return json.dumps(payload).encode()


@dataclass(frozen=True, slots=True)
class Posted:
    """A message of the bot, and which way it came: `session`, `direct` or `group`."""

    text: str
    way: str
    to: str


class DingTalkAPI(MockAPI):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Posted] = []
        self.tokens: set[str] = set()
        #: Sessions that are over, by the code that their webhook answers with.
        self.session_error: int | None = None
        #: Errors of the next calls of the API.
        self.errors: list[tuple[int, str]] = []
        #: What people sent, by its code.
        self.files: dict[str, bytes] = {}
        #: Where addresses of files lead.
        self.file_url = f"{self.url}{_DOWNLOAD}"
        self._signed: dict[str, str] = {}

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    @property
    def session(self) -> str:
        return f"{self.url}{_SESSION}?session=made-up"

    def name(self, call: Call) -> str:
        """`token`, `session`, `direct`, `group`, `media` or `download`."""
        if call.path.startswith(_DOWNLOAD):
            return "download"
        names = {_SESSION: "session", _SEND_DIRECT: "direct", _SEND_GROUP: "group"}
        return (names | {_FILES: "media"}).get(call.path, "token")

    def limited(self, retry_after_s: float) -> Reply:
        return Reply(429, {"code": "Throttling", "message": "limited"})

    def answer(self, call: Call) -> Reply:
        name = self.name(call)
        if name == "session":
            return self._by_session(call.given)
        if name == "token":
            if call.given != {"appKey": CLIENT_ID, "appSecret": CLIENT_SECRET}:
                return _refuse(400, "invalidClientIdOrSecret")
            token = secrets.token_hex(16)
            self.tokens.add(token)
            return Reply(200, {"accessToken": token, "expireIn": 7200})
        if name == "download":
            return self._download(call)
        if call.headers.get("x-acs-dingtalk-access-token") not in self.tokens:
            return _refuse(400, "InvalidAuthentication")
        if self.errors:
            return _refuse(*self.errors.pop(0))
        return self._address(call.given) if name == "media" else self._by_api(name, call.given)

    def _address(self, given: Payload) -> Reply:
        """Exchange the code of a file for an address, which is signed."""
        if given["robotCode"] != CLIENT_ID or given["downloadCode"] not in self.files:
            return _refuse(400, "invalidParameter.downloadCode.invalid")
        key = secrets.token_hex(8)
        self._signed[key] = given["downloadCode"]
        return Reply(200, {"downloadUrl": f"{self.file_url}{key}?Expires=1&Signature=made-up"})

    def _download(self, call: Call) -> Reply:
        """Hand out a file to whoever has its address. The storage is nobody to show tokens to."""
        code = self._signed.get(call.path.removeprefix(_DOWNLOAD), "")
        if "x-acs-dingtalk-access-token" in call.headers or "Signature" not in call.query:
            return Reply(403)
        if code not in self.files:
            return Reply(404)
        return Reply(200, self.files[code], {"Content-Type": "application/octet-stream"})

    def _by_session(self, given: Payload) -> Reply:
        if self.session_error is not None:
            return Reply(200, {"errcode": self.session_error, "errmsg": "refused"})
        if len(json.dumps(given).encode()) > MAX_SESSION:
            return Reply(200, {"errcode": 460101, "errmsg": "message too long"})
        self.messages.append(Posted(given["markdown"]["text"], "session", ""))
        return Reply(200, {"errcode": 0, "errmsg": "ok"})

    def _by_api(self, name: str, given: Payload) -> Reply:
        to = given["userIds"][0] if name == "direct" else given["openConversationId"]
        if given["robotCode"] != CLIENT_ID or given["msgKey"] != "sampleMarkdown":
            return _refuse(400, "invalidParameter.robotCode.auth")
        if len(given["msgParam"].encode()) > MAX_PARAM:
            return _refuse(400, "invalidParameter.msgParam.invalid")
        self.messages.append(Posted(json.loads(given["msgParam"])["text"], name, to))
        return Reply(200, {"processQueryKey": secrets.token_hex(8)})


def _refuse(status: int, code: str) -> Reply:
    return Reply(status, {"code": code, "message": "refused", "requestid": "1"})
