"""What happens on a platform, in our words: what a channel's `parse` makes of a platform's event.

Everything in an event is verified and bounded by the channel that parsed it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.content import Content, TextPart

#: The longest text of a message that is taken, characters. `UserMessage` cuts a longer one, and its
#: user is told; or the channel refuses it.
MAX_TEXT = 40_000

Id = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]+$")]


class Address(BaseModel):
    """The place on a platform where a conversation is held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The channel's name in the configuration.
    channel: Id
    #: What makes the conversation one, unique within the channel: for Slack, the team, the
    #: channel and the thread's first message.
    thread: Id
    #: What a delivery needs to send there: ids and short-lived tokens, never a long-lived secret.
    target: dict[str, str] = Field(default_factory=dict, max_length=16)


class Side(StrEnum):
    BOT = "bot"
    PEOPLE = "people"
    NOBODY = "nobody"  # the conversation is over


class Answering(BaseModel):
    """Who answers a conversation, on platforms where people decide it, as Chatwoot.

    The platform says it with its events. A thread keeps what was said last, and only a change is
    followed: what happens here after it (a hand-off, a `resume` by command) holds until people
    change it there again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Side
    #: When the platform knew it, by a clock of the platform's: its events overtake one another.
    as_of: float = Field(ge=0, allow_inf_nan=False)

    @property
    def stored(self) -> dict[str, str]:
        """As a part of `Address.target`."""
        return {"answered_by": self.by, "answered_as_of": repr(self.as_of)}

    def since(self, known: "Answering | None") -> tuple["Answering", bool]:
        """Compare with what the thread keeps: what it is to keep now, and whether it changed."""
        if known is not None and self.as_of < known.as_of:
            return known, False
        return self, known is None or self.by is not known.by

    @classmethod
    def of(cls, target: Mapping[str, str]) -> "Answering | None":
        """Read it from a target, where it is a part of it."""
        if "answered_by" not in target:
            return None
        return cls(by=Side(target["answered_by"]), as_of=float(target["answered_as_of"]))


class Origin(TypedDict):
    """What every event has: which one it is, where it was, and who did it."""

    event_id: str
    address: Address
    author: str


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The platform's own id of the event, the same at each of its retries.
    event_id: Id
    address: Address
    #: The platform's id of the person who did it.
    author: Id
    #: Whether it may begin a conversation. Slack sends every message of a channel; those that do
    #: not mention the bot count only in threads that are conversations already.
    begins: bool = True
    answering: Answering | None = None


#: Of what a platform calls a file: an id, or an address.
MAX_REF_CHARS = 4_000


class RemoteFile(BaseModel):
    """An image or a sound that the platform has. The delivery process fetches it, with the
    channel's credentials and never while the platform waits for an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["image", "audio"]
    #: What the platform calls it: an id, or an address of its own.
    ref: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REF_CHARS)]
    name: str = ""


#: Files of one message that are taken.
MAX_FILES = 8


class UserMessage(_Event):
    """Somebody wrote to the bot."""

    kind: Literal["message"] = "message"
    #: Empty when nothing in it can be read, as of a photo alone: the bot says `Texts.unreadable`.
    content: Content
    #: What came with it and might be read. Where no worker reads it, the content's words for it
    #: are all that is taken.
    files: Annotated[tuple[RemoteFile, ...], Field(max_length=MAX_FILES)] = ()
    #: The text was longer than `MAX_TEXT`, and the end of it is not here.
    is_cut: bool = False
    #: Whether a person answers the user with it; None: everybody but the thread's author does.
    is_answer: bool | None = None
    #: Whether the platform shows that a reply is awaited until one comes, or until that sign is
    #: taken away: a reply that nobody wants any more is not dropped, but its sign ended.
    is_awaited: bool = False

    @model_validator(mode="before")
    @classmethod
    def _cut(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        match content := given.get("content"):
            case str() if len(content) > MAX_TEXT:
                return {**given, "content": content[:MAX_TEXT], "is_cut": True}
            case (TextPart(text=text), *rest) if len(text) > MAX_TEXT:
                parts = (TextPart(text=text[:MAX_TEXT]), *rest)
                return {**given, "content": parts, "is_cut": True}
        return given


class Command(_Event):
    """Somebody pressed a button or used a command that is not a message to the model."""

    kind: Literal["command"] = "command"
    #: `stop` ends the running reply, `reset` begins a new conversation, `hand_off` asks for a
    #: person, `resume` gives the conversation back to the bot.
    name: CommandName
    #: As a `Rating`'s: the turn under whose reply the button stands, where the platform tells. Its
    #: conversation is meant, in whatever thread the button seems to be.
    turn_id: str | None = None
    #: `conv_<32 hex digits>`: the conversation that is meant, under a notice, which has no turn.
    conversation_id: str | None = None


class Change(_Event):
    """People changed on the platform who answers a conversation."""

    kind: Literal["change"] = "change"
    begins: Literal[False] = False
    answering: Answering


class Rating(_Event):
    """Somebody judged a reply; a later rating by the same person replaces it."""

    kind: Literal["rating"] = "rating"
    #: `turn_<32 hex digits>`, as the delivery wrote it into its buttons, or None: the turn whose
    #: delivered message is `message_id`.
    turn_id: str | None = None
    message_id: Id | None = None
    #: 1: good, -1: bad, 0: taken back.
    score: Literal[-1, 0, 1]
    comment: Annotated[str, StringConstraints(max_length=2000)] | None = None


Event = Annotated[UserMessage | Command | Change | Rating, Field(discriminator="kind")]
