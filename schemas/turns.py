"""The turn: one user input and the reply owed to it, and the states it goes through."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

#: Why a reply ended: by itself or at a stop string, at its limit, or because a remote server
#: withheld the rest.
FinishReason = Literal["stop", "length", "content_filter"]

#: Characters of one message. The engine's context window is the real limit; this one
#: only keeps a hostile body from reaching the database.
MAX_MESSAGE_CHARS = 400_000
MAX_MESSAGES = 512


class TurnState(StrEnum):
    WAITING = "waiting"  # an earlier turn of the conversation is open
    QUEUED = "queued"  # due: the outbox owes the broker a hint
    RUNNING = "running"  # one attempt holds the lease
    COMPLETED = "completed"
    FAILED = "failed"  # a permanent error
    PARKED = "parked"  # attempts used up
    CANCELLED = "cancelled"
    HANDED_OFF = "handed_off"  # a human answers


TRANSITIONS: dict[TurnState, frozenset[TurnState]] = {
    TurnState.WAITING: frozenset({TurnState.QUEUED, TurnState.CANCELLED}),
    # Back to waiting: an earlier turn, that was parked, is replayed.
    TurnState.QUEUED: frozenset({TurnState.RUNNING, TurnState.WAITING, TurnState.CANCELLED}),
    TurnState.RUNNING: frozenset(
        {
            TurnState.QUEUED,
            TurnState.COMPLETED,
            TurnState.FAILED,
            TurnState.PARKED,
            TurnState.CANCELLED,
            TurnState.HANDED_OFF,
        }
    ),
    TurnState.COMPLETED: frozenset(),
    TurnState.FAILED: frozenset(),
    # Replayed (and due as soon as no earlier turn is open), or dropped: then it has failed with
    # the error that its user was told when it was parked.
    TurnState.PARKED: frozenset({TurnState.WAITING, TurnState.FAILED}),
    TurnState.CANCELLED: frozenset(),
    TurnState.HANDED_OFF: frozenset(),
}


#: States in which a reply is still owed.
OPEN_STATES = frozenset({TurnState.WAITING, TurnState.QUEUED, TurnState.RUNNING})


class Lane(StrEnum):
    """A class of service with its own queue for each model."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    #: Turns whose attempts died without an outcome run here alone, so that one that
    #: kills its worker takes no neighbours with it.
    QUARANTINE = "quarantine"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


def refuse_nul(text: str) -> str:
    """PostgreSQL cannot store U+0000, which JSON can escape."""
    if "\0" in text:
        raise PydanticCustomError("nul", "contains a NUL character")
    return text


class Message(BaseModel):
    """One entry of a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: Annotated[
        str, StringConstraints(max_length=MAX_MESSAGE_CHARS), AfterValidator(refuse_nul)
    ]


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(refuse_nul)]


def _read_top_k(value: object) -> object:
    """Clients of vLLM write -1 for "all tokens"."""
    return 0 if value == -1 else value


#: The value at which a sampling parameter changes nothing.
NEUTRAL: dict[str, float] = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
}


class GenerationParams(BaseModel):
    """How to sample a reply. What is left out is taken from the bot, then from `DEFAULT_PARAMS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: 0 decodes greedily.
    temperature: float | None = Field(default=None, ge=0, le=2)
    #: Nucleus sampling, https://arxiv.org/abs/1904.09751.
    top_p: float | None = Field(default=None, gt=0, le=1)
    #: Draw from that many of the likeliest tokens; 0 (or -1): from all.
    top_k: Annotated[int | None, BeforeValidator(_read_top_k)] = Field(default=None, ge=0, lt=2**31)
    #: Draw no token less likely than this share of the likeliest one's probability; 0: any.
    #: https://arxiv.org/abs/2407.01082
    min_p: float | None = Field(default=None, ge=0, le=1)
    #: Divide the scores of tokens that stand in the prompt or the reply; 1: leave them.
    #: https://arxiv.org/abs/1909.05858, section 4.1
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    #: Tokens of the reply, at most.
    max_tokens: int | None = Field(default=None, ge=1, le=131_072)
    #: The reply ends before the first of these strings.
    stop: tuple[Stop, ...] = Field(default=(), max_length=4)
    #: Makes sampling repeatable on one engine, batch effects of low precision aside.
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    def over(self, defaults: "GenerationParams") -> "GenerationParams":
        """These parameters, completed by the defaults."""
        return defaults.model_copy(update=self.model_dump(exclude_defaults=True))

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling parameters that change something, by name."""
        values = {name: getattr(self, name) for name in NEUTRAL}
        return {
            name: value
            for name, value in values.items()
            if value is not None and value != NEUTRAL[name]
        }


DEFAULT_PARAMS = GenerationParams(temperature=1.0, top_p=1.0, max_tokens=512)


class Usage(BaseModel):
    """Tokens a reply cost."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Tokens of the prompt that the engine remembered and did not compute again.
    cached_tokens: int = 0


class Reply(BaseModel):
    """The finished answer of a turn."""

    model_config = ConfigDict(frozen=True)

    content: str
    finish_reason: FinishReason
    usage: Usage


class TurnRequest(BaseModel):
    """What a producer asks `accept` to take. Everything in it is already verified and bounded."""

    model_config = ConfigDict(frozen=True)

    tenant_id: UUID
    #: The name of the bot that answers.
    bot: str
    #: New messages of this turn; the conversation's past is added by the worker.
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    params: GenerationParams = GenerationParams()
    lane: Lane = Lane.INTERACTIVE
    #: A fresh conversation when left out.
    conversation_id: UUID | None = None
    #: Unique within the tenant; the same key means the same turn.
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    #: Seconds from acceptance after which nobody wants the reply.
    timeout_s: float | None = Field(default=None, gt=0)
    batch_id: UUID | None = None
    #: The row of the batch file that this turn came from, from 1.
    batch_row: int | None = None


class AcceptedTurn(BaseModel):
    """What `accept` promises an answer to."""

    model_config = ConfigDict(frozen=True)

    turn_id: UUID
    conversation_id: UUID
    seq: int
    state: TurnState
    #: The idempotency key had been seen: this is the turn of the first call.
    is_duplicate: bool = False


class Turn(BaseModel):
    """A turn as its readers see it."""

    model_config = ConfigDict(frozen=True)

    turn_id: UUID
    conversation_id: UUID
    seq: int
    bot: str
    model: str
    lane: Lane
    state: TurnState
    messages: tuple[Message, ...]
    #: Attempts so far.
    attempt: int
    accepted_at: datetime
    started_at: datetime | None
    settled_at: datetime | None
    reply: Reply | None
    error_code: str | None
    error_message: str | None
    batch_row: int | None = None
