"""An outgoing webhook's messages, and a workflow that posts cards.

https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/add-outgoing-webhook
"""

import json
import time
from dataclasses import dataclass

from pydantic import SecretStr

from turnmill.infra.mocks.sending import JSON, Payload, Signed
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.schemas.channels.signatures import sign_teams, teams_key

#: Of Microsoft's example.
TOKEN = "vqF0En+Z0ucuRTM/01o2GuhMH3hKKk/N2bOmlM31zaA="  # noqa: S105
CHANNEL = "19:general@thread.tacv2"
THREAD = f"{CHANNEL};messageid=1700000000001"
#: Bytes of a request.
MAX_REQUEST = 28 * 1024


def message(text: str, /, **fields: object) -> Payload:
    """Somebody mentioned the webhook in a channel."""
    said: Payload = {
        "type": "message",
        "id": str(time.time_ns() // 1000),
        "timestamp": "2026-11-29T10:00:00.000Z",
        "channelId": "msteams",
        "serviceUrl": "https://smba.trafficmanager.net/emea/",
        "from": {"id": "29:1alice", "name": "Alice", "aadObjectId": "0a1b"},
        "conversation": {"isGroup": True, "id": THREAD, "name": None},
        "recipient": None,
        "textFormat": "plain",
        "text": f"<at>Turnmill</at> {text}",
        "attachments": [{"contentType": "text/html", "content": "<div></div>"}],
        "entities": [{"type": "clientInfo", "locale": "en-US"}],
    }
    return said | fields


def sign(token: str, body: bytes) -> Signed:
    signature = sign_teams(teams_key(SecretStr(token)), body)
    return Signed({"Content-Type": JSON, "Authorization": signature}, body)


@dataclass
class Card:
    elements: list[Payload]

    @property
    def text(self) -> str:
        return "\n".join(each.get("text") or each["codeSnippet"] for each in self.elements)


class Workflow(MockAPI):
    """The template "Post to a channel when a webhook request is received"."""

    def __init__(self) -> None:
        super().__init__()
        self.cards: list[Card] = []
        #: Statuses of the next answers.
        self.statuses: list[int] = []
        #: An incoming webhook of before, which says its limits in words.
        self.is_legacy = False

    @property
    def address(self) -> str:
        return f"{self.url}/workflows/1/triggers/manual/paths/invoke?sig=made-up"

    @property
    def texts(self) -> list[str]:
        return [each.text for each in self.cards]

    def name(self, call: Call) -> str:
        return "post"

    def limited(self, retry_after_s: float) -> Reply:
        if self.is_legacy:
            said = (
                "Webhook message delivery failed: Microsoft Teams endpoint returned HTTP error 429"
            )
            return Reply(200, {"message": said})
        return Reply(429, {}, {"Retry-After": str(int(retry_after_s))})

    def answer(self, call: Call) -> Reply:
        if self.statuses:
            return Reply(self.statuses.pop(0), {})
        if len(json.dumps(call.given).encode()) > MAX_REQUEST:
            return Reply(413, {})
        for attachment in call.given["attachments"]:
            content = attachment["content"]
            if content["type"] != "AdaptiveCard" or not content["body"]:
                return Reply(400, {})
            self.cards.append(Card(content["body"]))
        return Reply(202, {})
