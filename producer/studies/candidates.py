"""What is rated: the rows of a file, or stored turns."""

import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from turnmill.producer.studies.model import Candidate, Kind
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, first_id, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.table import read_table
from turnmill.schemas.store.batches.purpose import IS_OF_USERS
from turnmill.schemas.store.history import read_past
from turnmill.schemas.turns import Message, Role, TurnState

#: What a rater reads of a conversation before the reply.
_SHOWN_MESSAGES = 8

#: Turns that are drawn from, at most: the newest.
_MOST = 10_000

_MESSAGES = TypeAdapter(tuple[Message, ...])

_TURNS = f"""
SELECT t.id, t.conversation_id, t.seq, t.input, t.model, r.content
FROM turns t JOIN replies r ON r.turn_id = t.id JOIN bots b ON b.id = t.bot_id
WHERE t.tenant_id = %(tenant)s AND b.name = %(bot)s AND t.state = '{TurnState.COMPLETED}'
  AND t.id > %(after)s AND r.content <> ''
  AND {IS_OF_USERS}
ORDER BY t.id DESC LIMIT {_MOST}
"""


class _TurnRow(NamedTuple):
    """A row of `_TURNS`."""

    id: UUID
    conversation_id: UUID
    seq: int
    #: `Message`s as JSON.
    input: list[object]
    model: str
    content: str


def read_candidates(path: Path, kind: Kind) -> list[Candidate]:
    """Read what to rate: the columns `prompt` and `reply`, or `prompt`, `a` and `b`.

    A prompt is text, or a list of messages (in CSV as JSON). All other columns are kept as the
    source of the replies.

    Raises:
        InvalidInput: the file cannot be read, or lacks a column.
    """
    names = ("prompt", "reply") if kind == "likert" else ("prompt", "a", "b")
    found = []
    for line, cells in read_table(path, names):
        if missing := [name for name in names if name not in cells]:
            raise InvalidInput(f"{path}, line {line}: '{missing[0]}' is empty.")
        a, b = text_of(cells[names[1]]), text_of(cells["b"]) if kind == "pairwise" else None
        source = {name: text_of(value) for name, value in cells.items() if name not in names}
        found.append(Candidate(_prompt(path, line, cells["prompt"]), a, b, source))
    return found


def stored_candidates(
    database: Database, tenant_id: UUID, bot: str, count: int, since: datetime, seed: int
) -> list[Candidate]:
    """Draw from a bot's completed turns, each with what was said before it."""
    params = {"tenant": tenant_id, "bot": bot, "after": first_id(since)}
    turns = database.fetch(_TurnRow, _TURNS, params)
    drawn = random.Random(seed).sample(turns, min(count, len(turns)))
    return [_candidate(database, bot, turn) for turn in drawn]


def _candidate(database: Database, bot: str, turn: _TurnRow) -> Candidate:
    asked = tuple(map(Message.model_validate, turn.input))
    past: Sequence[Message] = ()
    if turn.seq > 1:
        after = max(0, turn.seq - 1 - _SHOWN_MESSAGES)
        turns = read_past(database, turn.conversation_id, turn.seq, after=after)
        past = [message for each in turns for message in each.messages]
    said = [message for message in (*past, *asked) if message.role is not Role.SYSTEM]
    source = {"bot": bot, "model": turn.model, "turn_id": show_id(Prefix.TURN, turn.id)}
    return Candidate(tuple(said[-_SHOWN_MESSAGES:]), turn.content, None, source)


def _prompt(path: Path, line: int, value: object) -> tuple[Message, ...]:
    text = text_of(value)
    if text.lstrip().startswith("[{"):
        try:
            return _MESSAGES.validate_json(text)
        except ValidationError:
            raise InvalidInput(
                f"{path}, line {line}: 'prompt' begins like a list of messages and is none. "
                'A message is {"role": "user", "content": "…"}.'
            ) from None
    return (Message(role=Role.USER, content=text),)
