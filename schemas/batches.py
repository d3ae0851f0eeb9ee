"""The batch: a submitted file of turns, its rows, its progress and its results.

A row is everything the file says about one turn, so it is checked here in full: what
passes can be stored, and the acceptance that follows fails for no reason of the row's.
"""

import json
from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from turnmill.schemas.content import Text, refuse_nul
from turnmill.schemas.turns import (
    MAX_MESSAGES,
    OPEN_STATES,
    FinishReason,
    GenerationParams,
    Message,
    Role,
    SamplingParams,
    Stop,
    TemplateKwargs,
    TurnState,
)

#: Leaves room for the batch's id before it in an idempotency key.
MAX_ROW_ID_CHARS = 200

_NO_PARAMS = GenerationParams()

BatchState = Literal["open", "paused", "done", "cancelled"]

#: In which order a judge reads the two replies to a turn: it is asked once in each.
Order = Literal["ab", "ba"]
ORDERS: tuple[Order, Order] = ("ab", "ba")


def _parse_json(value: object) -> object:
    """CSV has no lists and objects: a cell holds them as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PydanticCustomError("not_json", "in CSV must be written as JSON") from None


def _parse_stop(value: object) -> object:
    """A list, or one string: `[END]` is one that only looks like a list."""
    if not isinstance(value, str):
        return value
    try:
        return _parse_json(value) if value.startswith("[") else [value]
    except PydanticCustomError:
        return [value]


#: Spreadsheets and data frames keep keys as numbers.
Key = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ROW_ID_CHARS, coerce_numbers_to_str=True),
    AfterValidator(refuse_nul),
]
#: One less than a turn may have: the system text becomes a message too.
Messages = Annotated[
    tuple[Message, ...],
    BeforeValidator(_parse_json),
    Field(min_length=1, max_length=MAX_MESSAGES - 1),
]


class BacklogRow(SamplingParams):
    """One line of a backlog file. The parameters are columns of their own."""

    #: Unique in the file; the number of the row when left out.
    id: Key
    #: Rows of the same conversation are answered in order, each knowing the ones before.
    conversation: Key | None = None
    #: The place in the conversation; the order in the file when left out.
    turn: int | None = Field(default=None, ge=0, lt=2**31)
    prompt: Text | None = None
    messages: Messages | None = None
    system: Text | None = None
    stop: Annotated[tuple[Stop, ...], BeforeValidator(_parse_stop)] = Field(
        default=(), max_length=4
    )
    template_kwargs: Annotated[TemplateKwargs | None, BeforeValidator(_parse_json)] = None

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object) -> object:
        """No column holds one; Python would count it as 0 or 1."""
        if isinstance(value, bool):
            raise PydanticCustomError("truth_value", "must not be true or false")
        return value

    @model_validator(mode="after")
    def _can_be_accepted(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("one_input", "needs either prompt or messages")
        if self.turn is not None and self.conversation is None:
            raise PydanticCustomError("no_conversation", "has a turn but no conversation")
        if self.messages is None:
            asks = bool(self.prompt and self.prompt.strip())
        else:
            last = self.messages[-1]
            asks = last.role is Role.USER and bool(last.text.strip())
        if not asks:
            raise PydanticCustomError("no_question", "must end with a text of the user")
        return self

    @property
    def all_messages(self) -> tuple[Message, ...]:
        """What the turn adds to its conversation."""
        system = (Message(role=Role.SYSTEM, content=self.system),) if self.system else ()
        if self.messages is not None:
            return system + self.messages
        return (*system, Message(role=Role.USER, content=self.prompt or ""))

    @property
    def params(self) -> GenerationParams:
        given = self.model_fields_set & SamplingParams.model_fields.keys()
        if not given:
            return _NO_PARAMS
        return GenerationParams(**self.model_dump(include=given))

    @property
    def chars(self) -> int:
        """Count the characters of its texts."""
        texts = [self.prompt or "", self.system or "", *(m.text for m in self.messages or ())]
        return sum(map(len, texts))


def row_key(batch_id: UUID, row_id: str) -> str:
    """The idempotency key of a row's turn."""
    return f"{batch_id.hex}:{row_id}"


def row_id_of(key: str) -> str:
    """The id of the row that an idempotency key was made for."""
    return key.partition(":")[2]


