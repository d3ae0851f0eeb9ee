"""The parts that we read of an interaction. What Discord adds is ignored.

https://discord.com/developers/docs/interactions/receiving-and-responding#interaction-object
"""

from enum import IntEnum

from pydantic import BaseModel, ConfigDict, Field


class InteractionType(IntEnum):
    PING = 1
    COMMAND = 2
    COMPONENT = 3


class CommandType(IntEnum):
    WRITTEN = 1
    #: Chosen in the menu of a message.
    MESSAGE = 3


#: Channels that are one conversation, whoever writes in them: a direct chat, and threads.
ONE_CONVERSATION = frozenset({1, 10, 11, 12})


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class User(_Payload):
    id: str
    bot: bool = False


class Member(_Payload):
    user: User


class Place(_Payload):
    type: int = 0


class Option(_Payload):
    name: str
    value: object = None


class Attachment(_Payload):
    #: Signed, and good for a day: https://docs.discord.com/developers/reference#signed-attachment-cdn-urls
    url: str = ""
    filename: str | None = None
    content_type: str | None = None


class Metadata(_Payload):
    """Of the interaction that a message of ours answers."""

    user: User | None = None


class Message(_Payload):
    content: str = ""
    attachments: tuple[Attachment, ...] = ()
    interaction_metadata: Metadata | None = None


class Resolved(_Payload):
    messages: dict[str, Message] = Field(default_factory=dict, max_length=25)
    attachments: dict[str, Attachment] = Field(default_factory=dict, max_length=25)


class Data(_Payload):
    """Of a command its name and options, of a component its `custom_id`."""

    name: str = ""
    type: int = CommandType.WRITTEN
    options: tuple[Option, ...] = ()
    target_id: str = ""
    resolved: Resolved = Resolved()
    custom_id: str = ""

    @property
    def text(self) -> str:
        """What was asked."""
        values = [option.value for option in self.options if option.name == "text"]
        return values[0] if values and isinstance(values[0], str) else ""


class Interaction(_Payload):
    id: str
    type: int
    #: Good for fifteen minutes.
    token: str = Field(default="", max_length=1000)
    channel_id: str = ""
    channel: Place = Place()
    #: Who did it: a member of a server, or a user in a direct chat.
    member: Member | None = None
    user: User | None = None
    data: Data = Data()
    message: Message | None = None

    @property
    def sender(self) -> User | None:
        return self.user if self.member is None else self.member.user
