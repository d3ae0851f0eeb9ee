"""Any system's events, signed as Standard Webhooks are.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from turnmill.producer.channels.base import JSON, Answer, Parsed, Request, read_json
from turnmill.producer.converse import Received
from turnmill.schemas.channels.events import (
    MAX_TEXT,
    Address,
    Command,
    Event,
    Id,
    Origin,
    Rating,
    UserMessage,
)
from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.channels.sections.webhook import WebhookSection
from turnmill.schemas.channels.signatures import (
    are_equal,
    is_in_window,
    sign_webhook,
    webhook_key,
)
from turnmill.schemas.errors import BadSignature, InvalidInput
from turnmill.schemas.ids import Prefix, show_id

#: What our own webhooks have for a type: one that comes back would be answered for ever.
_OURS = "turnmill."


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    thread: Id
    author: Id
    #: A program wrote it, so it is not answered.
    is_bot: bool = False
    #: Sent back with each reply, beside `thread`.
    context: dict[str, Annotated[str, StringConstraints(max_length=2000)]] = Field(
        default_factory=dict, max_length=15
    )


class _Message(_Body):
    type: Literal["message"]
    text: str = Field(max_length=MAX_TEXT)


class _Command(_Body):
    type: Literal["command"]
    name: CommandName


class _Rating(_Body):
    type: Literal["rating"]
    turn_id: Annotated[str, StringConstraints(pattern=rf"^{Prefix.TURN}_[0-9a-f]{{32}}$")]
    score: Literal[-1, 0, 1]
    comment: Annotated[str, StringConstraints(max_length=2000)] | None = None


_TYPES = ("message", "command", "rating")
_BODY: TypeAdapter[_Message | _Command | _Rating] = TypeAdapter(
    Annotated[_Message | _Command | _Rating, Field(discriminator="type")]
)


class WebhookChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: WebhookSection) -> None:
        self._name = name
        self._key = webhook_key(section.secret.read())

    def verify(self, request: Request) -> None:
        """One of the signatures must be right: there are several while a secret is changed."""
        headers = request.headers
        event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not 0 < len(event_id) <= 255:
            raise BadSignature("The header webhook-id is missing or too long.")
        if not is_in_window(timestamp, request.arrived_at):
            raise BadSignature("The timestamp is missing, or more than 5 minutes off.")
        expected = sign_webhook(self._key, event_id, timestamp, request.body)
        given = headers.get("webhook-signature", "").split(" ")
        if not any(are_equal(each, expected) for each in given):
            raise BadSignature("The signature is missing or wrong. Compare the secret.")

    def parse(self, request: Request) -> Parsed:
        payload = {"type": "message", **read_json(request.body)}
        kind = str(payload["type"])
        if kind.startswith(_OURS):
            return Parsed(ignored="own")
        if kind not in _TYPES:
            return Parsed()
        body = _read(payload)
        if body.is_bot:
            return Parsed(ignored="bot")
        return Parsed((self._event(request.headers["webhook-id"], body),))

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        """Say what became of the event, and under which ids."""
        (found,) = received
        shown: dict[str, object] = {"outcome": found.kind}
        if found.conversation_id is not None:
            shown["conversation_id"] = show_id(Prefix.CONVERSATION, found.conversation_id)
        if found.turn_id is not None:
            shown["turn_id"] = show_id(Prefix.TURN, found.turn_id)
        return Answer(json.dumps(shown).encode(), JSON)

    def _event(self, event_id: str, body: _Message | _Command | _Rating) -> Event:
        common: Origin = {
            "event_id": event_id,
            "author": body.author,
            "address": Address(
                channel=self._name,
                thread=body.thread,
                target={**body.context, "thread": body.thread},
            ),
        }
        match body:
            case _Message():
                return UserMessage(**common, content=body.text.strip())
            case _Command():
                return Command(**common, name=body.name)
            case _Rating():
                return Rating(
                    **common, turn_id=body.turn_id, score=body.score, comment=body.comment
                )


def _read(payload: dict[str, object]) -> _Message | _Command | _Rating:
    """Read a body, whose author is somebody who can mend it. Raises `InvalidInput`."""
    try:
        return _BODY.validate_python(payload)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part not in _TYPES)
        raise InvalidInput(f"{field}: {first['msg']}", param=field) from None
