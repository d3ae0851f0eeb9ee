"""WeChat: the messages that it sends to an official account, and the calls that it takes.

https://developers.weixin.qq.com/doc/offiaccount/Message_Management/Receiving_standard_messages.html
https://developers.weixin.qq.com/doc/service/api/customer/message/api_sendcustommessage
"""

import secrets
import time

from turnmill.infra.mocks.sending import Payload, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.infra.mocks.wecom.api import media
from turnmill.infra.mocks.wecom.messages import XML, Fields, encode, query
from turnmill.schemas.channels.wechat import Sealer

APP_ID, APP_SECRET = "wx0123456789abcdef", "made-up-app-secret"
ACCOUNT, USER = "gh_0123456789ab", "oLVPpjqs9BhvzwPj5A-vTYAX3GLc"
#: Bytes of a text; messages after one of the person's.
MAX_TEXT, MAX_MESSAGES = 2047, 5


def message(text: str, *, user: str = USER, **more: str) -> Fields:
    """The fields of somebody's message to the account."""
    return {
        "ToUserName": ACCOUNT,
        "FromUserName": user,
        "CreateTime": str(int(time.time())),
        "MsgType": "text",
        "Content": text,
        "MsgId": str(secrets.randbelow(10**18)),
        **more,
    }


def sign(sealer: Sealer, plain: bytes, *, at: float | None = None) -> Signed:
    """Encrypt a message, and sign it as of now, or of another time (Unix seconds)."""
    sealed = sealer.seal(plain)
    body = encode({"ToUserName": ACCOUNT, "Encrypt": sealed})
    return Signed({"Content-Type": XML}, body, query(sealer, sealed, at=at))


def check(sealer: Sealer, echo: str) -> Fields:
    """What stands in the address when WeChat verifies it."""
    timestamp, nonce = str(int(time.time())), secrets.token_hex(5)
    signature = sealer.sign(timestamp, nonce)
    return {"signature": signature, "timestamp": timestamp, "nonce": nonce, "echostr": echo}


class WeChatAPI(MockAPI):
    def __init__(self) -> None:
        super().__init__()
        #: What people see: to whom, and the text.
        self.messages: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        #: What people sent, by its `media_id`.
        self.files: dict[str, bytes] = {}
        #: How many messages each person may still get.
        self.quota = {USER: MAX_MESSAGES}
        #: Who sees "typing".
        self.typing: set[str] = set()
        self.is_verified = True
        #: Codes of the next refusals, by the name of a call.
        self.refusals: dict[str, list[int]] = {}

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.messages]

    def hear(self, user: str = USER) -> None:
        """Somebody writes to the account."""
        self.quota[user] = MAX_MESSAGES

    def name(self, call: Call) -> str:
        """`stable_token`, `send`, `typing`, `getkflist`, `media`."""
        if call.path.endswith("/media/get"):
            return "media"
        return call.path.rpartition("/")[2]

    def limited(self, retry_after_s: float) -> Reply:
        return _code(45009)

    def answer(self, call: Call) -> Reply:
        name, given = self.name(call), call.given
        if self.refusals.get(name):
            return _code(self.refusals[name].pop(0))
        if name == "stable_token":
            return self._token(given)
        if call.query.get("access_token") not in self.tokens:
            return _code(40001)
        if not self.is_verified:
            return _code(48001)
        if b"\\u" in call.body:
            return _code(40033)
        if name == "media":
            return media(self.files.get(call.query.get("media_id", "")))
        if name == "getkflist":
            return Reply(200, {"kf_list": []})
        return _code(self._type(given) if name == "typing" else self._send(given))

    def _token(self, given: Payload) -> Reply:
        """The same token for all who ask, until it ends."""
        app = {"grant_type": "client_credential", "appid": APP_ID, "secret": APP_SECRET}
        if given != app:
            return _code(40125)
        self.tokens = self.tokens or {secrets.token_hex(64)}
        return Reply(200, {"access_token": next(iter(self.tokens)), "expires_in": 7200})

    def _type(self, given: Payload) -> int:
        user = given["touser"]
        if user in self.typing:
            return 45081
        self.typing.add(user)
        return 0

    def _send(self, given: Payload) -> int:
        user, text = given["touser"], given["text"]["content"]
        if user not in self.quota:
            return 45015
        if not self.quota[user]:
            return 45047
        if len(text.encode()) > MAX_TEXT:
            return 45002
        self.quota[user] -= 1
        self.typing.discard(user)
        self.messages.append((user, text))
        return 0


def _code(code: int) -> Reply:
    return Reply(200, {"errcode": code, "errmsg": "refused" if code else "ok"})
