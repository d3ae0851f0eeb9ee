"""WhatsApp's Cloud API: https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks

One request holds a batch: entries, their changes, their messages. What cannot be read of it is left
out, so that it holds up nothing else.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from turnmill.producer.channels.base import (
    JSON,
    Answer,
    Parsed,
    Request,
    content_of,
    read_json,
    remote_files,
)
from turnmill.producer.converse import Received
from turnmill.schemas.channels.buttons import read_button
from turnmill.schemas.channels.events import Address, Event, Origin, Rating, UserMessage
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection
from turnmill.schemas.channels.signatures import are_equal, sign_whatsapp
from turnmill.schemas.errors import BadSignature

_FILES = ("image", "document", "audio", "video", "sticker")
_SCORES: dict[str, Literal[-1, 0, 1]] = {"👍": 1, "👎": -1, "": 0}
#: What nobody said: a changed number, a kind that the API does not know.
_SERVICE = ("system", "unsupported", "unknown", "request_welcome")


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Text(_Payload):
    body: str = ""


class _Media(_Payload):
    #: The delivery process fetches it by this, within 30 days.
    id: str = ""
    caption: str = ""
    filename: str | None = None
    mime_type: str | None = None


class _Reply(_Payload):
    id: str = ""


class _Interactive(_Payload):
    button_reply: _Reply = _Reply()


class _Reaction(_Payload):
    message_id: str
    #: Empty when it is taken back.
    emoji: str = ""


class _Message(_Payload):
    id: str
    sender: str = Field(alias="from")
    type: str
    text: _Text = _Text()
    interactive: _Interactive = _Interactive()
    reaction: _Reaction | None = None
    image: _Media | None = None
    document: _Media | None = None
    audio: _Media | None = None
    video: _Media | None = None
    sticker: _Media | None = None


class WhatsAppChannel:
    max_body_bytes = 3 * 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"GET", "POST"})

    def __init__(self, name: str, section: WhatsAppSection) -> None:
        self._name = name
        self._number = section.phone_number_id
        self._secret = section.app_secret.read()
        self._verify_token = section.verify_token.read().get_secret_value()

    def verify(self, request: Request) -> None:
        """Meta signs the body, not the time: a batch that is sent again is known by the ids of its
        messages. The address itself is verified by GET with a token of our making."""
        if request.method == "GET":
            given = request.query.get("hub.verify_token", "")
            is_asked = request.query.get("hub.mode") == "subscribe"
            if not is_asked or not are_equal(given, self._verify_token):
                raise BadSignature("The verify token is missing or wrong.")
            return
        given = request.headers.get("x-hub-signature-256", "")
        if not are_equal(given, sign_whatsapp(self._secret, request.body)):
            raise BadSignature("The signature is missing or wrong. Compare the app secret.")

    def parse(self, request: Request) -> Parsed:
        if request.method == "GET":
            challenge = request.query.get("hub.challenge", "")[:1000]
            return Parsed(ignored="challenge", answer=Answer(challenge.encode(), "text/plain"))
        found = list(self._read(read_json(request.body)))
        events = tuple(each for each in found if not isinstance(each, str))
        words = [each for each in found if isinstance(each, str)]
        return Parsed(events, ignored=words[0] if words else "unknown")

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer

    def _read(self, payload: dict[str, object]) -> Iterator[Event | str]:
        """Read a batch; a word instead of an event says why there is none."""
        for change in _tables(payload, "entry", "changes"):
            value = change.get("value")
            if change.get("field") == "smb_message_echoes":
                # What the business wrote itself, in its app.
                yield "own"
            elif change.get("field") == "messages" and isinstance(value, dict):
                metadata = value.get("metadata")
                number = metadata.get("phone_number_id") if isinstance(metadata, dict) else None
                if number != self._number:
                    yield "other_number"
                elif "messages" not in value:
                    yield "status" if "statuses" in value else "unknown"
                yield from map(
                    self._message, _tables(value, "messages") if number == self._number else ()
                )

    def _message(self, given: dict[str, object]) -> Event | str:
        try:
            message = _Message.model_validate(given)
            return self._event(message)
        except ValidationError:
            return "unknown"

    def _event(self, message: _Message) -> Event | str:
        target = {"to": message.sender, "message": message.id}
        common: Origin = {
            "event_id": message.id,
            "author": message.sender,
            "address": Address(channel=self._name, thread=message.sender, target=target),
        }
        if message.type in _SERVICE:
            return "service"
        if message.type == "interactive" and (value := message.interactive.button_reply.id):
            return read_button(value, **common) or "action"
        if message.reaction is not None:
            score = _SCORES.get(message.reaction.emoji[:1])
            if score is None:
                return "reaction"
            return Rating(**common, message_id=message.reaction.message_id, score=score)
        files = [(name, file) for name in _FILES if (file := getattr(message, name)) is not None]
        text = message.text.body or next((file.caption for _, file in files), "")
        named = [(file.filename or name, file.mime_type) for name, file in files]
        content = content_of(text.strip(), named)
        # Stickers are no pictures of anything, and nothing reads videos.
        readable = [file for name, file in files if name in ("image", "document", "audio")]
        return UserMessage(
            **common,
            content=content,
            files=remote_files(
                (file.mime_type or "", file.id, file.filename or "") for file in readable
            ),
        )


def _tables(value: object, *names: str) -> list[dict[str, object]]:
    """The tables in lists within lists; what is of another shape is left out."""
    found = [value] if isinstance(value, dict) else []
    for name in names:
        lists = [each.get(name) for each in found]
        found = [
            each for one in lists if isinstance(one, list) for each in one if isinstance(each, dict)
        ]
    return found
