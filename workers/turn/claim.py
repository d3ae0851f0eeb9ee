"""A claim: a turn as the attempt that won it sees it."""

from dataclasses import dataclass
from typing import Self
from uuid import UUID

from pydantic import ValidationError

from turnmill.schemas.channels.memory import NO_MEMORY, MemoryPolicy
from turnmill.schemas.citations.sources import Source
from turnmill.schemas.content import Document
from turnmill.schemas.safety.policy import NO_SAFETY, Safety
from turnmill.schemas.store.claim import ClaimedRow
from turnmill.schemas.turns import GenerationParams, Lane, Message
from turnmill.workers.upkeep.clock import DatabaseClock


@dataclass(frozen=True, slots=True)
class Claim:
    """A turn as the attempt that won it sees it."""

    turn_id: UUID
    conversation_id: UUID
    worker_id: UUID
    #: With `worker_id`, the fence of every later write.
    attempt: int
    seq: int
    failures: int
    lane: Lane
    instructions: str
    messages: tuple[Message, ...]
    params: GenerationParams
    #: Passages for this turn alone.
    documents: tuple[Document, ...]
    #: Its bot's collection, and whose it is.
    knowledge: str | None
    tenant_id: UUID
    #: Whether its bot's replies say by number what they are based on.
    cites: bool
    #: As `Prompt.cache_namespace`: its tenant, where there are several.
    cache_namespace: str
    #: What earlier attempts produced and readers may have seen.
    kept_text: str
    kept_tokens: int
    next_position: int
    #: Seconds until nobody wants the reply any more.
    deadline_s: float | None
    #: Seconds since it was accepted, and of these since it was due, when it was claimed.
    age_s: float = 0.0
    queued_s: float = 0.0
    #: The seconds by which PostgreSQL's clock has stepped forward since it was accepted.
    forward_s: float = 0.0
    #: Why this worker cannot read the turn, whose messages are then empty.
    unreadable: str | None = None
    #: Whose memory it may be told of, whether its bot remembers anybody, and what it was told.
    user_key: str | None = None
    memory: MemoryPolicy = NO_MEMORY
    remembered: str = ""
    #: What its bot's replies may show.
    safety: Safety = NO_SAFETY
    #: Passages of its bot's collection, behind `documents` in the prompt.
    sources: tuple[Source, ...] = ()
    #: The numbers of those that the prompt had room for; None: the reply is not asked to cite.
    citable: range | None = None
    #: Whether a sound of the turn could not be understood.
    unclear: bool = False

    @property
    def fence(self) -> tuple[UUID, int, UUID]:
        """What `ABANDON` needs."""
        return self.turn_id, self.attempt, self.worker_id

    @property
    def owned(self) -> dict[str, object]:
        """The fence as named parameters of a statement."""
        return {"turn": self.turn_id, "attempt": self.attempt, "worker": self.worker_id}

    @property
    def is_to_cite(self) -> bool:
        """Whether the model is told to cite: not where a reply has a format of its own."""
        return self.cites and bool(self.sources) and self.params.response_format is None

    @property
    def is_watched(self) -> bool:
        """Whether readers are notified of it: hardly anybody follows a single turn of a batch."""
        return self.lane is not Lane.BATCH

    @property
    def params_left(self) -> GenerationParams:
        """The parameters for the rest of the reply: kept tokens count against max_tokens."""
        if not self.kept_tokens or self.params.max_tokens is None:
            return self.params
        left = self.params.max_tokens - self.kept_tokens
        return self.params.model_copy(update={"max_tokens": left})

    @property
    def is_complete(self) -> bool:
        """The kept tokens are all that the reply may have."""
        return self.params.max_tokens is not None and self.kept_tokens >= self.params.max_tokens

    @classmethod
    def of(cls, row: ClaimedRow, worker_id: UUID, clock: DatabaseClock) -> Self:
        """Read a row of `CLAIM`."""
        messages, params, safety, unreadable = _read(row)
        forward_s = clock.forward_between(row.accepted_s, row.now_s)
        return cls(
            turn_id=row.id,
            conversation_id=row.conversation_id,
            worker_id=worker_id,
            attempt=row.attempt,
            seq=row.seq,
            failures=row.failures,
            lane=Lane(row.lane),
            instructions=row.instructions,
            messages=messages,
            # An engine gets them in its prompt.
            params=params.model_copy(update={"documents": ()}) if params.documents else params,
            documents=params.documents,
            knowledge=row.knowledge,
            safety=safety,
            tenant_id=row.tenant_id,
            user_key=row.user_key,
            memory=MemoryPolicy.of(row.memory),
            cites=row.cites,
            unreadable=unreadable,
            cache_namespace=row.tenant_id.hex if row.has_neighbours else "",
            kept_text=row.kept_text,
            kept_tokens=row.kept_tokens,
            next_position=row.next_position,
            # What is left of the seconds that the client gave, whatever the clock did meanwhile.
            deadline_s=None if row.deadline_s is None else row.deadline_s + forward_s,
            age_s=max(row.now_s - row.accepted_s, 0.0),
            queued_s=max(row.queued_s, 0.0),
            forward_s=forward_s,
        )


def _read(row: ClaimedRow) -> tuple[tuple[Message, ...], GenerationParams, Safety, str | None]:
    """Read messages, parameters and the bot's safety; why they cannot be read, if they cannot.

    An API of a newer release may have accepted the turn. The turns that are claimed by the same
    statement must not suffer for it.
    """
    try:
        messages = tuple(Message.model_validate(message) for message in row.input)
        params = GenerationParams.model_validate(row.params)
        return messages, params, Safety.of(row.safety), None
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        unknown = f"this worker's release does not know: {fields[:200]}"
        return (), GenerationParams(), NO_SAFETY, unknown
