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
    PlainValidator,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from turnmill.schemas.citations.markers import Citation
from turnmill.schemas.citations.sources import ReplySource
from turnmill.schemas.content import (
    MAX_DOCUMENTS,
    MAX_TOOL_CALLS,
    Biases,
    Content,
    Document,
    Name,
    TokenLogprob,
    ToolCall,
    refuse_nul,
    text_of,
)
from turnmill.schemas.formats.ordered import OrderedSchema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.store.memory.remembered import Remembered

#: Why a reply ended: by itself or at a stop string, at its limit, because a remote server
#: withheld the rest, or for the tools to be called that it asks for.
FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]

MAX_MESSAGES = 512
MAX_TOOLS = 128
#: Tokens of a reply that may be asked for.
MAX_TOKENS = 131_072


class TurnState(StrEnum):
    WAITING = "waiting"  # an earlier turn of the conversation is open
    QUEUED = "queued"  # due: the outbox owes the broker a hint
    RUNNING = "running"  # one attempt holds the lease
    COMPLETED = "completed"
    FAILED = "failed"  # a permanent error
    PARKED = "parked"  # attempts used up
    CANCELLED = "cancelled"
    #: A person answers, or answered: no reply is owed, and what it says is part of the history.
    HANDED_OFF = "handed_off"


