"""The prompt of a turn: instructions, history, and the new messages, within the context window."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import dropwhile, takewhile
from typing import NamedTuple

from turnmill.schemas.content import ToolCall
from turnmill.schemas.errors import EngineFailure, InvalidInput
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.turns import Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.draft import Draft, PastTurn
from turnmill.workers.turn.summary import Summarizer

#: Turns of history that are looked at; no model of today reads further back.
HISTORY_LIMIT = 500

#: The oldest of them stays the same for so many turns: engines remember how prompts begin.
HISTORY_STEP = 100

#: Of a turn that was handed off while it ran, what was streamed of its reply was said too.
_HISTORY = """
SELECT t.seq, t.input, r.tool_calls, coalesce(r.content, (
    SELECT string_agg(text, '' ORDER BY position) FROM chunks
    WHERE turn_id = t.id AND t.state = 'handed_off' HAVING string_agg(text, '') ~ '\\S'
)) AS content
FROM turns t LEFT JOIN replies r ON r.turn_id = t.id
WHERE t.conversation_id = %s AND t.seq > %s AND t.seq < %s
  AND (r.turn_id IS NOT NULL OR t.state = 'handed_off')
ORDER BY t.seq
"""


class _PastRow(NamedTuple):
    seq: int
    #: `Message`s and `ToolCall`s as JSON.
    input: list[object]
    tool_calls: list[object] | None
    content: str | None


def build_prompt(
    database: Database,
    engine: Engine,
    claim: Claim,
    summarizer: Summarizer | None = None,
    *,
    documents_share: float = 0.5,
) -> Prompt:
    """The prompt of a claimed turn.

    History is dropped by whole turns, oldest first, until the reply has room; the bot's
    instructions and the turn's own messages always stay. The instructions and the system texts
    at the beginning of the turn's messages become one system message, because many chat
    templates know no second one. With a summarizer, a summary of what was
    dropped stands at the end of it, where it fits. The turn's documents stand in its last message
    of the user, within their share of the context window; no later prompt has them.
    """
    draft = _draft(database, engine, claim)
    if claim.documents:
        draft = draft.with_documents(claim.documents, int(engine.context_window * documents_share))
    messages = None
    if summarizer is not None and draft.past:
        with suppress(EngineFailure, InvalidInput):  # a chat template may know no system message
            messages = _summarized(draft, summarizer, may_extend=claim.attempt == 1)
    return Prompt(
        messages or _trimmed(draft),
        prefix=claim.kept_text,
        lane=claim.lane,
        cache_namespace=claim.cache_namespace,
        template_kwargs=draft.template_kwargs,
    )


def _draft(database: Database, engine: Engine, claim: Claim) -> Draft:
    own = [message.text for message in takewhile(_is_system, claim.messages)]
    wanted = claim.params.max_tokens or 1
    return Draft(
        engine,
        budget=engine.context_window - min(wanted, engine.context_window // 2),
        instructions=(claim.instructions, *own),
        past=_read_past(database, claim) if claim.seq > 1 else (),
        asked=claim.messages[len(own) :],
        template_kwargs=claim.params.template_kwargs or {},
    )


def _summarized(
    draft: Draft, summarizer: Summarizer, *, may_extend: bool
) -> tuple[Message, ...] | None:
    """None if a summary would leave no room for the turn itself.

    Later attempts extend no summary: they continue from what the first one read, and a turn is not
    lost to what may have killed its worker.
    """
    current = draft.after(summarizer.read())
    fewest = current.fewest_to_drop()
    if fewest and may_extend and (longer := summarizer.extend(current)):
        current = draft.after(longer)
        fewest = current.fewest_to_drop()
    return None if fewest is None else current.messages(current.steady_to_drop(fewest))


def _trimmed(draft: Draft) -> tuple[Message, ...]:
    # What cannot fit is the engine's to refuse; counting may take a call to a server.
    fewest = draft.fewest_to_drop() if draft.past else None
    return draft.messages(len(draft.past) if fewest is None else draft.steady_to_drop(fewest))


def _is_system(message: Message) -> bool:
    return message.role is Role.SYSTEM


def _read_past(database: Database, claim: Claim) -> list[PastTurn]:
    """The turns that were answered or handed off, oldest first.

    A turn that failed or was cancelled is not part of what was said.
    """
    before = (claim.seq - 1 - HISTORY_LIMIT) // HISTORY_STEP * HISTORY_STEP
    rows = database.fetch(_PastRow, _HISTORY, (claim.conversation_id, before, claim.seq))
    return [PastTurn(row.seq, (*_said(row.input), *_replied(row))) for row in rows]


def _replied(row: _PastRow) -> tuple[Message, ...]:
    if row.content is None:
        return ()
    calls = tuple(map(ToolCall.model_validate, row.tool_calls or ()))
    return (Message(role=Role.ASSISTANT, content=row.content, tool_calls=calls),)


def _said(messages: Sequence[object]) -> list[Message]:
    """Select what later prompts repeat of a past turn's messages.

    A system text belongs to its turn: where each turn brings another one, they would fill the
    window. A history that the client sent along (it ends with its last assistant message) is
    repeated with the system texts inside it.
    """
    said = list(dropwhile(_is_system, map(Message.model_validate, messages)))
    history = [*said]
    while history and history[-1].role is not Role.ASSISTANT:
        history.pop()
    return history + [each for each in said[len(history) :] if not _is_system(each)]
