"""Activities in Teams' form, and the token that comes with each.

https://learn.microsoft.com/microsoftteams/platform/bots/how-to/conversations/conversation-messages
"""

import json
import secrets
import time
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from turnmill.infra.mocks.sending import JSON, Payload, Signed
from turnmill.infra.mocks.teams.keys import KEY_ID, private_key
from turnmill.schemas.channels.teams import ISSUER

APP_ID, APP_SECRET = "00000000-0000-4000-8000-000000000001", "made-up-client-secret"
TENANT = "00000000-0000-4000-8000-000000000002"
#: A token is good for an hour, seconds.
TOKEN_S = 3600


@dataclass(frozen=True, slots=True)
class Chat:
    """A bot, a person, their chat, a group chat and a channel."""

    #: Where the bot is to answer: `https://smba.trafficmanager.net/emea/`.
    service: str
    app_id: str = APP_ID
    user: str = "29:1alice"
    direct: str = "a:1chat-of-alice"
    group: str = "19:group@thread.v2"
    channel: str = "19:general@thread.tacv2"

    def activity(self, kind: str, **fields: object) -> Payload:
        """An activity in the direct chat, unless the fields say otherwise."""
        return {
            "type": kind,
            "id": str(time.time_ns() // 1000),
            "timestamp": "2026-11-29T10:00:00.000Z",
            "channelId": "msteams",
            "serviceUrl": self.service,
            "from": {"id": self.user, "name": "Alice", "aadObjectId": "0a1b"},
            "recipient": {"id": self.bot, "name": "Turnmill"},
            "conversation": self.place(self.direct, "personal"),
            **fields,
        }

    @property
    def bot(self) -> str:
        return f"28:{self.app_id}"

    def place(self, conversation: str, kind: str) -> Payload:
        group = {} if kind == "personal" else {"isGroup": True}
        return {"id": conversation, "conversationType": kind, "tenantId": TENANT, **group}

    def message(self, text: str, /, **fields: object) -> Payload:
        """Somebody wrote to the bot. Teams adds the text as HTML."""
        html = [{"contentType": "text/html", "content": f"<p>{text[:1000]}</p>"}]
        client = [{"type": "clientInfo", "locale": "en-US", "platform": "Web"}]
        written: Payload = {"text": text, "textFormat": "plain", "locale": "en-US"}
        written |= {"entities": client, "attachments": html}
        return self.activity("message", **(written | fields))

    def mention(
        self, text: str, thread: str | None = "1700000000001", /, **fields: object
    ) -> Payload:
        """Somebody mentioned the bot, in a channel's thread or in the group chat (None)."""
        entity = {"type": "mention", "text": "<at>Turnmill</at>"}
        entities = [{**entity, "mentioned": {"id": self.bot, "name": "Turnmill"}}]
        place = self.place(self.group, "groupChat")
        if thread is not None:
            place = self.place(f"{self.channel};messageid={thread}", "channel")
        given: Payload = {"entities": entities, "conversation": place}
        return self.message(f"<at>Turnmill</at> {text}", **(given | fields))

    def file(self, name: str = "parcel.pdf", url: str = "https://download.link") -> Payload:
        """A file of a personal chat, in the sender's OneDrive."""
        kind = "application/vnd.microsoft.teams.file.download.info"
        place = "https://contoso-my.sharepoint.com/personal/alice/Documents"
        content = {"downloadUrl": url, "uniqueId": "1150D938", "fileType": name.rpartition(".")[2]}
        return {
            "contentType": kind, "name": name, "contentUrl": f"{place}/{name}", "content": content
        }  # fmt: skip

    def picture(self, url: str) -> list[Payload]:
        """A picture that was pasted into the text, and the text as HTML."""
        html = '<p><img src="https://us-api.asm.skype.com/v1/objects/1/views/imgo"></p>'
        return [
            {"contentType": "image/*", "contentUrl": url},
            {"contentType": "text/html", "content": html},
        ]

    def pressed(self, value: Payload, **fields: object) -> Payload:
        """Somebody pressed a button of a card."""
        return self.activity("message", value=value, replyToId="1", **fields)

    def judged(
        self, message: str, reaction: str = "like", comment: str = "", **fields: object
    ) -> Payload:
        """Somebody pressed a thumb under a message."""
        feedback = json.dumps({"feedbackText": comment})
        given = {"reaction": reaction, "feedback": feedback}
        value = {"actionName": "feedback", "actionValue": given}
        name = "message/submitAction"
        return self.activity("invoke", name=name, value=value, replyToId=message, **fields)

    def reacted(self, message: str, reaction: str = "like", *, is_removed: bool = False) -> Payload:
        field = "reactionsRemoved" if is_removed else "reactionsAdded"
        return self.activity("messageReaction", replyToId=message, **{field: [{"type": reaction}]})


def encode(payload: Payload) -> bytes:
    return json.dumps(payload).encode()


def claims(service: str, app_id: str = APP_ID, **changes: object) -> Payload:
    """What the Bot Framework says in a token."""
    now = int(time.time())
    times = {"nbf": now, "exp": now + TOKEN_S}
    return {"iss": ISSUER, "aud": app_id, "serviceurl": service, **times, **changes}


def sign(
    body: bytes,
    said: Payload,
    key: RSAPrivateKey | None = None,
    key_id: str = KEY_ID,
) -> Signed:
    """Give an activity a token of these claims."""
    headers = {"kid": key_id, "x5t": key_id}
    token = jwt.encode(said, key or private_key(), algorithm="RS256", headers=headers)
    return Signed({"Content-Type": JSON, "Authorization": f"Bearer {token}"}, body)


def new_message_id() -> str:
    return str(secrets.randbelow(10**13) + 10**12)
