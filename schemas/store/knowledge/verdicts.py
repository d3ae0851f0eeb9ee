"""What became of a question that a bot's collection was asked."""

from enum import StrEnum


class Verdict(StrEnum):
    """Pinned with the turn's sources before its reply begins."""

    ANSWERED = "answered"  # the model was shown passages that answer it
    CHAT = "chat"  # a few words that ask nothing: the model answered
    UNANSWERED = "unanswered"  # nothing passed the gate; the bot has no ladder: the model answered
    SEARCHED = "searched"  # the model was shown pages that a search of the web found
    CLARIFY = "clarify"  # the bot asked which of the nearest passages was meant
    UNCERTAIN = "uncertain"  # the bot said that it is not sure
    HANDED_OFF = "handed_off"  # a person is to answer

    @classmethod
    def read(cls, stored: str | None) -> "Verdict | None":
        """Read what is stored; None also for what only a newer release knows."""
        return cls(stored) if stored in list(cls) else None

    @property
    def is_missed(self) -> bool:
        """Whether the collection did not answer it."""
        return self not in (Verdict.ANSWERED, Verdict.CHAT)

    @property
    def is_reply(self) -> bool:
        """Whether the bot replied by itself, without its model."""
        return self in (Verdict.CLARIFY, Verdict.UNCERTAIN, Verdict.HANDED_OFF)
