"""How a bot behaves in a conversation, beside what it says; a conversation may override it."""

import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.schemas.channels.memory import MemoryPolicy
from turnmill.schemas.channels.unknown import UnknownPolicy
from turnmill.schemas.content import refuse_nul
from turnmill.schemas.safety.policy import NO_SAFETY, Safety


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


class VoiceReplies(StrEnum):
    """Which replies are spoken on channels that take sound. Their text is sent in any case."""

    OFF = "off"
    TO_VOICE = "to_voice"  # replies to voice messages


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
    shortened: Notice = (
        "Your message is too long for me. I read its first 40,000 characters. "
        "Please send the rest in another one."
    )
    #: Above the sources of a reply.
    sources: Notice = "Sources:"
    #: To a photo where no worker reads images, a file alone, and a mention without a word.
    unreadable: Notice = (
        "I found nothing in your message that I can read. Please write what you need."
    )
    unclear: Notice = "I could not make out what you said. Please say it again, or write it."
    remembered: Notice = (
        "I will remember that. To see or delete it, write 'what do you know about me' or "
        "'forget …'."
    )
    forgotten: Notice = "Forgotten."
    known: Notice = "This is what I remember about you:"
    proposed: Notice = "I may have understood this too. Write 'confirm …' to let me keep it:"
    nothing_known: Notice = "I remember nothing about you."
    not_remembered: Notice = "I could not remember that: it is too long, or there is too much."


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
    #: The collection whose passages its turns are shown; none when left out.
    knowledge: str | None = Field(default=None, max_length=100)
    #: What it does when they do not answer.
    unknown: UnknownPolicy = UnknownPolicy()
    #: Whether the bot remembers its users.
    memory: MemoryPolicy = MemoryPolicy()
    #: Whether its replies cite these passages by number.
    cites: bool = True
    #: Whether the cited ones stand below them on channels.
    shows_sources: bool = True
    #: Whether replies are spoken on channels besides.
    voice_replies: VoiceReplies = VoiceReplies.OFF
    texts: Texts = Texts()
    #: Of the bot alone: a conversation's own counts for nothing.
    safety: Safety = NO_SAFETY

    def over(self, defaults: "Policies") -> "Policies":
        """These policies, completed by the defaults."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        for section in given.keys() & SECTIONS.keys():
            own = given[section]
            fields = {name: getattr(own, name) for name in own.model_fields_set}
            given[section] = getattr(defaults, section).model_copy(update=fields)
        return defaults.model_copy(update=given)

    @property
    def stored(self) -> dict[str, object]:
        """What is kept of them: what was given, for the rest is left to the defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def of(cls, stored: Mapping[str, object] | None) -> "Policies":
        """Read what is kept, without what a newer release may have written."""
        known = {name: value for name, value in (stored or {}).items() if name in cls.model_fields}
        for section in known.keys() & SECTIONS.keys():
            fields = SECTIONS[section].model_fields
            if isinstance(given := known[section], dict):
                known[section] = {name: value for name, value in given.items() if name in fields}
        return cls.model_validate(known)

    def command_in(self, text: str) -> CommandName | None:
        """Find the command that a message is, if it is nothing but one of the words.

        Case, width (full or half) and the mark at the end make no difference.
        """
        said = plain(text)
        for command, words in (
            (CommandName.STOP, self.stop_words),
            (CommandName.RESET, self.reset_words),
            (CommandName.HAND_OFF, self.hand_off_words),
        ):
            if said in map(plain, words):
                return command
        return None


def plain(text: str) -> str:
    """Return Unicode's caseless form for compatibility (NFKC and case folding), without spaces
    around it and the mark at its end: in it, words are compared. A long text stays as it is."""
    if len(text) > 4 * 64:
        return text
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded).strip().rstrip(".!。").rstrip()


#: Policies of several fields: what is left out of a section is the default's, like all else.
SECTIONS: dict[str, type[BaseModel]] = {
    "memory": MemoryPolicy,
    "safety": Safety,
    "texts": Texts,
    "unknown": UnknownPolicy,
}

#: Of every channel, where neither the bot nor the conversation says otherwise: people write one
#: thought in three messages.
CHANNEL_POLICIES = Policies(double_texting=DoubleTexting.COLLECT)
