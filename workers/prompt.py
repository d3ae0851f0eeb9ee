"""The prompt of a turn: instructions, history, and the new messages, within the context window."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from turnmill.schemas.database import Database
from turnmill.schemas.turns import Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.lease import Claim

#: Turns of history that are looked at; no model of today reads further back.
HISTORY_LIMIT = 500

_HISTORY = """
SELECT t.input, r.content FROM turns t LEFT JOIN replies r ON r.turn_id = t.id
WHERE t.conversation_id = %s AND t.seq < %s ORDER BY t.seq DESC LIMIT %s
"""

#: What was said in one past turn, the reply included.
PastTurn = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class _History:
    #: Instructions that came with past turns; they hold for the rest of the conversation.
    instructions: list[str]
    #: Answered turns, oldest first. One that failed is not part of what was said.
    turns: list[PastTurn]


def build_prompt(database: Database, engine: Engine, claim: Claim) -> Prompt:
    """The prompt of a claimed turn.

    History is dropped by whole turns, oldest first, until the reply has room; instructions
    and the turn's own messages always stay. All instructions become one system message,
    because many chat templates know no second one.
    """
    history = _read_history(database, claim) if claim.seq > 1 else _History([], [])
    own = [message.content for message in takewhile(_is_system, claim.messages)]
    system = _system([claim.instructions, *history.instructions, *own])
    asked = claim.messages[len(own) :]
    dropped_count = _count_to_drop(engine, claim, system, history.turns, asked)
    kept = (message for turn in history.turns[dropped_count:] for message in turn)
    return Prompt(messages=(*system, *kept, *asked), prefix=claim.kept_text, lane=claim.lane)


def _system(instructions: Iterable[str]) -> tuple[Message, ...]:
    # Clients that repeat their instructions with each turn mean them once.
    texts = list(dict.fromkeys(text for text in instructions if text))
    return (Message(role=Role.SYSTEM, content="\n\n".join(texts)),) if texts else ()


def _is_system(message: Message) -> bool:
    return message.role is Role.SYSTEM


def _read_history(database: Database, claim: Claim) -> _History:
    rows = database.run(_HISTORY, (claim.conversation_id, claim.seq, HISTORY_LIMIT))
    history = _History([], [])
    for row in reversed(rows):
        _add_to(history, row)
    return history


def _add_to(history: _History, row: Any) -> None:
    messages = [Message.model_validate(message) for message in row.input]
    instructions = list(takewhile(_is_system, messages))
    history.instructions.extend(message.content for message in instructions)
    if row.content is not None:
        reply = Message(role=Role.ASSISTANT, content=row.content)
        history.turns.append((*messages[len(instructions) :], reply))


def _count_to_drop(
    engine: Engine,
    claim: Claim,
    system: tuple[Message, ...],
    past: list[PastTurn],
    asked: tuple[Message, ...],
) -> int:
    """The fewest oldest turns to leave out, found by bisection: rendering is not free."""
    wanted = claim.params.max_tokens or 1
    budget = engine.context_window - min(wanted, engine.context_window // 2)

    def fits(dropped_count: int) -> bool:
        kept = [message for turn in past[dropped_count:] for message in turn]
        return engine.count_tokens([*system, *kept, *asked]) <= budget

    if not past or fits(0):
        return 0
    low, high = 1, len(past)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
