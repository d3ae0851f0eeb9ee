"""Parked turns as their operators see them, on the command line and over HTTP alike."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict

from turnmill.schemas.content import refuse_nul
from turnmill.schemas.turns import Lane, Message

Name = Annotated[str, AfterValidator(refuse_nul)]


class ParkedFilter(BaseModel):
    """Which parked turns; what is left out does not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The bot's name.
    bot: Name | None = None
    model: Name | None = None
    lane: Lane | None = None
    error_code: Name | None = None
    #: Parked at this time or later.
    since: AwareDatetime | None = None


class ParkedTurn(BaseModel):
    """One turn that ran out of attempts."""

    model_config = ConfigDict(frozen=True)

    turn_id: str
    conversation_id: str
    #: Its number within the conversation, from 1.
    seq: int
    bot: str
    model: str
    lane: Lane
    #: Attempts so far, and how many of them ended their worker.
    attempts: int
    crashes: int
    error_code: str
    error_message: str
    accepted_at: datetime
    parked_at: datetime


class ErrorCount(BaseModel):
    """How many turns are parked with the same error."""

    model_config = ConfigDict(frozen=True)

    error_code: str
    error_message: str
    count: int


class ParkedPage(BaseModel):
    """Some parked turns, the latest accepted first, and what is the matter with all of them."""

    model_config = ConfigDict(frozen=True)

    #: Turns that the filter lets through, on whatever page.
    total: int
    #: The same by error, the most frequent first; rare ones may be missing.
    errors: list[ErrorCount]
    turns: list[ParkedTurn]
    #: The next page begins after this turn; null on the last one.
    next: str | None


class PastAttempt(BaseModel):
    """One try at the turn."""

    model_config = ConfigDict(frozen=True)

    number: int
    lane: Lane
    #: `host, process id`; the worker's id once it is forgotten.
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None


class ParkedDetails(ParkedTurn):
    """Everything about a parked turn."""

    #: Turns of its conversation, later ones included.
    conversation_turns: int
    messages: tuple[Message, ...]
    history: list[PastAttempt]
    #: What a replay would do now.
    replay: str
    can_replay: bool
