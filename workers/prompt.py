"""The prompt of a turn: instructions, history, and the new messages, within the context window."""

from turnmill.schemas.database import Database
from turnmill.schemas.turns import Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.lease import Claim

#: Turns of history that are looked at; no model of today reads further back.
HISTORY_LIMIT = 500

_HISTORY = """
SELECT t.input, r.content FROM turns t JOIN replies r ON r.turn_id = t.id
WHERE t.conversation_id = %s AND t.seq < %s ORDER BY t.seq DESC LIMIT %s
"""

#: One past turn: what the user said and what was answered.
PastTurn = tuple[Message, ...]


def build_prompt(database: Database, engine: Engine, claim: Claim) -> Prompt:
    """The prompt of a claimed turn.

    History is dropped by whole turns, oldest first, until the reply has room; the
    instructions and the turn's own messages always stay.
    """
    system = _system(claim)
    past = _read_history(database, claim) if claim.seq > 1 else []
    dropped_count = _count_to_drop(engine, claim, system, past) if past else 0
    kept = tuple(message for turn in past[dropped_count:] for message in turn)
    return Prompt(messages=(*system, *kept, *claim.messages), prefix=claim.kept_text)


def _system(claim: Claim) -> tuple[Message, ...]:
    if not claim.instructions:
        return ()
    return (Message(role=Role.SYSTEM, content=claim.instructions),)


def _read_history(database: Database, claim: Claim) -> list[PastTurn]:
    rows = database.run(_HISTORY, (claim.conversation_id, claim.seq, HISTORY_LIMIT))
    return [
        (
            *(Message.model_validate(message) for message in row.input),
            Message(role=Role.ASSISTANT, content=row.content),
        )
        for row in reversed(rows)
    ]


def _count_to_drop(
    engine: Engine, claim: Claim, system: tuple[Message, ...], past: list[PastTurn]
) -> int:
    """The fewest oldest turns to leave out, found by bisection: rendering is not free."""
    wanted = claim.params.max_tokens or 1
    budget = engine.context_window - min(wanted, engine.context_window // 2)

    def fits(dropped_count: int) -> bool:
        kept = [message for turn in past[dropped_count:] for message in turn]
        return engine.count_tokens([*system, *kept, *claim.messages]) <= budget

    if fits(0):
        return 0
    low, high = 1, len(past)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
