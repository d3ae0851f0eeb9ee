"""The prompt of a turn: instructions, history, and the new messages, within the context window."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from turnmill.schemas.database import Database
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.turns import Message, Role
from turnmill.workers.draft import Draft, PastTurn
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.lease import Claim
from turnmill.workers.summary import Summarizer

#: Turns of history that are looked at; no model of today reads further back.
HISTORY_LIMIT = 500

#: The oldest of them stays the same for so many turns: engines remember how prompts begin.
HISTORY_STEP = 100

_HISTORY = """
SELECT t.seq, t.input, r.content FROM turns t LEFT JOIN replies r ON r.turn_id = t.id
WHERE t.conversation_id = %s AND t.seq > %s AND t.seq < %s ORDER BY t.seq
"""


@dataclass(frozen=True, slots=True)
class _History:
    #: Instructions that came with past turns; they hold for the rest of the conversation.
    instructions: list[str]
    #: Answered turns, oldest first. One that failed is not part of what was said.
    turns: list[PastTurn]


def build_prompt(
    database: Database, engine: Engine, claim: Claim, summarizer: Summarizer | None = None
) -> Prompt:
    """The prompt of a claimed turn.

    History is dropped by whole turns, oldest first, until the reply has room; instructions
    and the turn's own messages always stay. All instructions become one system message,
    because many chat templates know no second one. With a summarizer, a summary of what was
    dropped stands at the end of it, where it fits.
    """
    draft = _draft(database, engine, claim)
    messages = None
    if summarizer is not None and draft.past:
        with suppress(EngineFailure):  # a chat template may know no system message
            messages = _summarized(draft, summarizer, may_extend=claim.attempt == 1)
    return Prompt(messages or _trimmed(draft), prefix=claim.kept_text, lane=claim.lane)


def _draft(database: Database, engine: Engine, claim: Claim) -> Draft:
    history = _read_history(database, claim) if claim.seq > 1 else _History([], [])
    own = [message.content for message in takewhile(_is_system, claim.messages)]
    wanted = claim.params.max_tokens or 1
    return Draft(
        engine,
        budget=engine.context_window - min(wanted, engine.context_window // 2),
        instructions=(claim.instructions, *history.instructions, *own),
        past=history.turns,
        asked=claim.messages[len(own) :],
    )


def _summarized(
    draft: Draft, summarizer: Summarizer, *, may_extend: bool
) -> tuple[Message, ...] | None:
    """None if a summary would leave no room for the turn itself.

    Later attempts extend no summary: they go on after what the first one read, and a turn is not
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


def _read_history(database: Database, claim: Claim) -> _History:
    before = (claim.seq - 1 - HISTORY_LIMIT) // HISTORY_STEP * HISTORY_STEP
    history = _History([], [])
    for row in database.run(_HISTORY, (claim.conversation_id, before, claim.seq)):
        _add_to(history, row)
    return history


def _add_to(history: _History, row: Any) -> None:
    messages = [Message.model_validate(message) for message in row.input]
    instructions = list(takewhile(_is_system, messages))
    history.instructions.extend(message.content for message in instructions)
    if row.content is not None:
        reply = Message(role=Role.ASSISTANT, content=row.content)
        history.turns.append(PastTurn(row.seq, (*messages[len(instructions) :], reply)))
