"""A claim: a turn as the attempt that won it sees it."""

from dataclasses import dataclass
from typing import Self
from uuid import UUID

from pydantic import ValidationError

from turnmill.schemas.content import Document
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
    #: Why this worker cannot read the turn, whose messages are then empty.
    unreadable: str | None = None

    @property
    def fence(self) -> tuple[UUID, int, UUID]:
        """What `ABANDON` needs."""
        return self.turn_id, self.attempt, self.worker_id

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
        messages, params, unreadable = _read(row)
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
            params=params.model_copy(update={"documents": ()}),
            documents=params.documents,
            unreadable=unreadable,
            cache_namespace=row.tenant_id.hex if row.has_neighbours else "",
            kept_text=row.kept_text,
            kept_tokens=row.kept_tokens,
            next_position=row.next_position,
            deadline_s=_deadline_s(row, clock),
            age_s=max(row.now_s - row.accepted_s, 0.0),
            queued_s=max(row.queued_s, 0.0),
        )


def _deadline_s(row: ClaimedRow, clock: DatabaseClock) -> float | None:
    """Return the seconds left of those that the client gave, whatever the clock did meanwhile."""
    if row.deadline_s is None:
        return None
    return row.deadline_s + clock.forward_between(row.accepted_s, row.now_s)


def _read(row: ClaimedRow) -> tuple[tuple[Message, ...], GenerationParams, str | None]:
    """Read a turn's messages and parameters; why they cannot be read, if they cannot.

    An API of a newer release may have accepted the turn. The turns that are claimed by the same
    statement must not suffer for it.
    """
    try:
        messages = tuple(Message.model_validate(message) for message in row.input)
        return messages, GenerationParams.model_validate(row.params), None
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        return (), GenerationParams(), f"this worker's release does not know: {fields[:200]}"