def copy_id(turn_id: UUID, order: Order | None = None) -> str:
    """Name the row that asks a stored turn again, has it read, or, in an order, has it judged."""
    return turn_id.hex if order is None else f"{turn_id.hex}:{order}"


def copy_ids(turn_id: UUID) -> list[str]:
    """Return every id that a row made of a stored turn can have: whoever erases it looks for all.

    A batch with a purpose (`store/batches/purpose.py`) has no rows of other names.
    """
    return [copy_id(turn_id), *(copy_id(turn_id, order) for order in ORDERS)]


class Batch(BaseModel):
    """A submitted file of turns."""

    model_config = ConfigDict(frozen=True)

    batch_id: UUID
    tenant_id: UUID
    #: The name of the bot that answers.
    bot: str
    name: str
    #: Rows of the file.
    total: int
    created_at: datetime
    paused_at: datetime | None = None
    cancelled_at: datetime | None = None

    def state(self, ended: int) -> BatchState:
        """How the batch is when so many of its turns have ended."""
        if self.cancelled_at is not None:
            return "cancelled"
        if ended >= self.total:
            return "done"
        return "open" if self.paused_at is None else "paused"


class BatchFailures(BaseModel):
    """Rows of a batch that failed for the same reason."""

    model_config = ConfigDict(frozen=True)

    error_code: str
    count: int
    #: The id of one of them and what its error says; None where it is no longer known.
    example: str | None = None
    message: str | None = None


class BatchProgress(BaseModel):
    """How far a batch is, by the counters that the database keeps."""

    model_config = ConfigDict(frozen=True)

    total: int
    #: Turns by state; states without a turn are left out.
    states: dict[TurnState, int] = {}
    #: Attempts at its turns, those that run included.
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: From acceptance to the reply, of completed turns, in seconds.
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    #: From the start of the first attempt to the reply.
    answer_p50_s: float | None = None
    answer_p95_s: float | None = None
    #: The completed turns that these are of, a sample of a large batch, and the replies among
    #: them that ended at `max_tokens` or with the context window.
    sampled_count: int = 0
    cut_count: int = 0
    first_accepted_at: datetime | None = None
    last_settled_at: datetime | None = None
    #: No turn of it begins.
    is_paused: bool = False
    is_cancelled: bool = False
    #: Turns and tokens of the last seconds or minutes; None: too few turns have ended to tell.
    turns_per_s: float | None = None
    tokens_per_s: float | None = None
    #: The commonest first.
    failures: tuple[BatchFailures, ...] = ()

    @property
    def left_s(self) -> float | None:
        """Seconds until the batch is done at the rate of now; None while that is unknown."""
        if not self.turns_per_s or self.is_paused:
            return None
        return max(0, self.total - self.settled) / self.turns_per_s

    @property
    def accepted(self) -> int:
        return sum(self.states.values())

    @property
    def completed(self) -> int:
        return self.states.get(TurnState.COMPLETED, 0)

    @property
    def failed(self) -> int:
        """Turns that will get no reply from a model."""
        return self.states.get(TurnState.FAILED, 0) + self.states.get(TurnState.PARKED, 0)

    @property
    def settled(self) -> int:
        return sum(n for state, n in self.states.items() if state not in OPEN_STATES)

    @property
    def is_done(self) -> bool:
        """All have ended; of a cancelled batch, all that were accepted."""
        return self.settled >= (self.accepted if self.is_cancelled else self.total)

    @property
    def wall_s(self) -> float | None:
        """From the first acceptance to the last reply."""
        if self.first_accepted_at is None or self.last_settled_at is None:
            return None
        return (self.last_settled_at - self.first_accepted_at).total_seconds()


class ResultError(BaseModel):
    """Why a row has no reply."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class BatchResult(BaseModel):
    """One row of the results file."""

    model_config = ConfigDict(frozen=True)

    id: str
    #: The number of the row in the backlog file, from 1.
    row: int
    turn_id: str
    conversation_id: str
    #: The place of the turn in its conversation, from 1.
    seq: int
    #: What the user wrote.
    question: str = ""
    state: TurnState
    reply: str | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int
    #: From acceptance to the reply.
    latency_s: float | None = None
    error: ResultError | None = None
    #: The passages of its bot's collection that the reply cites.
    sources: str | None = None
