"""Reading turns back."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from turnmill.schemas.citations.sources import read_sources
from turnmill.schemas.content import TokenLogprob, ToolCall
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.knowledge.tables import turn_sources
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.store.memory.remembered import Remembered
from turnmill.schemas.store.memory.tables import turn_memory
from turnmill.schemas.store.tables import bots, conversations, replies, turns
from turnmill.schemas.turns import (
    FinishReason,
    Lane,
    Message,
    Reply,
    Turn,
    TurnState,
    Usage,
)

_TURN = (
    sa.select(
        turns.c.id, turns.c.conversation_id, turns.c.seq, bots.c.name.label("bot"),
        turns.c.bot_version, turns.c.model, turns.c.lane, turns.c.state, turns.c.input,
        turns.c.attempt, turns.c.accepted_at, turns.c.started_at, turns.c.settled_at,
        turns.c.error_code, turns.c.error_message, turns.c.batch_row, turns.c.author,
        replies.c.content, replies.c.finish_reason, replies.c.prompt_tokens,
        replies.c.completion_tokens, replies.c.cached_tokens, replies.c.tool_calls,
        replies.c.logprobs, turn_memory.c.remembered, turn_sources.c.sources, turn_sources.c.shown,
        turn_sources.c.first_number, turn_sources.c.verdict,
    )
    .join(bots, bots.c.id == turns.c.bot_id)
    .outerjoin(replies, replies.c.turn_id == turns.c.id)
    .outerjoin(turn_memory, turn_memory.c.turn_id == turns.c.id)
    .outerjoin(turn_sources, turn_sources.c.turn_id == turns.c.id)
)  # fmt: skip


class _TurnRow(NamedTuple):
    """A row of `_TURN`. Of a turn without a reply, the columns from `content` on are None."""

    id: UUID
    conversation_id: UUID
    seq: int
    bot: str
    bot_version: int | None
    model: str
    lane: str
    state: str
    #: `Message`s as JSON.
    input: list[object]
    attempt: int
    accepted_at: datetime
    started_at: datetime | None
    settled_at: datetime | None
    error_code: str | None
    error_message: str | None
    batch_row: int | None
    author: str | None
    content: str | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    #: `ToolCall`s and `TokenLogprob`s as JSON.
    tool_calls: list[object] | None
    logprobs: list[object] | None
    #: `Remembered` as JSON.
    remembered: dict[str, object] | None
    #: As `read_sources` takes them.
    sources: list[object] | None
    shown: int | None
    first_number: int | None
    verdict: str | None


def read_turn(database: Database, tenant_id: UUID, turn_id: UUID) -> Turn:
    """One turn with its reply. Raises `NotFound`."""
    query = _TURN.where(turns.c.id == turn_id, turns.c.tenant_id == tenant_id)
    with database.begin() as connection:
        rows = typed(_TurnRow, connection.execute(query))
    if not rows:
        raise NotFound("There is no such turn.")
    return _turn(rows[0])


@dataclass(frozen=True, slots=True)
class Span:
    """Which turns of a conversation: all, or a page."""

    limit: int | None = None
    is_latest_first: bool = False
    #: Turns between which it lies, in its order. With `before` alone it ends there.
    after: UUID | None = None
    before: UUID | None = None


@dataclass(frozen=True, slots=True)
class TurnPage:
    """Turns of a conversation, and the turns beside which its other pages lie."""

    turns: list[Turn]
    next: UUID | None
    previous: UUID | None


def read_conversation(database: Database, tenant_id: UUID, conversation_id: UUID) -> list[Turn]:
    """The turns of a conversation in order. Raises `NotFound`."""
    return read_page(database, tenant_id, conversation_id, Span()).turns


def read_page(database: Database, tenant_id: UUID, conversation_id: UUID, span: Span) -> TurnPage:
    """Read one page of a conversation by the index on its turns' numbers.

    Raises:
        NotFound: the tenant has no such conversation.
        InvalidInput: it has no such turn as the page lies beside.
    """
    known = sa.select(conversations.c.id).where(
        conversations.c.id == conversation_id, conversations.c.tenant_id == tenant_id
    )
    is_filled_backwards = span.after is None and span.before is not None
    is_ascending = span.is_latest_first == is_filled_backwards
    query = _TURN.where(turns.c.conversation_id == conversation_id).order_by(
        turns.c.seq if is_ascending else turns.c.seq.desc()
    )
    if span.limit is not None:
        query = query.limit(span.limit + 1)
    with database.begin() as connection:
        if connection.execute(known).one_or_none() is None:
            raise NotFound("There is no such conversation.")
        for name, turn_id, is_later in (
            ("after", span.after, not span.is_latest_first),
            ("before", span.before, span.is_latest_first),
        ):
            if turn_id is not None:
                seq = _seq(connection, conversation_id, turn_id, name)
                query = query.where(turns.c.seq > seq if is_later else turns.c.seq < seq)
        found = list(map(_turn, typed(_TurnRow, connection.execute(query))))
    return _page(found, span, is_filled_backwards)


def _seq(connection: sa.Connection, conversation_id: UUID, turn_id: UUID, name: str) -> int:
    query = sa.select(turns.c.seq).where(
        turns.c.id == turn_id, turns.c.conversation_id == conversation_id
    )
    seq: int | None = connection.execute(query).scalar_one_or_none()
    if seq is None:
        raise InvalidInput(
            f"The conversation has no turn '{show_id(Prefix.TURN, turn_id)}': it is another's, or "
            f"was deleted by its age. Leave '{name}' out to begin again.",
            param=name,
        )
    return seq


def _page(found: list[Turn], span: Span, is_filled_backwards: bool) -> TurnPage:
    """Cut a page out of its turns and one more, which stand in the order they were read in."""
    shown = found if span.limit is None else found[: span.limit]
    if not shown:
        return TurnPage([], None, None)
    has_more = len(found) > len(shown)
    if is_filled_backwards:
        shown.reverse()
        return TurnPage(shown, shown[-1].turn_id, shown[0].turn_id if has_more else None)
    return TurnPage(
        shown,
        shown[-1].turn_id if has_more else None,
        shown[0].turn_id if span.after is not None else None,
    )


def _turn(row: _TurnRow) -> Turn:
    reply = None
    if row.content is not None:
        usage = Usage(
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            cached_tokens=row.cached_tokens,
        )
        sources, citations = read_sources(row.content, row.sources, row.shown, row.first_number)
        reply = Reply(
            content=row.content,
            finish_reason=row.finish_reason,
            usage=usage,
            tool_calls=tuple(map(ToolCall.model_validate, row.tool_calls or ())),
            logprobs=tuple(map(TokenLogprob.model_validate, row.logprobs or ())),
            sources=sources,
            remembered=_remembered(row),
            verdict=Verdict.read(row.verdict),
            citations=citations,
        )
    return Turn(
        turn_id=row.id,
        conversation_id=row.conversation_id,
        seq=row.seq,
        bot=row.bot,
        bot_version=row.bot_version,
        model=row.model,
        lane=Lane(row.lane),
        state=TurnState(row.state),
        messages=tuple(map(Message.model_validate, row.input)),
        attempt=row.attempt,
        accepted_at=row.accepted_at,
        started_at=row.started_at,
        settled_at=row.settled_at,
        reply=reply,
        error_code=row.error_code,
        error_message=row.error_message,
        batch_row=row.batch_row,
        author=row.author,
        remembered=_remembered(row),
    )


def _remembered(row: _TurnRow) -> Remembered | None:
    return Remembered.model_validate(row.remembered) if row.remembered else None
