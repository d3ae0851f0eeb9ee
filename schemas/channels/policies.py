"""How a bot behaves in a conversation, beside what it says; a conversation may override it."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class DoubleTexting(StrEnum):
    """What becomes of a message that arrives while an earlier one is being answered."""

    ENQUEUE = "enqueue"  # a turn of its own, answered after the earlier one
    COLLECT = "collect"  # one turn with all that arrives until it begins
    INTERRUPT = "interrupt"  # the running reply ends where it is, and stays part of what was said
    ROLLBACK = "rollback"  # the running reply and what asked for it never were
    REJECT = "reject"  # it is refused, and its user told


Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
Words = Annotated[tuple[Word, ...], Field(max_length=32)]
Notice = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class Texts(BaseModel):
    """What the bot says by itself, without the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failed: Notice = "Sorry, I could not answer that. Please try again."
    expired: Notice = "Sorry, this took too long, and I gave up. Please ask again."
    stopped: Notice = "Stopped."
    reset: Notice = "Let us start afresh. What can I do for you?"
    handed_off: Notice = "I have asked a person to take over. They will answer here."
    resumed: Notice = "I am back. How can I help?"
    rejected: Notice = "I am still answering your last message. Please wait for it."
    unreadable: Notice = "I can only read text so far. Could you write it?"


class Policies(BaseModel):
    """A bot's policies. What is left out is the default of the channel, or of the API."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: On channels `collect` when left out, in the API `enqueue`.
    double_texting: DoubleTexting | None = None
    #: Seconds that `collect` waits for more before the turn begins.
    quiet_s: float = Field(default=1.0, ge=0, le=10)
    #: A message that is nothing but one of these words ends the running reply ...
    stop_words: Words = ("stop", "停止")
    #: ... begins a new conversation ...
    reset_words: Words = ("reset", "/reset", "重新开始")
    #: ... or asks for a person.
    hand_off_words: Words = ("human", "agent", "talk to a person", "人工", "转人工")
    #: Whether a turn that fails for good moves its conversation to a person.
    hands_off_failures: bool = False
    texts: Texts = Texts()

    def over(self, defaults: "Policies") -> "Policies":
        """These policies, completed by the defaults."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return defaults.model_copy(update=given)


#: Of every channel, where neither the bot nor the conversation says otherwise: people write one
#: thought in three messages.
CHANNEL_POLICIES = Policies(double_texting=DoubleTexting.COLLECT)
