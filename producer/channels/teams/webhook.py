"""Teams' outgoing webhooks: messages of one team's channels that mention the webhook.

Teams waits five seconds for an answer and shows its text below the question; a reply that comes
later has to be posted by other means, which the section names. An outgoing webhook has no other
API: https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/add-outgoing-webhook
"""

import json
import re
from collections.abc import Sequence

from pydantic import ValidationError

from turnmill.producer.channels.base import JSON, Answer, Parsed, Request, content_of, read_json
from turnmill.producer.channels.teams.payloads import Said
from turnmill.producer.channels.teams.texts import text_of
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.events import Address, UserMessage
from turnmill.schemas.channels.sections.teams_webhook import TeamsWebhookSection
from turnmill.schemas.channels.signatures import are_equal, sign_teams, teams_key
from turnmill.schemas.channels.teams import message_key
from turnmill.schemas.errors import BadSignature

#: The webhook's own mention, with which every message to it begins.
_MENTION = re.compile(r"^(?:\s|&nbsp;)*<at\b[^>]*>[^<]*</at>")
#: Of a message after which no reply follows: a notice may.
_RECEIVED = "Received."
_ANSWERED = frozenset({Kind.ACCEPTED, Kind.COLLECTED, Kind.DUPLICATE})


class TeamsWebhookChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: TeamsWebhookSection) -> None:
        self._name = name
        self._key = teams_key(section.token.read())
        # A missing one is to be found here, though only replies need it.
        section.reply_url.read()
        self._acknowledgement = section.acknowledgement

    def verify(self, request: Request) -> None:
        """Check the HMAC of the body. No time is signed: a message that is sent again is known by
        its id."""
        given = request.headers.get("authorization", "")
        if not are_equal(given, sign_teams(self._key, request.body)):
            raise BadSignature("The signature is missing or wrong. Compare the security token.")

    def parse(self, request: Request) -> Parsed:
        payload = read_json(request.body)
        try:
            said = Said.model_validate(payload)
            found = self._read(said)
        except ValidationError:
            return Parsed()
        return Parsed(ignored=found) if isinstance(found, str) else Parsed((found,))

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        is_answered = any(each.kind in _ANSWERED for each in received)
        text = self._acknowledgement if is_answered else _RECEIVED
        return Answer(json.dumps({"type": "message", "text": text}).encode(), JSON)

    def _read(self, said: Said) -> UserMessage | str:
        """Read a message. Raises pydantic's `ValidationError`."""
        if said.type != "message":
            return "unknown"
        if said.sender.role == "bot" or said.sender.id.startswith("28:"):
            return "own"
        thread = said.conversation.id
        text = text_of(_MENTION.sub("", said.text or "", count=1), said.entities, bot="")
        return UserMessage(
            event_id=message_key(thread, said.id),
            address=Address(
                channel=self._name,
                thread=thread,
                target={"conversation": thread, "message": said.id},
            ),
            author=said.sender.id,
            content=content_of(text, said.files),
        )
