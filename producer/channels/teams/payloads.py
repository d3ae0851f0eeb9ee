"""The parts that we read of an activity. What Teams adds is ignored.

https://github.com/microsoft/botframework-sdk/blob/main/specs/botframework-activity/botframework-activity.md
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from turnmill.producer.channels.base import type_of_name

_FILE = "application/vnd.microsoft.teams.file.download.info"

#: Lists are read so far.
MAX_ITEMS = 100

ShortId = Annotated[str, StringConstraints(min_length=1, max_length=60)]
LongId = Annotated[str, StringConstraints(min_length=1, max_length=190)]


def _some(value: object) -> object:
    return value[:MAX_ITEMS] if isinstance(value, list) else value or ()


def _word(value: object) -> object:
    return value if isinstance(value, str) else ""


def _table(value: object) -> object:
    """Cards and HTML are content, too."""
    return value if isinstance(value, dict) else {}


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Account(_Payload):
    """`29:…` of people, `28:<app id>` of bots."""

    id: LongId
    name: str | None = None
    role: str | None = None


class Conversation(_Payload):
    #: Of a channel's thread with `;messageid=` and its first message.
    id: LongId
    #: `personal`, `groupChat` or `channel`.
    conversationType: str = "personal"


#: What may be missing, or something else.
Word = Annotated[str, BeforeValidator(_word)]


class Mentioned(_Payload):
    id: str = ""
    name: str | None = None


class Entity(_Payload):
    type: str = ""
    #: Of a mention: as it stands in the text, `<at>Turnmill</at>`.
    text: str | None = None
    mentioned: Mentioned | None = None

    @property
    def is_mention(self) -> bool:
        return self.type == "mention" and bool(self.text) and self.mentioned is not None


class Downloadable(_Payload):
    """What stands for a file in a personal chat: it is in the sender's OneDrive."""

    downloadUrl: Word = ""
    fileType: Word = ""


class Attachment(_Payload):
    contentType: str = ""
    name: str | None = None
    #: Of a picture in the text: where the connector has it.
    contentUrl: Word = ""
    content: Annotated[Downloadable, BeforeValidator(_table)] = Downloadable()


class Reaction(_Payload):
    type: str = ""


Entities = Annotated[tuple[Entity, ...], BeforeValidator(_some)]
Attachments = Annotated[tuple[Attachment, ...], BeforeValidator(_some)]
Reactions = Annotated[tuple[Reaction, ...], BeforeValidator(_some)]


class Said(_Payload):
    """What an outgoing webhook is sent, and what every activity has."""

    type: str
    id: ShortId
    sender: Account = Field(alias="from")
    conversation: Conversation
    text: str | None = None
    entities: Entities = ()
    attachments: Attachments = ()

    @property
    def files(self) -> list[tuple[str | None, str | None]]:
        """Names and types of what came with it, without Teams' own: the text as HTML."""
        found = [each for each in self.attachments if each.contentType != "text/html"]
        return [(each.name, each.contentType) for each in found]

    @property
    def remote(self) -> Iterator[tuple[str, str, str]]:
        """The media type, address and name of what might be read. A picture in the text is at the
        connector; a file, which comes in personal chats alone, in the sender's OneDrive.

        https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bots-filesv4
        """
        for each in self.attachments:
            name = each.name or ""
            if each.contentType == _FILE:
                kind = type_of_name(name) or type_of_name(f".{each.content.fileType}")
                yield kind, each.content.downloadUrl, name
            elif each.contentUrl.startswith(("https://", "http://")):
                yield each.contentType, each.contentUrl, name


class Activity(Said):
    channelId: str
    serviceUrl: Annotated[str, StringConstraints(max_length=2000)]
    recipient: Account
    name: str = ""
    #: Of a pressed button of a card, and of an invoke.
    value: object = None
    #: The message that a reaction or a judgement is of.
    replyToId: ShortId | None = None
    reactionsAdded: Reactions = ()
    reactionsRemoved: Reactions = ()
