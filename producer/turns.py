"""Reading turns back."""

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.tables import bots, conversations, replies, turns
from turnmill.schemas.turns import Reply, Turn, Usage

_TURN = (
    sa.select(
        turns, bots.c.name.label("bot"), replies.c.content, replies.c.finish_reason,
        replies.c.prompt_tokens, replies.c.completion_tokens, replies.c.cached_tokens,
        replies.c.tool_calls, replies.c.logprobs,
    )
    .join(bots, bots.c.id == turns.c.bot_id)
    .outerjoin(replies, replies.c.turn_id == turns.c.id)
)  # fmt: skip


def read_turn(database: Database, tenant_id: UUID, turn_id: UUID) -> Turn:
    """One turn with its reply. Raises `NotFound`."""
    query = _TURN.where(turns.c.id == turn_id, turns.c.tenant_id == tenant_id)
    with database.begin() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("There is no such turn.")
    return _turn(row)


def read_conversation(database: Database, tenant_id: UUID, conversation_id: UUID) -> list[Turn]:
    """The turns of a conversation in order. Raises `NotFound`."""
    known = sa.select(conversations.c.id).where(
        conversations.c.id == conversation_id, conversations.c.tenant_id == tenant_id
    )
    query = _TURN.where(turns.c.conversation_id == conversation_id).order_by(turns.c.seq)
    with database.begin() as connection:
        if connection.execute(known).one_or_none() is None:
            raise NotFound("There is no such conversation.")
        return [_turn(row) for row in connection.execute(query)]


def _turn(row: Any) -> Turn:
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
            tool_calls=row.tool_calls or (),
            logprobs=row.logprobs or (),
        )
    return Turn(
        turn_id=row.id,
        conversation_id=row.conversation_id,
        seq=row.seq,
        bot=row.bot,
        bot_version=row.bot_version,
        model=row.model,
        lane=row.lane,
        state=row.state,
        messages=row.input,
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
