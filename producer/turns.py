"""Reading turns back."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from turnmill.schemas.content import TokenLogprob, ToolCall
from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
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
        replies.c.logprobs,
    )
    .join(bots, bots.c.id == turns.c.bot_id)
    .outerjoin(replies, replies.c.turn_id == turns.c.id)
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


def read_turn(database: Database, tenant_id: UUID, turn_id: UUID) -> Turn:
    """One turn with its reply. Raises `NotFound`."""
    query = _TURN.where(turns.c.id == turn_id, turns.c.tenant_id == tenant_id)
    with database.begin() as connection:
        rows = typed(_TurnRow, connection.execute(query))
    if not rows:
        raise NotFound("There is no such turn.")
    return _turn(rows[0])


def read_conversation(database: Database, tenant_id: UUID, conversation_id: UUID) -> list[Turn]:
    """The turns of a conversation in order. Raises `NotFound`."""
    known = sa.select(conversations.c.id).where(
        conversations.c.id == conversation_id, conversations.c.tenant_id == tenant_id
    )
    query = _TURN.where(turns.c.conversation_id == conversation_id).order_by(turns.c.seq)
    with database.begin() as connection:
        if connection.execute(known).one_or_none() is None:
            raise NotFound("There is no such conversation.")
        return list(map(_turn, typed(_TurnRow, connection.execute(query))))


def _turn(row: _TurnRow) -> Turn:
    reply = None
    if row.content is not None:
        usage = Usage(
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            cached_tokens=row.cached_tokens,
        )
        reply = Reply(
            content=row.content,
            finish_reason=row.finish_reason,
            usage=usage,
            tool_calls=tuple(map(ToolCall.model_validate, row.tool_calls or ())),
            logprobs=tuple(map(TokenLogprob.model_validate, row.logprobs or ())),
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
    )
