"""WeCom's API on this machine: tokens, messages, and their duplicates that it drops."""

import json
import secrets
import time

from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.serving import Call, MockAPI, Reply

CORP_ID, SECRET, AGENT_ID = "wwturnmill", "made-up-app-secret", 1000002
#: Bytes of a text.
MAX_TEXT = 2048
#: Bytes of a file that is handed out at once.
MAX_MEDIA = 20 * 1024 * 1024
#: Messages to one person; what is more is taken, and nobody sees it.
MAX_A_MINUTE = 30


class WeComAPI(MockAPI):
    def __init__(self) -> None:
        super().__init__()
        #: What people see: to whom, and the text.
        self.messages: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.users = {"alice"}
        self.unlicensed: set[str] = set()
        #: Codes of the next refusals, by the name of a call.
        self.refusals: dict[str, list[int]] = {}
        #: What people sent, by its `media_id`; WeCom keeps it for three days.
        self.files: dict[str, bytes] = {}
        self._seen: dict[str, float] = {}
        self._sent: list[tuple[str, float]] = []

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.messages]

    def name(self, call: Call) -> str:
        """`gettoken`, `send`, `get`, `media`."""
        if call.path.endswith("/media/get"):
            return "media"
        return call.path.rpartition("/")[2]

    def limited(self, retry_after_s: float) -> Reply:
        return Reply(200, {"errcode": 45009, "errmsg": "api freq out of limit"})

    def answer(self, call: Call) -> Reply:
        name = self.name(call)
        if self.refusals.get(name):
            return _code(self.refusals[name].pop(0))
        if name == "gettoken":
            return self._token(call.query)
        if call.query.get("access_token") not in self.tokens:
            return _code(40014)
        if name == "media":
            return media(self.files.get(call.query.get("media_id", "")))
        if name == "get":
            return Reply(200, {"errcode": 0, "name": "Turnmill", "agentid": AGENT_ID})
        return self._send(call.given)

    def _token(self, query: dict[str, str]) -> Reply:
        if query != {"corpid": CORP_ID, "corpsecret": SECRET}:
            return _code(40001)
        token = secrets.token_hex(32)
        self.tokens.add(token)
        return Reply(200, {"errcode": 0, "access_token": token, "expires_in": 7200})

    def _send(self, given: Payload) -> Reply:
        if given["agentid"] != AGENT_ID or given["msgtype"] != "text":
            return _code(40056)
        if given["touser"] not in self.users:
            return Reply(200, {"errcode": 0, "invaliduser": given["touser"], "msgid": "m"})
        if given["touser"] in self.unlicensed:
            return Reply(200, {"errcode": 0, "unlicenseduser": given["touser"], "msgid": "m"})
        text = given["text"]["content"]
        if len(text.encode()) > MAX_TEXT:
            text = text.encode()[:MAX_TEXT].decode(errors="ignore")
        if not self._is_duplicate(given) and not self._is_too_much(given["touser"]):
            self.messages.append((given["touser"], text))
        return Reply(200, {"errcode": 0, "errmsg": "ok", "msgid": secrets.token_hex(8)})

    def _is_duplicate(self, given: Payload) -> bool:
        if not given.get("enable_duplicate_check"):
            return False
        whole, now = json.dumps(given, sort_keys=True), time.monotonic()
        known_at = self._seen.setdefault(whole, now)
        return bool(0 < now - known_at <= given.get("duplicate_check_interval", 1800))

    def _is_too_much(self, user: str) -> bool:
        now = time.monotonic()
        self._sent.append((user, now))
        return sum(to == user and at > now - 60 for to, at in self._sent) > MAX_A_MINUTE


def media(data: bytes | None) -> Reply:
    """What WeCom and WeChat answer who asks for a file: the reason, with 200, where there is none.

    https://developer.work.weixin.qq.com/document/path/90254
    """
    if data is None:
        return _code(40007)
    if len(data) > MAX_MEDIA:
        return _code(830002)
    return Reply(200, data, {"Content-Type": "application/octet-stream"})


def _code(code: int) -> Reply:
    return Reply(200, {"errcode": code, "errmsg": "refused"})
