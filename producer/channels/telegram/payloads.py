"""The parts that we read of an update. https://core.telegram.org/bots/api#update

What Telegram adds is ignored.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_ATTACHED = (
    "document", "audio", "video", "voice", "animation", "video_note", "sticker", "location",
    "contact",
)  # fmt: skip


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class User(_Payload):
    id: int
    is_bot: bool = False


class Chat(_Payload):
    id: int
    #: `private`, `group`, `supergroup` or `channel`.
    type: str = ""


class Entity(_Payload):
    """A part of a text with a meaning; offset and length count UTF-16 code units."""

    type: str
    offset: int = Field(ge=0)
    length: int = Field(ge=0)
    #: Of a `text_mention`: somebody without a username.
    user: User | None = None


class File(_Payload):
    file_id: str = ""
    file_name: str | None = None
    mime_type: str | None = None


class Answered(_Payload):
    """The message that another one answers."""

    sender: User | None = Field(default=None, alias="from")


class Message(_Payload):
    message_id: int
    sender: User | None = Field(default=None, alias="from")
    chat: Chat
    #: Of a topic where `is_topic_message`; of other threads too, which are no places of their own.
    message_thread_id: int | None = None
    is_topic_message: bool = False
    text: str | None = None
    entities: tuple[Entity, ...] = ()
    caption: str | None = None
    caption_entities: tuple[Entity, ...] = ()
    reply_to_message: Answered | None = None
    document: File | None = None
    audio: File | None = None
    video: File | None = None
    voice: File | None = None
    photo: tuple[File, ...] = ()
    animation: File | None = None
    video_note: File | None = None
    sticker: File | None = None
    location: File | None = None
    contact: File | None = None

    @property
    def topic(self) -> int | None:
        return self.message_thread_id if self.is_topic_message else None

    @property
    def files(self) -> list[tuple[str | None, str | None]]:
        """Names and types of what came with it; a photo has neither."""
        found = [(name, getattr(self, name)) for name in _ATTACHED]
        return [(each.file_name or name, each.mime_type) for name, each in found if each] + [
            ("photo", "image/jpeg") for _ in self.photo[:1]
        ]

    @property
    def readable(self) -> list[tuple[Literal["image", "audio"], File]]:
        """What of them an image's or a sound's reader may take; of a photo the largest size."""
        found: list[tuple[Literal["image", "audio"], File]] = []
        found += [("image", each) for each in self.photo[-1:]]
        found += [("audio", each) for each in (self.voice, self.audio) if each]
        kind = (self.document.mime_type or "").partition("/")[0] if self.document else ""
        if self.document is not None and (kind == "image" or kind == "audio"):
            found.append(("image" if kind == "image" else "audio", self.document))
        return [(kind, each) for kind, each in found if each.file_id]


class CallbackQuery(_Payload):
    """A pressed button."""

    id: str
    sender: User = Field(alias="from")
    message: Message | None = None
    data: str = ""


class Update(_Payload):
    update_id: int
    message: Message | None = None
    callback_query: CallbackQuery | None = None
    edited_message: Message | None = None
