"""Feishu's API on this machine: tokens, replies with their `uuid`, cards that are updated.

https://open.feishu.cn/document/server-docs/im-v1/message/reply
"""

import json
import secrets
from dataclasses import dataclass, field

from turnmill.infra.mocks.feishu.payloads import new_id
from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.serving import Call, MockAPI, Reply

APP_ID, APP_SECRET = "cli_turnmill", "made-up-app-secret"
#: Bytes of a request with a card, and tables in it.
MAX_CARD, MAX_TABLES = 30 * 1024, 5
#: Bytes of a file that is handed out.
MAX_RESOURCE = 100 * 1024 * 1024
#: Those of docs/channels/feishu.md.
SCOPES = (
    "im:message.p2p_msg:readonly", "im:message.group_at_msg:readonly", "im:message:send_as_bot",
    "im:message:readonly",
)  # fmt: skip
#: One of them is enough to get a message's files.
_RESOURCE_SCOPES = ("im:message", "im:message:readonly", "im:message.history:readonly")
_TOKEN_PATH = "/open-apis/auth/v3/tenant_access_token/internal"  # noqa: S105
_MESSAGES = "/open-apis/im/v1/messages/"


@dataclass
class Posted:
    """A message of the bot. `history` has every text that it had."""

    message_id: str
    answers: str
    is_in_thread: bool
    history: list[str] = field(default_factory=list)
    buttons: list[dict[str, object]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.history[-1]


def _lacking(scopes: tuple[str, ...]) -> dict[str, object]:
    """https://open.feishu.cn/document/uAjLw4CM/ugTN1YjL4UTN24CO1UjN/trouble-shooting
    (how-to-fix-the-99991672-error)
    """
    violations = [{"type": "action_scope_required", "subject": scope} for scope in scopes]
    return {
        "code": 99991672,
        "msg": f"Access denied. One of the following scopes is required: [{', '.join(scopes)}]",
        "error": {"permission_violations": violations},
    }


class Refusal(Exception):
    """Feishu's own code."""

    def __init__(self, code: int, status: int = 400) -> None:
        super().__init__(str(code))
        self.code, self.status = code, status


class FeishuAPI(MockAPI):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Posted] = []
        #: Tokens that are good now, and for how long new ones are said to be, seconds.
        self.tokens: set[str] = set()
        self.token_s = 7200
        #: Codes of the next refusals, by the name of a call.
        self.refusals: dict[str, list[int]] = {}
        #: What the tenant has granted: 1, or 2: asked for, and not granted.
        self.scopes = dict.fromkeys(SCOPES, 1)
        #: The same for what it may do in the name of a user.
        self.user_scopes: dict[str, int] = {}
        #: What users sent, by the message's id, the key, and `image` or `file`.
        self.files: dict[tuple[str, str, str], bytes] = {}
        self._by_uuid: dict[str, Posted] = {}

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    def name(self, call: Call) -> str:
        """`token`, `reply`, `update`, `resource`, `bot`, `application` (its scopes)."""
        if call.path == _TOKEN_PATH:
            return "token"
        if call.path.startswith(_MESSAGES) and "/resources/" in call.path:
            return "resource"
        if call.path.startswith(_MESSAGES):
            return "reply" if call.path.endswith("/reply") else "update"
        return call.path.rpartition("/")[0].rpartition("/")[0].rpartition("/")[2]

    def limited(self, retry_after_s: float) -> Reply:
        body = {"code": 99991400, "msg": "request trigger frequency limit"}
        return Reply(429, body, {"Retry-After": str(int(retry_after_s))})

    def answer(self, call: Call) -> Reply:
        name = self.name(call)
        try:
            if self.refusals.get(name):
                raise Refusal(self.refusals[name].pop(0))
            if name == "token":
                return Reply(200, {"code": 0, "msg": "ok", **self._new_token(call.given)})
            if call.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
                raise Refusal(99991663)
            if name == "resource":
                return self._resource(call)
            return Reply(200, {"code": 0, "msg": "success", **self._answer(name, call)})
        except Refusal as refusal:
            return Reply(refusal.status, {"code": refusal.code, "msg": "refused"})

    def _resource(self, call: Call) -> Reply:
        if not any(self.scopes.get(scope) == 1 for scope in _RESOURCE_SCOPES):
            return Reply(400, _lacking(_RESOURCE_SCOPES))
        message_id, _, key = call.path.removeprefix(_MESSAGES).partition("/resources/")
        data = self.files.get((message_id, key, call.query.get("type", "")))
        if data is None:
            raise Refusal(234003)
        if len(data) > MAX_RESOURCE:
            raise Refusal(234037)
        return Reply(200, data, {"Content-Type": "application/octet-stream"})

    def _new_token(self, given: Payload) -> dict[str, object]:
        if given != {"app_id": APP_ID, "app_secret": APP_SECRET}:
            raise Refusal(10014, 200)
        token = f"t-{secrets.token_hex(16)}"
        self.tokens.add(token)
        return {"tenant_access_token": token, "expire": self.token_s}

    def _answer(self, name: str, call: Call) -> dict[str, object]:
        message_id = call.path.removeprefix(_MESSAGES).partition("/")[0]
        match name, call.verb:
            case "reply", "POST":
                return {"data": {"message_id": self._reply(message_id, call.given)}}
            case "update", "PATCH":
                self._update(message_id, call.given)
                return {"data": {}}
            case "application", "GET":
                return {"data": {"scopes": [*self._rows("tenant", self.scopes),
                                            *self._rows("user", self.user_scopes)]}}  # fmt: skip
            case "bot", "GET":
                return {"bot": {"app_name": "Turnmill", "open_id": "ou_bot", "activate_status": 2}}
        raise Refusal(99991401, 404)

    def _rows(self, kind: str, scopes: dict[str, int]) -> list[dict[str, object]]:
        return [
            {"scope_name": name, "grant_status": status, "scope_type": kind}
            for name, status in scopes.items()
        ]

    def _reply(self, answers: str, given: Payload) -> str:
        if len(given["uuid"]) > 50:
            raise Refusal(230001)
        if (known := self._by_uuid.get(given["uuid"])) is not None:
            return known.message_id
        posted = Posted(new_id("om"), answers, given["reply_in_thread"])
        self._show(posted, given)
        self._by_uuid[given["uuid"]] = posted
        self.messages.append(posted)
        return posted.message_id

    def _update(self, message_id: str, given: Payload) -> None:
        posted = next((m for m in self.messages if m.message_id == message_id), None)
        if posted is None:
            raise Refusal(230012)
        self._show(posted, given)

    def _show(self, posted: Posted, given: Payload) -> None:
        if len(json.dumps(given).encode()) > MAX_CARD:
            raise Refusal(230025)
        card = json.loads(given["content"])
        if card["schema"] != "2.0" or card["config"] != {"update_multi": True}:
            raise Refusal(230099)
        shown, *rest = card["body"]["elements"]
        text = shown["content"] if shown["tag"] == "markdown" else shown["text"]["content"]
        if shown["tag"] == "markdown" and (
            "![" in text or text.count("\n|--") > MAX_TABLES or "<at" in text
        ):
            raise Refusal(230099)
        posted.history.append(text)
        columns = [column for each in rest for column in each["columns"]]
        posted.buttons = [column["elements"][0] for column in columns]
