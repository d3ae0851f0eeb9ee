"""Replay: stored turns, with their history as it was, answered again by two bots.

The questions become turns of a batch, each in a conversation of its own that no channel knows: no
reply is delivered, and the conversations that they come from do not change.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.batches.backlog import NumberedRow
from turnmill.producer.batches.results import results
from turnmill.producer.evaluation.outcomes import Outcome, Question
from turnmill.schemas.batches import BacklogRow, Batch, copy_id
from turnmill.schemas.errors import NotFound
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.ids import first_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.batches.purpose import IS_OF_USERS
from turnmill.schemas.store.history import is_system, read_past
from turnmill.schemas.turns import (
    MAX_MESSAGES,
    GenerationParams,
    Message,
    Role,
    TurnState,
)

#: Turns that are drawn from, at most: the newest.
_MOST = 20_000

_TURNS = f"""
SELECT t.id, t.conversation_id, t.seq, t.input, t.params, r.content,
       b.params -> 'response_format' AS own_format,
       coalesce(t.bot_version = b.version, false) AS is_of_this_version
FROM turns t JOIN replies r ON r.turn_id = t.id JOIN bots b ON b.id = t.bot_id
WHERE t.tenant_id = %(tenant)s AND b.name = %(bot)s AND t.state = '{TurnState.COMPLETED}'
  AND t.id > %(after)s AND t.id < %(before)s AND r.content <> ''
  -- What ends later is no other draw for a run that is resumed.
  AND t.settled_at < %(until)s
  AND NOT t.params ? 'tools' AND {IS_OF_USERS}
ORDER BY t.id DESC LIMIT {_MOST}
"""


class _Version(NamedTuple):
    version: int


_VERSION = """
SELECT version FROM bots WHERE tenant_id = %s AND name = %s AND deleted_at IS NULL
"""


class _TurnRow(NamedTuple):
    """A row of `_TURNS`."""

    id: UUID
    conversation_id: UUID
    seq: int
    #: `Message`s as JSON.
    input: list[object]
    params: dict[str, object]
    content: str
    #: The format that the bot has now, as JSON.
    own_format: dict[str, object] | None
    #: The bot has not been changed since.
    is_of_this_version: bool


class Row(BacklogRow):
    """A row of a batch that also asks for what files cannot."""

    asked: GenerationParams

    @property
    def params(self) -> GenerationParams:
        return self.asked


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows for one bot. The same questions of the same run are the same batch: it is resumed."""

    name: str
    bot: str
    #: Another run asks the same again: what serves a bot may have changed, and not the bot.
    run: str
    questions: Sequence[Row]

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def fingerprint(self) -> bytes:
        said = [self.name, self.run, *(row.model_dump(mode="json") for row in self.questions)]
        return hashlib.sha256(json.dumps(said).encode()).digest()

    @property
    def total(self) -> int:
        return len(self.questions)

    def rows(self) -> Iterator[NumberedRow]:
        yield from enumerate(self.questions, start=1)


def draw_questions(
    database: Database,
    tenant_id: UUID,
    bot: str,
    count: int,
    between: tuple[datetime, datetime],
    seed: int,
) -> list[Question]:
    """Draw from a bot's turns that were accepted in this time, the same ones for the same seed.

    Turns that offered tools are left out, and those that do not end with a text of the user.
    """
    after, before = map(first_id, between)
    params = {
        "tenant": tenant_id, "bot": bot, "after": after, "before": before, "until": between[1],
    }  # fmt: skip
    turns = [row for row in database.fetch(_TurnRow, _TURNS, params) if _is_question(row)]
    drawn = random.Random(seed).sample(turns, min(count, len(turns)))
    return [_question(database, row) for row in drawn]


def ask(label: str, bot: str, run: str, questions: Sequence[Question]) -> Asked:
    """Make rows of the questions for a bot."""
    rows = [
        Row(id=copy_id(each.turn_id), messages=each.messages, asked=each.asked)
        for each in questions
    ]
    return Asked(f"replay {label}: {bot}", bot, run, rows)


def version_of(database: Database, tenant_id: UUID, bot: str) -> int:
    """Return how often a bot was changed, and once more. Raises `NotFound`."""
    rows = database.fetch(_Version, _VERSION, (tenant_id, bot))
    if not rows:
        raise NotFound(f"There is no bot '{bot[:100]}'. List them with 'turnmill bots list'.")
    return rows[0].version


def read_outcomes(database: Database, batch: Batch) -> dict[str, Outcome]:
    """Return what became of each row, by its id."""
    return {
        each.id: Outcome(each.reply, each.error.code if each.error else None)
        for each in results(database, batch.tenant_id, batch.batch_id)
    }


def _is_question(row: _TurnRow) -> bool:
    last = Message.model_validate(row.input[-1])
    return last.role is Role.USER and bool(last.text.strip())


def _question(database: Database, row: _TurnRow) -> Question:
    """Put the history, as the worker tells it, between the turn's instructions and the rest."""
    own = tuple(map(Message.model_validate, row.input))
    instructions = tuple(takewhile(is_system, own))
    turns = read_past(database, row.conversation_id, row.seq) if row.seq > 1 else []
    room = MAX_MESSAGES - 1 - len(own)
    past: tuple[Message, ...] = ()
    for turn in reversed(turns):
        if len(turn.messages) + len(past) > room:
            break
        past = (*turn.messages, *past)
    return Question(
        row.id,
        row.conversation_id.hex,
        (*instructions, *past, *own[len(instructions) :]),
        row.content,
        _asked(row),
        GenerationParams.model_validate(row.params).response_format,
    )


def _asked(row: _TurnRow) -> GenerationParams:
    """Return what came with the turn and is no matter of sampling: its documents, and its format.

    Accept stores a bot's own format with each turn. Asked for again, it would be forced on the
    other bot: what the bot has of its own is left to each bot. Only a bot's latest format is known,
    so that a format it had before a change counts as the turn's.
    """
    given = {"documents": row.params["documents"]} if "documents" in row.params else {}
    asked = GenerationParams.model_validate(given)
    stored = GenerationParams.model_validate(row.params).response_format
    own = GenerationParams.model_validate({"response_format": row.own_format}).response_format
    if stored == own:
        return asked
    if stored is None:
        # The turn took its bot's format back, unless the bot has only got it since.
        stored = ResponseFormat(type="text") if row.is_of_this_version else None
    return asked.model_copy(update={"response_format": stored})
