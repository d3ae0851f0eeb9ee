"""History: what was said in a conversation before a turn, as later prompts repeat it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.citations.markers import without_markers
from turnmill.schemas.content import ToolCall
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.turns import Message, Role, TurnState

#: Of a turn that was handed off while it ran, what was streamed of its reply was said too.
_HISTORY = f"""
SELECT t.seq, t.input, r.tool_calls, s.first_number IS NOT NULL AS cites, coalesce(r.content, (
    SELECT string_agg(text, '' ORDER BY position) FROM chunks
    WHERE turn_id = t.id AND t.state = '{TurnState.HANDED_OFF}' HAVING string_agg(text, '') ~ '\\S'
)) AS content
FROM turns t LEFT JOIN replies r ON r.turn_id = t.id
LEFT JOIN turn_sources s ON s.turn_id = t.id
WHERE t.conversation_id = %s AND t.seq > %s AND t.seq < %s
  AND (r.turn_id IS NOT NULL OR t.state = '{TurnState.HANDED_OFF}')
ORDER BY t.seq
"""


class _PastRow(NamedTuple):
    seq: int
    #: `Message`s and `ToolCall`s as JSON.
    input: list[object]
    tool_calls: list[object] | None
    #: Whether it has the numbers of passages that no later prompt shows.
    cites: bool
    content: str | None


@dataclass(frozen=True, slots=True)
class PastTurn:
    seq: int
    #: What was said in it, the reply included.
    messages: tuple[Message, ...]


def read_past(
    database: Database, conversation_id: UUID, seq: int, *, after: int = 0
) -> list[PastTurn]:
    """Read the turns before number `seq` that were answered or handed off, oldest first.

    A turn that failed or was cancelled is not part of what was said, nor is what was erased.
    """
    rows = database.fetch(_PastRow, _HISTORY, (conversation_id, after, seq))
    turns = (PastTurn(row.seq, (*_said(row.input), *_replied(row))) for row in rows)
    return [turn for turn in turns if turn.messages]


def is_system(message: Message) -> bool:
    return message.role is Role.SYSTEM


def _replied(row: _PastRow) -> tuple[Message, ...]:
    calls = tuple(map(ToolCall.model_validate, row.tool_calls or ()))
    if not row.content and not calls:  # erased, or nothing was said
        return ()
    said = row.content or ""
    # A later prompt gives a marker's number to another passage.
    said = without_markers(said) if row.cites else said
    return (Message(role=Role.ASSISTANT, content=said, tool_calls=calls),)


def _said(messages: Sequence[object]) -> list[Message]:
    """Select what later prompts repeat of a past turn's messages.

    A system text belongs to its turn: where each turn brings another one, they would fill the
    window. A history that the client sent along (it ends with its last assistant message) is
    repeated with the system texts inside it.
    """
    said = list(dropwhile(is_system, map(Message.model_validate, messages)))
    history = [*said]
    while history and history[-1].role is not Role.ASSISTANT:
        history.pop()
    return history + [each for each in said[len(history) :] if not is_system(each)]
