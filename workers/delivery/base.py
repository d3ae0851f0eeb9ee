"""What a delivery adapter is given, and what it owes.

An adapter brings one text to one place on one platform, in as many steps as the platform needs.
After each step it remembers what the platform has (`Memory.keep`, a commit), so that another
attempt goes on from there. Where the platform lets us find our own messages, a step whose outcome
is in doubt is looked up before it is repeated.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.citations.sources import ReplySource
from turnmill.schemas.turns import TurnState

#: Of what platforms ask for, seconds.
MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 3600.0


@dataclass(frozen=True, slots=True)
class Job:
    """One text on its way to one place."""

    delivery_id: UUID
    kind: DeliveryKind
    turn_id: UUID | None
    conversation_id: UUID
    #: `Address.target` of the event that asked for it.
    target: dict[str, str]
    #: What is to be sent; None: the turn was cancelled, and what was shown stays as it is.
    text: str | None
    #: The text is a model's reply, which people may judge.
    is_reply: bool
    #: A person answers the conversation, and may give it back to the bot.
    is_handed_off: bool
    #: The attempt before this one ended without saying what became of its last step.
    is_doubtful: bool
    #: Why a person answers.
    because: str | None = None
    #: The passages that the reply could cite, and what of the text lists the cited ones below it.
    sources: tuple[ReplySource, ...] = ()
    below: str = ""
    #: The reply is spoken besides, where the channel takes sound.
    is_spoken: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """How far a turn is whose progress is to be shown."""

    state: TurnState
    #: The reply as far as it is written.
    text: str
    #: Turns that are answered before this one, and when it is expected to begin, seconds; None:
    #: unknown.
    place: int | None = None
    estimate_s: float | None = None


def pause_s(asked_s: float) -> float:
    """The pause that a platform gets that asks for one, seconds: no busy loop, and no day."""
    return min(max(asked_s, MIN_PAUSE_S), MAX_PAUSE_S)


class Memory(Protocol):
    """What an adapter remembers of one delivery."""

    @property
    def value(self) -> dict[str, Any]:
        """What was kept last."""

    def keep(self, **changes: object) -> None:
        """Commit changes, and hold the delivery for another lease.

        Raises:
            LeaseLost: another attempt has the delivery; do nothing more.
            DatabaseUnavailable: whether they were committed is unknown.
        """


class LeaseLost(Exception):
    """The delivery belongs to another attempt."""


@runtime_checkable
class FetchesFiles(Protocol):
    """A channel whose users send images and sounds that can be fetched."""

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """Fetch a file that a message of the platform named, with the channel's credentials.

        Raises:
            ChannelUnavailable: again later.
            DeliveryRefused: never; it is gone, too large, or at a foreign address.
        """


@runtime_checkable
class Speaks(Protocol):
    """A channel that takes voice messages."""

    def say(self, job: Job, sound: bytes) -> str:
        """Send Opus in OGG as a voice message to a job's place; return the message's id.

        Raises:
            ChannelUnavailable: again later; `is_doubtful` when it may have arrived.
            DeliveryRefused: never.
        """


class Delivery(Protocol):
    """One channel's way out. Threads share it.

    Its calls go through `calls.posting`, which makes sure of the lease before each first byte.
    Errors leave it only as ours: `ChannelUnavailable` (again later; `is_doubtful` when the step
    may have worked) and `DeliveryRefused` (never again).
    """

    #: Whether `show` has anything to show.
    shows_progress: bool

    def send(self, job: Job, memory: Memory) -> bool:
        """Send the text, or what is missing of it; False if there was nothing to send."""

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        """Show how far the turn is; in how many seconds to look again, None: never."""

    def close(self) -> None:
        """Give up connections."""
