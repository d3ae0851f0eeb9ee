"""How a bot behaves in a conversation, beside what it says; a conversation may override it."""

import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.schemas.content import refuse_nul


class DoubleTexting(StrEnum):
    """What becomes of a message that arrives while an earlier one is being answered."""

    ENQUEUE = "enqueue"  # a turn of its own, answered after the earlier one
    COLLECT = "collect"  # one turn with all that arrives until it begins
    INTERRUPT = "interrupt"  # the running reply ends where it is, and stays part of what was said
    ROLLBACK = "rollback"  # the running reply and what asked for it never were
    REJECT = "reject"  # it is refused, and its user told


class CommandName(StrEnum):
    """What a person can ask of the bot beside its model, by a word or a button."""

    STOP = "stop"  # the running reply ends
    RESET = "reset"  # the thread begins a new conversation
    HAND_OFF = "hand_off"  # a person is to answer
    RESUME = "resume"  # the bot answers again


_STORABLE = AfterValidator(refuse_nul)

Word = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), _STORABLE
]
Words = Annotated[tuple[Word, ...], Field(max_length=32)]
Notice = Annotated[str, StringConstraints(min_length=1, max_length=1000), _STORABLE]


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
        if "texts" in given:
            texts = {name: getattr(self.texts, name) for name in self.texts.model_fields_set}
            given["texts"] = defaults.texts.model_copy(update=texts)
        return defaults.model_copy(update=given)

    @property
    def stored(self) -> dict[str, Any]:
        """What is kept of them: what was given, for the rest is left to the defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> "Policies":
        """Read what is kept, without what a newer release may have written."""
        known = {name: value for name, value in (stored or {}).items() if name in cls.model_fields}
        if "texts" in known:
            given = known["texts"].items()
            known["texts"] = {name: text for name, text in given if name in Texts.model_fields}
        return cls.model_validate(known)

    def command_in(self, text: str) -> CommandName | None:
        """Find the command that a message is, if it is nothing but one of the words.

        Case, width (full or half) and the mark at the end make no difference.
        """
        said = _plain(text)
        for command, words in (
            (CommandName.STOP, self.stop_words),
            (CommandName.RESET, self.reset_words),
            (CommandName.HAND_OFF, self.hand_off_words),
        ):
            if said in map(_plain, words):
                return command
        return None


def _plain(text: str) -> str:
    """Unicode's caseless form for compatibility (NFKC and case folding); no words of a sentence."""
    if len(text) > 4 * 64:
        return text
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded).strip().rstrip(".!。").rstrip()


#: Of every channel, where neither the bot nor the conversation says otherwise: people write one
#: thought in three messages.
CHANNEL_POLICIES = Policies(double_texting=DoubleTexting.COLLECT)
