"""Teams' requests to a bot: activities of the Bot Framework.

The Bot Framework waits 15 s for 2xx and sends an activity again once or twice; the answer to an
invoke (a judgement) is empty JSON.
https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bot-messages-ai-generated-content
"""

from collections.abc import Sequence

from pydantic import ValidationError

from turnmill.producer.channels.base import JSON, Answer, Parsed, Request, read_json
from turnmill.producer.channels.teams.events import read_event
from turnmill.producer.channels.teams.keys import SigningKeys
from turnmill.producer.channels.teams.payloads import Activity
from turnmill.producer.channels.teams.tokens import Tokens
from turnmill.producer.converse import Received
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import Services
from turnmill.schemas.errors import InvalidInput


class TeamsChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: TeamsSection) -> None:
        self._name = name
        self._app_id = section.app_id
        # A missing secret is to be found here, though only replies need it.
        section.app_secret.read()
        self._services = services = Services.of(section)
        self._tokens = Tokens(section.app_id, services, SigningKeys(services.openid_url))

    def verify(self, request: Request) -> None:
        """Check the token. It signs no body: an activity that is sent again is known by its id."""
        token = self._tokens.verify(request.headers.get("authorization", ""))
        try:
            activity = read_json(request.body)
        except InvalidInput:
            # `parse` says so.
            return
        token.check(activity)

    def parse(self, request: Request) -> Parsed:
        payload = read_json(request.body)
        answer = Answer(b"{}", JSON) if payload.get("type") == "invoke" else Answer()
        try:
            activity = Activity.model_validate(payload)
            found = read_event(self._name, self._app_id, self._services, activity)
        except ValidationError:
            return Parsed(answer=answer)
        if isinstance(found, str):
            return Parsed(ignored=found, answer=answer)
        return Parsed((found,), answer=answer)

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer
