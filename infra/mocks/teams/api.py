"""Microsoft's services on this machine: signing keys, tokens, and Teams' Bot Connector.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-api-reference
"""

import json
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from urllib.parse import unquote

from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.infra.mocks.teams.activities import APP_ID, APP_SECRET, new_message_id
from turnmill.infra.mocks.teams.keys import public_jwk
from turnmill.schemas.channels.teams import ISSUER, SCOPE

#: Bytes of a message, in UTF-16.
MAX_MESSAGE = 28 * 1024
#: Calls in one conversation within a second.
MAX_PER_S = 7
_DRIVE = "/onedrive/"
_OPENID, _KEYS = "/v1/.well-known/openidconfiguration", "/v1/.well-known/keys"


@dataclass
class Posted:
    """A message of the bot. `history` has every text that it had."""

    activity_id: str
    conversation: str
    given: Payload
    history: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.history[-1]

    @property
    def buttons(self) -> list[dict[str, object]]:
        cards = self.given.get("attachments", [])
        return [action for card in cards for action in card["content"]["actions"]]


class Refusal(Exception):
    """The connector's own code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class TeamsAPI(MockAPI):
    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.messages: list[Posted] = []
        #: Tokens that are good now.
        self.tokens: set[str] = set()
        #: Errors of the connector's next calls.
        self.errors: list[tuple[int, str]] = []
        #: What people sent: pictures, which the connector has, and files in their OneDrive.
        self.pictures: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self._called: dict[str, list[float]] = defaultdict(list)

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    @property
    def service(self) -> str:
        """As activities name it."""
        return f"{self.url}/teams/"

    def picture_url(self, name: str) -> str:
        return f"{self.service}v3/attachments/{name}/views/original"

    def file_url(self, name: str) -> str:
        """Whoever has the address has the file."""
        return f"{self.url}{_DRIVE}{name}?tempauth=made-up"

    def name(self, call: Call) -> str:
        """`metadata`, `keys`, `token`, `media`, `download`, `typing`, `send` or `update`."""
        if call.path.startswith(_DRIVE):
            return "download"
        if "/v3/attachments/" in call.path:
            return "media"
        if call.path in (_OPENID, _KEYS):
            return "metadata" if call.path == _OPENID else "keys"
        if call.path.endswith("/oauth2/v2.0/token"):
            return "token"
        if call.verb == "PUT":
            return "update"
        return "typing" if call.given.get("type") == "typing" else "send"

    def limited(self, retry_after_s: float) -> Reply:
        return Reply(429, _error("Throttled"), {"Retry-After": str(int(retry_after_s))})

    def answer(self, call: Call) -> Reply:
        match self.name(call):
            case "metadata":
                about = {"issuer": ISSUER, "jwks_uri": f"{self.url}{_KEYS}"}
                return Reply(200, {**about, "id_token_signing_alg_values_supported": ["RS256"]})
            case "keys":
                return Reply(200, {"keys": [public_jwk()]})
            case "token":
                return self._new_token(call)
            case "download":
                return self._download(call)
        try:
            return self._connect(call)
        except Refusal as refusal:
            return Reply(refusal.status, _error(refusal.code))

    def _new_token(self, call: Call) -> Reply:
        wanted = {"grant_type": "client_credentials", "scope": SCOPE}
        if call.given != {**wanted, "client_id": APP_ID, "client_secret": APP_SECRET}:
            return Reply(401, {"error": "invalid_client"})
        token = secrets.token_hex(16)
        self.tokens.add(token)
        return Reply(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def _download(self, call: Call) -> Reply:
        """Hand out a file of OneDrive, which the bot's token does not open."""
        if "authorization" in call.headers or call.query.get("tempauth") != "made-up":
            return Reply(401)
        name = call.path.removeprefix(_DRIVE)
        if name not in self.files:
            return Reply(404)
        return Reply(200, self.files[name], {"Content-Type": "application/octet-stream"})

    def _connect(self, call: Call) -> Reply:
        if call.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            raise Refusal(401, "Unauthorized")
        if self.errors:
            raise Refusal(*self.errors.pop(0))
        if self.name(call) == "media":
            picture = call.path.partition("/attachments/")[2].partition("/")[0]
            if picture not in self.pictures:
                raise Refusal(404, "ResourceNotFound")
            return Reply(200, self.pictures[picture], {"Content-Type": "image/png"})
        path = call.path.removeprefix("/teams").removeprefix("/v3/conversations/")
        conversation, _, rest = path.partition("/activities")
        conversation = unquote(conversation)
        if self._is_too_fast(conversation):
            return self.limited(1)
        return self._take(call, conversation, unquote(rest.removeprefix("/")))

    def _is_too_fast(self, conversation: str) -> bool:
        now = time.monotonic()
        recent = [at for at in self._called[conversation] if now - at < 1]
        self._called[conversation] = [*recent, now]
        return len(recent) >= MAX_PER_S

    def _take(self, call: Call, conversation: str, activity: str) -> Reply:
        given = call.given
        if len(json.dumps(given, ensure_ascii=False).encode("utf-16-le")) > MAX_MESSAGE:
            raise Refusal(413, "MessageSizeTooBig")
        if given["type"] == "typing":
            return Reply(201, {"id": new_message_id()})
        if not given.get("text") and not given.get("attachments"):
            raise Refusal(400, "BadSyntax")
        if call.verb == "PUT":
            known = (m for m in self.messages if m.activity_id == activity)
            if (posted := next(known, None)) is None:
                raise Refusal(404, "ActivityNotFoundInConversation")
        else:
            posted = Posted(new_message_id(), conversation, given)
            self.messages.append(posted)
        posted.given = given
        posted.history.append(given["text"])
        return Reply(200 if call.verb == "PUT" else 201, {"id": posted.activity_id})


def _error(code: str) -> dict[str, object]:
    return {"error": {"code": code, "message": "refused"}}
