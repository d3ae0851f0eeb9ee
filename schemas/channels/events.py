"""What happens on a platform, in our words: what a channel's `parse` makes of a platform's event.

Everything in an event is verified and bounded by the channel that parsed it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.content import Content

#: The longest text of a message that is taken, characters. Longer ones are refused or cut by the
#: channel, which tells the user.
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


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The platform's own id of the event, the same at each of its retries.
    event_id: Id
    address: Address
    #: The platform's id of the person who did it.
    author: Id


class UserMessage(_Event):
    """Somebody wrote to the bot."""

    kind: Literal["message"] = "message"
    #: Empty when nothing in it can be read, as of a photo alone: the bot says `Texts.unreadable`.
    content: Content
    #: Whether it may begin a conversation. Slack sends every message of a channel; those that do
    #: not mention the bot count only in threads that are conversations already.
    begins: bool = True


class Command(_Event):
    """Somebody pressed a button or used a command that is not a message to the model."""

    kind: Literal["command"] = "command"
    #: `stop` ends the running reply, `reset` begins a new conversation, `hand_off` asks for a
    #: person, `resume` gives the conversation back to the bot.
    name: CommandName
    #: As a `Rating`'s: the turn under whose reply the button stands, where the platform tells. Its
    #: conversation is meant, in whatever thread the button seems to be.
    turn_id: str | None = None


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


Event = Annotated[UserMessage | Command | Rating, Field(discriminator="kind")]
