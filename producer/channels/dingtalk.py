"""DingTalk's messages to a bot, in HTTP mode: https://open.dingtalk.com/document/orgapp/receive-message

DingTalk names no retries and no deadline. Its signature covers the time and not the body, so what
the body says is believed as far as a message of a person goes, and no further: the address to
answer at is taken only on DingTalk's own hosts.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from turnmill.producer.channels.base import (
    JSON,
    Answer,
    Parsed,
    Request,
    content_of,
    read_json,
    remote_files,
    type_of_name,
)
from turnmill.producer.converse import Received
from turnmill.schemas.channels.events import Address, Event, UserMessage
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection
from turnmill.schemas.channels.signatures import WINDOW_S, are_equal, sign_dingtalk
from turnmill.schemas.content import Content as MessageContent
from turnmill.schemas.errors import BadSignature

_DIRECT = "1"
#: The types of messages that are a file, or a picture.
_FILES = frozenset({"picture", "video", "file", "audio"})


#: Without one a message is read all the same.
Code = Annotated[str, BeforeValidator(lambda given: given if isinstance(given, str) else "")]


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Text(_Payload):
    content: str = ""


class Coded(_Payload):
    """What may be a file. The delivery process gets its address by a code, which is good for a
    while; a picture may have a second one.
    """

    downloadCode: Code = ""
    pictureDownloadCode: Code = ""

    @property
    def code(self) -> str:
        return self.downloadCode or self.pictureDownloadCode


class Piece(Coded):
    """A piece of rich text: a text, or a picture."""

    text: str | None = None
    type: str = ""


class Content(Coded):
    """Of every type but `text`."""

    fileName: str | None = None
    #: What DingTalk heard in a voice message.
    recognition: str = ""
    richText: tuple[Piece, ...] = ()


class Message(_Payload):
    """A message to the bot: in a direct chat, or one that mentions it in a group."""

    msgId: str
    msgtype: str
    conversationId: str
    conversationType: str
    senderId: str
    #: The person's id in the company; people from outside have none.
    senderStaffId: str = Field(default="", max_length=255)
    chatbotUserId: str = ""
    sessionWebhook: str = Field(default="", max_length=2000)
    #: Unix milliseconds.
    sessionWebhookExpiredTime: int = 0
    text: Text = Text()
    content: Content = Content()


class DingTalkChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: DingTalkSection) -> None:
        self._name = name
        self._secret = section.client_secret.read()
        self._api = _origin(section.api_url)

    def verify(self, request: Request) -> None:
        """DingTalk takes an hour for valid; five minutes are enough for a clock."""
        timestamp = request.headers.get("timestamp", "")
        if not _is_in_window(timestamp, request.arrived_at):
            raise BadSignature("The timestamp is missing, or more than 5 minutes off.")
        expected = sign_dingtalk(self._secret, timestamp)
        if not are_equal(request.headers.get("sign", ""), expected):
            raise BadSignature("The signature is missing or wrong. Compare the Client Secret.")

    def parse(self, request: Request) -> Parsed:
        payload = read_json(request.body)
        try:
            found = self._read(Message.model_validate(payload))
        except ValidationError:
            return Parsed()
        return Parsed(ignored=found) if isinstance(found, str) else Parsed((found,))

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer

    def _read(self, message: Message) -> Event | str:
        """Read a message. Raises pydantic's `ValidationError`."""
        if message.senderId == message.chatbotUserId:
            return "own"
        address = Address(
            channel=self._name, thread=message.conversationId, target=self._target(message)
        )
        return UserMessage(
            event_id=message.msgId,
            address=address,
            author=message.senderStaffId or message.senderId,
            content=_content(message),
            files=remote_files(_files(message)),
        )

    def _target(self, message: Message) -> dict[str, str]:
        target = {"conversation": message.conversationId}
        if message.conversationType == _DIRECT:
            target["user"] = message.senderStaffId
        if self._is_dingtalks(message.sessionWebhook):
            target["webhook"] = message.sessionWebhook
            target["expires_at"] = str(message.sessionWebhookExpiredTime // 1000)
        return target

    def _is_dingtalks(self, url: str) -> bool:
        """Whether replies may be sent there: on a host of DingTalk's, or where its API is."""
        try:
            origin = scheme, host, _ = _origin(url)
        except ValueError:
            return False
        return origin == self._api or (scheme == "https" and host.endswith(".dingtalk.com"))


def _content(message: Message) -> MessageContent:
    """The message's text, and the names of the files in it."""
    content = message.content
    match message.msgtype:
        case "text":
            return message.text.content.strip()
        case "richText":
            text = "".join(piece.text or "" for piece in content.richText).strip()
            pictures = [(None, "image") for piece in content.richText if piece.type == "picture"]
            return content_of(text, pictures)
        case "audio" if content.recognition.strip():
            return content.recognition.strip()
        case kind if kind in _FILES:
            return content_of("", [(content.fileName, kind)])
    return ""


def _files(message: Message) -> Iterator[tuple[str, str, str]]:
    """The media type, code and name of what a worker might read.

    A voice message whose words DingTalk brings is text. Files tell their type by their name alone.
    """
    content = message.content
    match message.msgtype:
        case "picture":
            yield "image/", content.code, ""
        case "audio" if not content.recognition.strip():
            yield "audio/", content.code, ""
        case "file":
            name = content.fileName or ""
            yield type_of_name(name), content.code, name
        case "richText":
            pictures = (piece for piece in content.richText if piece.type == "picture")
            yield from (("image/", piece.code, "") for piece in pictures)


def _origin(url: str) -> tuple[str, str, int | None]:
    """Raises `ValueError`."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _is_in_window(timestamp: str, now: float) -> bool:
    """Whether Unix milliseconds in decimal digits are within `WINDOW_S` of now."""
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 16):
        return False
    return abs(now - int(timestamp) / 1000) <= WINDOW_S