TRANSITIONS: dict[TurnState, frozenset[TurnState]] = {
    TurnState.WAITING: frozenset({TurnState.QUEUED, TurnState.CANCELLED, TurnState.HANDED_OFF}),
    # Back to waiting: an earlier turn, that was parked, is replayed.
    TurnState.QUEUED: frozenset(
        {TurnState.RUNNING, TurnState.WAITING, TurnState.CANCELLED, TurnState.HANDED_OFF}
    ),
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
    # A batch's rows that failed can be retried.
    TurnState.FAILED: frozenset({TurnState.WAITING}),
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
    #: The result of a tool that an assistant's message called.
    TOOL = "tool"


def _is_empty(value: object) -> bool:
    return value is None or value == ()


class Message(BaseModel):
    """One entry of a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: Content
    #: Of an assistant: what it asked for. Not written where there are none: releases that do not
    #: know the field, and digests of messages from before, have none.
    tool_calls: tuple[ToolCall, ...] = Field(
        default=(), max_length=MAX_TOOL_CALLS, exclude_if=_is_empty
    )
    #: Of a tool: whose result it is.
    tool_call_id: Name | None = Field(default=None, exclude_if=_is_empty)

    @property
    def text(self) -> str:
        """The text alone: other parts are named by their kind."""
        return text_of(self.content)


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(refuse_nul)]


def _read_top_k(value: object) -> object:
    """Clients of vLLM write -1 for "all tokens"."""
    return 0 if value == -1 else value


#: Characters of a text that a turn gives to the chat template.
MAX_TEMPLATE_TEXT = 1000

#: What the engine gives to a chat template, which no turn may replace.
_GIVEN_TO_TEMPLATES = frozenset(
    (
        "messages", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token",
        "tools", "documents", "chat_template", "conversation", "tokenize", "return_dict",
    )
)  # fmt: skip


def _check_template_value(value: object) -> object:
    match value:
        case bool():
            return value
        case int() | float() if abs(value) < 2**63:  # nor infinite, nor no number
            return value
        case str() if len(value) <= MAX_TEMPLATE_TEXT:
            return refuse_nul(value)
    raise PydanticCustomError(
        "template_value",
        "must be true, false, a number, or a text of at most {most} characters",
        {"most": MAX_TEMPLATE_TEXT},
    )


#: A text in it is read by the model, and as little trusted as a message's.
TemplateValue = Annotated[
    bool | int | float | str,
    PlainValidator(_check_template_value, json_schema_input_type=bool | int | float | str),
]


def _refuse_given(kwargs: dict[str, TemplateValue]) -> dict[str, TemplateValue]:
    for name in kwargs:
        if name in _GIVEN_TO_TEMPLATES:
            raise PydanticCustomError("given", "'{name}' is set by the engine", {"name": name})
    return kwargs


_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$", max_length=64)]

#: What a turn says to the chat template, by name: `{"enable_thinking": false}`.
TemplateKwargs = Annotated[
    dict[_Name, TemplateValue], Field(max_length=16), AfterValidator(_refuse_given)
]

#: The value at which a sampling parameter changes nothing.
NEUTRAL: dict[str, float] = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
}


class Tool(BaseModel):
    """A function that a model may ask to be called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    description: str | None = None
    #: Of its arguments.
    parameters: OrderedSchema | None = None
    strict: bool | None = None


class SamplingParams(BaseModel):
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
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    #: The reply ends before the first of these strings.
    stop: tuple[Stop, ...] = Field(default=(), max_length=4)
    #: Makes sampling repeatable on one engine, batch effects of low precision aside.
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    #: Passed to the chat template, which must know each name. A turn's take the place of its bot's.
    template_kwargs: TemplateKwargs | None = None

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling parameters that change something, by name."""
        values = {name: getattr(self, name) for name in NEUTRAL}
        return {
            name: value
            for name, value in values.items()
            if value is not None and value != NEUTRAL[name]
        }


class GenerationParams(SamplingParams):
    """What a turn asks of the engine: how to sample, and what not every engine can do.

    Accept takes the latter only where a live worker's `Capabilities` have it.
    """

    #: Lower the scores of tokens of the reply, by how often they stand there already ...
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, exclude_if=_is_empty)
    #: ... or because they do.
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, exclude_if=_is_empty)
    #: Added to the scores of tokens, by their ids in the model's vocabulary.
    logit_bias: Biases | None = Field(default=None, exclude_if=_is_empty)
    response_format: ResponseFormat | None = Field(default=None, exclude_if=_is_empty)
    #: The model may ask for these to be called.
    tools: tuple[Tool, ...] = Field(default=(), max_length=MAX_TOOLS, exclude_if=_is_empty)
    #: `auto` (left out), `required`, or the name of one of them.
    tool_choice: Name | None = Field(default=None, exclude_if=_is_empty)
    #: False: it may ask for one call at most.
    parallel_tool_calls: bool | None = Field(default=None, exclude_if=_is_empty)
    #: Tell the log-probability of each token, and of so many of the likeliest ones.
    logprobs: int | None = Field(default=None, ge=0, le=20, exclude_if=_is_empty)
    #: Passages for this turn alone, the likeliest first: neither instructions nor history. With
    #: the parameters, so that a worker that does not know them leaves the turn to others.
    documents: tuple[Document, ...] = Field(
        default=(), max_length=MAX_DOCUMENTS, exclude_if=_is_empty
    )

    @property
    def penalizes_replies(self) -> bool:
        """Whether scores depend on what the reply says already."""
        return bool(self.frequency_penalty or self.presence_penalty)

    def over(self, defaults: "GenerationParams") -> "GenerationParams":
        """These parameters, completed by the defaults.

        None leaves a parameter to the defaults. Whatever else was given counts, `stop=()`, an
        empty list of tools and a format of `text` too: they take back what the defaults have.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        given = {name: value for name, value in given.items() if value is not None}
        if self.response_format is not None and self.response_format.type == "text":
            given["response_format"] = None
        return defaults.model_copy(update=given) if given else defaults


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

    #: Its plain text; empty where it only asks for tools.
    content: str
    finish_reason: FinishReason
    usage: Usage
    #: What the model asks to be called.
    tool_calls: tuple[ToolCall, ...] = Field(default=(), exclude_if=_is_empty)
    #: Of its tokens, where the turn asks for them.
    logprobs: tuple[TokenLogprob, ...] = Field(default=(), exclude_if=_is_empty)
    #: What its turn was told of its user; the turn shows it.
    remembered: Remembered | None = Field(default=None, exclude=True)
    #: The passages that it could cite, and where it does.
    sources: tuple[ReplySource, ...] = Field(default=(), exclude_if=_is_empty)
    citations: tuple[Citation, ...] = Field(default=(), exclude_if=_is_empty)
    #: What became of the question that its bot's collection was asked.
    verdict: Verdict | None = Field(default=None, exclude_if=_is_empty)


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
    #: Who wrote it, where a conversation has several people.
    author: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    #: Whose memory the turn uses (`user_key`); nobody's when left out.
    user_key: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None

    #: What earlier turns asked that end without a reply because of this one, which answers them.
    carried: tuple[Message, ...] = ()


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
    #: None in turns of releases that did not count.
    bot_version: int | None = None
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
    #: Who wrote it, where a conversation has several people.
    author: str | None = None
    #: What it was told of its user.
    remembered: Remembered | None = None
