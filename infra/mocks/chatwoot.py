"""Chatwoot: the events that it sends to an agent bot, and the calls that a bot may make.

As in the source of Chatwoot 4.13 and later: https://github.com/chatwoot/chatwoot
"""

import json
import re
import secrets
import time
from dataclasses import dataclass, field

from pydantic import SecretStr

from turnmill.infra.mocks.sending import JSON, Payload, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.schemas.channels.signatures import sign_chatwoot

ACCOUNT, CONVERSATION = 1, 12
BOT_TOKEN = "made-up-bot-token"  # noqa: S105
#: Characters (`validates :content` of a message).
MAX_CONTENT = 150_000
#: Messages that come with a conversation.
_SHOWN = 10

_PATH = re.compile(rf"/api/v1/accounts/{ACCOUNT}/conversations/(\d+)(?:/([a-z_]+))?")
_CODE = re.compile(r"`.*?`", re.DOTALL)
_OUTPUT = re.compile(r"\{\{\s*(?:'([^']*)')?.*?\}\}", re.DOTALL)

CONTACT: Payload = {"id": 5, "name": "Alice", "email": "alice@example.com"}
AGENT: Payload = {"id": 3, "name": "Ada", "email": "ada@example.com", "type": "user"}
BOT: Payload = {"id": 2, "name": "Turnmill", "type": "agent_bot"}


def sign(secret: str, body: bytes, *, at: float | None = None) -> Signed:
    """Sign a body as of now, or of another time (Unix seconds)."""
    timestamp = str(int(time.time() if at is None else at))
    signature = sign_chatwoot(SecretStr(secret), timestamp, body)
    headers = {
        "Content-Type": JSON,
        "X-Chatwoot-Delivery": secrets.token_hex(16),
        "X-Chatwoot-Timestamp": timestamp,
        "X-Chatwoot-Signature": signature,
    }
    return Signed(headers, body)


def encode(payload: Payload) -> bytes:
    return json.dumps(payload).encode()


def conversation(status: str = "pending", number: int = CONVERSATION, **fields: object) -> Payload:
    now = time.time()
    return {
        "additional_attributes": {},
        "can_reply": True,
        "channel": "Channel::WebWidget",
        "contact_inbox": {"id": 7, "contact_id": 5, "inbox_id": 4, "source_id": "made-up"},
        "id": number,
        "inbox_id": 4,
        "labels": [],
        "meta": {"sender": CONTACT, "assignee": None, "hmac_verified": False},
        "status": status,
        "custom_attributes": {},
        "unread_count": 1,
        "timestamp": int(now),
        "created_at": int(now) - 60,
        "updated_at": now,
        **fields,
    }


def message(
    content: str | None, *, status: str = "pending", number: int = CONVERSATION, **fields: object
) -> Payload:
    """A customer's message, unless the fields say otherwise."""
    return {
        "account": {"id": ACCOUNT, "name": "ACME"},
        "additional_attributes": {},
        "content_attributes": {},
        "content_type": "text",
        "content": content,
        "conversation": conversation(status, number),
        "created_at": "2026-11-29T12:00:00.000Z",
        "id": secrets.randbelow(2**40),
        "inbox": {"id": 4, "name": "Website"},
        "message_type": "incoming",
        "private": False,
        "sender": CONTACT,
        "source_id": None,
        "event": "message_created",
        **fields,
    }


def by_agent(content: str, *, status: str = "open", **fields: object) -> Payload:
    """A message of the team's."""
    sent: Payload = {"message_type": "outgoing", "sender": AGENT}
    return message(content, status=status, **(sent | fields))


def changed(status: str, number: int = CONVERSATION) -> Payload:
    """A conversation was opened or resolved."""
    name = {"open": "conversation_opened", "resolved": "conversation_resolved"}[status]
    return {**conversation(status, number), "event": name}


def render(content: str) -> str:
    """What Liquid leaves of a message: nothing of the contact is at hand here."""
    kept: list[str] = []
    end = 0
    for code in _CODE.finditer(content):
        kept += [_OUTPUT.sub(r"\1", content[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*kept, _OUTPUT.sub(r"\1", content[end:])])


@dataclass
class Held:
    """A conversation of the mock."""

    status: str = "pending"
    typing: str = "off"
    messages: list[Payload] = field(default_factory=list)

    def say(self, content: str, **fields: object) -> Payload:
        said = {"id": 1000 + len(self.messages), "content": content, "content_attributes": {}}
        self.messages.append(said | fields)
        return self.messages[-1]


class ChatwootAPI(MockAPI):
    def __init__(self) -> None:
        super().__init__()
        self.conversations = {CONVERSATION: Held()}
        #: What a bot may not do on this release.
        self.forbidden: set[str] = set()
        #: Statuses of refusals of the next calls.
        self.errors: list[int] = []

    @property
    def held(self) -> Held:
        return self.conversations[CONVERSATION]

    @property
    def texts(self) -> list[str]:
        """What the bot wrote."""
        return [str(each["content"]) for each in self._written(is_private=False)]

    @property
    def notes(self) -> list[str]:
        """What it wrote for the team alone."""
        return [str(each["content"]) for each in self._written(is_private=True)]

    def _written(self, *, is_private: bool) -> list[Payload]:
        said = (each for each in self.held.messages if each.get("sender") == BOT)
        return [each for each in said if each["private"] is is_private]

    def name(self, call: Call) -> str:
        """`read`, or the last part of the path."""
        match = _PATH.fullmatch(call.path)
        return (match and match[2]) or "read"

    def limited(self, retry_after_s: float) -> Reply:
        return Reply(429, {}, {"Retry-After": str(int(retry_after_s))})

    def answer(self, call: Call) -> Reply:
        if call.headers.get("api_access_token") != BOT_TOKEN:
            return Reply(401, {"error": "Invalid Access Token"})
        if self.name(call) in self.forbidden:
            error = "Access to this endpoint is not authorized for bots"
            return Reply(401, {"error": error})
        if self.errors:
            return Reply(self.errors.pop(0), {"error": "refused"})
        match = _PATH.fullmatch(call.path)
        held = self.conversations.get(int(match[1])) if match else None
        if held is None:
            return Reply(404, {"error": "Resource could not be found"})
        return self._do(self.name(call), held, call.given)

    def _do(self, name: str, held: Held, given: Payload) -> Reply:
        match name:
            case "messages":
                return _create(held, given)
            case "toggle_status":
                held.status = given["status"]
            case "toggle_typing_status":
                held.typing = given["typing_status"]
                return Reply(200)
            case "read":
                last = held.messages[-1] if held.messages else None
                shown = {"messages": held.messages[-_SHOWN:], "last_non_activity_message": last}
                return Reply(200, {"status": held.status, **shown})
        return Reply(200, {"payload": {"success": True, "current_status": held.status}})


def _create(held: Held, given: Payload) -> Reply:
    content = render(given["content"])
    if len(content) > MAX_CONTENT:
        return Reply(422, {"error": "Content is too long (maximum is 150000 characters)"})
    attributes = given.get("content_attributes") or {}
    said = held.say(
        content, sender=BOT, content_attributes=attributes, private=bool(given.get("private"))
    )
    return Reply(200, said)
