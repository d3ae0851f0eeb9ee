"""Discord: the interactions that it sends, and the calls that it takes.

https://discord.com/developers/docs/interactions/receiving-and-responding
"""

import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from nacl.signing import SigningKey

from turnmill.infra.mocks.sending import JSON, Payload, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply

APPLICATION_ID, CHANNEL_ID, USER_ID = "1100000000000000001", "1100000000000000002", "1100000000003"
BOT_TOKEN = "made-up.bot-token"  # noqa: S105 - of this mock only
MAX_TEXT, MAX_NONCE, MAX_CUSTOM_ID = 2000, 25, 100
_TEXT_CHANNEL, _DIRECT = 0, 1
#: Calls that one token, or one channel, takes in a time.
BUCKET, BUCKET_S = 5, 0.3

_numbers = count(time.time_ns() // 1000)


def signing_key(secret: str) -> SigningKey:
    """The private key that a secret of any length stands for."""
    return SigningKey(hashlib.sha256(secret.encode()).digest())


def public_key(secret: str) -> str:
    return signing_key(secret).verify_key.encode().hex()


def sign(secret: str, body: bytes, *, at: float | None = None) -> Signed:
    """Sign a body as of now, or of another time (Unix seconds)."""
    timestamp = str(int(time.time() if at is None else at))
    signature = signing_key(secret).sign(timestamp.encode() + body).signature.hex()
    headers = {"X-Signature-Ed25519": signature, "X-Signature-Timestamp": timestamp}
    return Signed({"Content-Type": JSON, **headers}, body)


def encode(payload: Payload) -> bytes:
    return json.dumps(payload).encode()


def ping() -> Payload:
    return {"id": str(next(_numbers)), "application_id": APPLICATION_ID, "type": 1, "token": "t"}


def interaction(
    kind: int, data: Payload, *, user: Payload | None = None, **fields: object
) -> Payload:
    """An interaction of somebody in a channel of a server, unless the fields say otherwise."""
    who = {"id": USER_ID, "username": "alice", "global_name": "Alice"} if user is None else user
    return {
        "id": str(next(_numbers)),
        "application_id": APPLICATION_ID,
        "type": kind,
        "token": secrets.token_urlsafe(32),
        "version": 1,
        "guild_id": "1100000000000000009",
        "channel_id": CHANNEL_ID,
        "channel": {"id": CHANNEL_ID, "type": _TEXT_CHANNEL},
        "member": {"user": who, "roles": [], "permissions": "0"},
        "data": data,
        **fields,
    }


def command(
    name: str, text: str | None = None, attachment: Payload | None = None, **fields: Any
) -> Payload:
    """A written command."""
    options: list[Payload] = [] if text is None else [{"type": 3, "name": "text", "value": text}]
    data: Payload = {"id": "1", "name": name, "type": 1, "options": options}
    if attachment is not None:
        options.append({"type": 11, "name": "file", "value": attachment["id"]})
        data["resolved"] = {"attachments": {attachment["id"]: attachment}}
    return interaction(2, data, **fields)


def in_direct_chat(payload: Payload, channel: str = CHANNEL_ID) -> Payload:
    """The same interaction in a direct chat."""
    user = payload["member"]["user"]
    rest = {name: value for name, value in payload.items() if name not in ("member", "guild_id")}
    return {
        **rest,
        "user": user,
        "channel_id": channel,
        "channel": {"id": channel, "type": _DIRECT},
    }


def about_message(content: str, attachments: list[Payload] | None = None) -> Payload:
    """`Ask` in the menu of a message."""
    message = {"id": "42", "content": content, "attachments": attachments or []}
    data = {"id": "2", "name": "Ask", "type": 3, "target_id": "42"}
    return interaction(2, {**data, "resolved": {"messages": {"42": message}}})


def pressed(custom_id: str, *, asked_by: str = USER_ID, **fields: Any) -> Payload:
    """A button under a message of the bot, which answers somebody's command."""
    metadata = {"id": "1", "type": 2, "user": {"id": asked_by, "username": "x"}}
    message = {"id": "43", "content": "", "interaction_metadata": metadata}
    return interaction(3, {"custom_id": custom_id, "component_type": 2}, message=message, **fields)


@dataclass
class Posted:
    """A message of the bot. `history` has every text that it had."""

    message_id: str
    #: `original` in the place of "thinking…", `followup`, or `bot`.
    way: str
    history: list[str] = field(default_factory=list)
    buttons: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.history[-1]


class DiscordAPI(MockAPI):
    """`limited`: it counts calls, and says in its headers how many are left."""

    def __init__(self, *, limited: bool = False) -> None:
        super().__init__()
        #: Calls that were refused because nothing was left.
        self.refused_count = 0
        self._limited = limited
        self._buckets: dict[str, tuple[float, int]] = {}
        self.messages: list[Posted] = []
        #: Tokens of interactions that think.
        self.thinking: set[str] = set()
        #: Tokens whose fifteen minutes are over, or that Discord ended before.
        self.expired: set[str] = set()
        #: Whether the next limit is the whole bot's.
        self.is_global = False
        #: Tokens whose interaction's answer was deleted.
        self.deleted: set[str] = set()
        self.commands: list[Payload] = []
        self.endpoint: str | None = None
        self.public_key = ""
        #: Codes of the next refusals, by the name of a call.
        self.refusals: dict[str, list[int]] = {}
        #: Attachments by their path.
        self.files: dict[str, bytes] = {}
        self._by_nonce: dict[str, Posted] = {}

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    def attach(self, data: bytes, mime: str, *, good_s: float = 86_400) -> Payload:
        """Keep what somebody sent, and return it as an attachment of a message."""
        path = f"/attachments/{CHANNEL_ID}/{next(_numbers)}/file"
        self.files[path] = data
        until = f"{int(time.time() + good_s):x}"
        query = f"ex={until}&is={int(time.time()):x}&hm={_signed(path, until)}"
        described = {"filename": "file", "content_type": mime, "size": len(data)}
        return {"id": path.split("/")[3], "url": f"{self.url}{path}?{query}", **described}

    def name(self, call: Call) -> str:
        """`original`, `edit`, `delete`, `followup`, `bot`, `commands` or `application`."""
        parts = call.path.strip("/").split("/")
        match call.verb, parts:
            case "DELETE", ["webhooks", *_]:
                return "delete"
            case "PATCH", ["webhooks", _, _, "messages", message]:
                return "original" if message == "@original" else "edit"
            case "POST", ["webhooks", _, _]:
                return "followup"
            case "POST", ["channels", _, "messages"]:
                return "bot"
            case "GET", ["attachments", *_]:
                return "attachment"
            case _, [*_, "commands"]:
                return "commands"
        return "application"

    def limited(self, retry_after_s: float) -> Reply:
        body = {"message": "You are being rate limited.", "retry_after": retry_after_s}
        data = {**body, "global": self.is_global}
        return Reply(429, data, {"Retry-After": str(int(retry_after_s))})

    def answer(self, call: Call) -> Reply:
        name = self.name(call)
        if name == "attachment":
            return self._attachment(call)
        if not call.headers.get("user-agent", "").startswith("DiscordBot ("):
            return _refuse(403, 40333)
        if not self._limited or name in ("application", "commands"):
            return self._answer(name, call)
        now, bucket = time.monotonic(), call.path.rpartition("/messages")[0] or call.path
        ends_at, left = self._buckets.get(bucket, (0.0, 0))
        if now >= ends_at:
            ends_at, left = now + BUCKET_S, BUCKET
        self._buckets[bucket] = ends_at, max(left - 1, 0)
        if not left:
            self.refused_count += 1
            return self.limited(1)
        reply = self._answer(name, call)
        limit = {"X-RateLimit-Limit": str(BUCKET), "X-RateLimit-Remaining": str(left - 1)}
        return replace(reply, headers={**limit, "X-RateLimit-Reset-After": f"{ends_at - now:.3f}"})

    def _attachment(self, call: Call) -> Reply:
        """The CDN, whose addresses are signed until a time. It is another host: a token there would
        be given away."""
        until = call.query.get("ex", "0")
        is_signed = call.query.get("hm") == _signed(call.path, until)
        if not is_signed or int(until, 16) < time.time() or "authorization" in call.headers:
            return Reply(404, b"This content is no longer available.")
        return Reply(200, self.files[call.path])

    def _answer(self, name: str, call: Call) -> Reply:
        if self.refusals.get(name):
            return _refuse(403, self.refusals[name].pop(0))
        if name in ("original", "edit", "delete", "followup"):
            return self._by_token(name, call)
        if call.headers.get("authorization") != f"Bot {BOT_TOKEN}":
            return Reply(401, {"message": "401: Unauthorized", "code": 0})
        if name == "bot":
            return self._by_bot(call.given)
        return self._about_application(name, call)

    def _by_token(self, name: str, call: Call) -> Reply:
        _, application, token, *rest = call.path.strip("/").split("/")
        if application != APPLICATION_ID or token in self.expired:
            return _refuse(401, 50027)
        if name == "followup" and token in self.thinking:
            # As Discord has it: the first one takes the place of "thinking…".
            name, rest = "original", ["messages", "@original"]
        if name == "followup":
            return self._post("followup", call.given)
        if name == "delete":
            if token in self.deleted:
                return _refuse(404, 10008)
            self.thinking.discard(token)
            self.deleted.add(token)
            return Reply(204)
        found = [m for m in self.messages if rest[-1] in (m.message_id, "@original")]
        if name == "original":
            if token in self.deleted:
                return _refuse(404, 10008)
            found = [m for m in self.messages if m.way == "original" and m.message_id[1:] == token]
            if not found:
                self.thinking.discard(token)
                return self._post("original", call.given, f"o{token}")
        if not found:
            return _refuse(404, 10008)
        return self._show(found[0], call.given)

    def _by_bot(self, given: Payload) -> Reply:
        nonce = given.get("nonce", "")
        if len(nonce) > MAX_NONCE:
            return _refuse(400, 50035)
        if given.get("enforce_nonce") and (known := self._by_nonce.get(nonce)) is not None:
            return Reply(200, {"id": known.message_id})
        reply = self._post("bot", given)
        if reply.status == 200:
            self._by_nonce[nonce] = self.messages[-1]
        return reply

    def _post(self, way: str, given: Payload, message_id: str | None = None) -> Reply:
        posted = Posted(message_id or str(next(_numbers)), way)
        reply = self._show(posted, given)
        if reply.status == 200:
            self.messages.append(posted)
        return reply

    def _show(self, posted: Posted, given: Payload) -> Reply:
        text = given["content"]
        buttons = [each["custom_id"] for row in given["components"] for each in row["components"]]
        is_wrong = any(len(each) > MAX_CUSTOM_ID for each in buttons) or len(buttons) > 5
        if not 0 < len(text) <= MAX_TEXT or is_wrong or given["allowed_mentions"]["parse"]:
            return _refuse(400, 50035)
        posted.history.append(text)
        posted.buttons = buttons
        return Reply(200, {"id": posted.message_id, "content": text})

    def _about_application(self, name: str, call: Call) -> Reply:
        if name == "commands":
            if call.verb == "PUT":
                assert isinstance(call.given, list)
                self.commands = [{"type": 1, **command} for command in call.given]
            return Reply(200, self.commands)
        if call.verb == "PATCH":
            self.endpoint = call.given["interactions_endpoint_url"]
        about = {"id": APPLICATION_ID, "name": "Turnmill", "verify_key": self.public_key}
        return Reply(200, {**about, "interactions_endpoint_url": self.endpoint})


def _signed(path: str, until: str) -> str:
    return hashlib.sha256(f"{path} {until} {BOT_TOKEN}".encode()).hexdigest()


def _refuse(status: int, code: int) -> Reply:
    return Reply(status, {"message": "refused", "code": code})
