"""What a backlog will take, judged by what its bot's latest turns took."""

import json
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.batches.backlog import Backlog
from turnmill.schemas.formats.note import format_note
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Lane, TurnState

#: Turns that are measured: the latest of the bot, of these latest of all bots.
MEASURED_TURNS, SEEN_TURNS = 500, 20_000
#: Rows whose lengths stand for those of all.
SAMPLE_ROWS = 1000

_BOT = """
SELECT params, length(instructions) AS instruction_chars FROM bots
WHERE tenant_id = %(tenant)s AND name = %(bot)s AND deleted_at IS NULL
"""

#: First turns of their conversations: later ones' prompts are longer by what came before. What a
#: model reads of a format is about as long as its schema. Turns of the same format come first.
#: Between attempts a turn waits, for its backoff or while its batch is paused: no slot is busy.
_TAKEN = f"""
SELECT t.has_format, count(*) AS turn_count,
    sum(r.prompt_tokens)::float / nullif(sum(length(bot.instructions) + t.chars + CASE
        WHEN t.has_format THEN %(note)s
        ELSE coalesce(length(t.format ->> 'schema_text'), 0) END), 0) AS tokens_per_char,
    avg(r.completion_tokens)::float AS completion_tokens,
    coalesce(avg(t.busy_s) FILTER (WHERE t.attempt = 1), avg(t.busy_s))::float AS busy_s
FROM (SELECT id, instructions FROM bots
      WHERE tenant_id = %(tenant)s AND name = %(bot)s AND deleted_at IS NULL) AS bot
JOIN LATERAL (
    SELECT seen.*, (format ->> 'type') IS NOT DISTINCT FROM %(type)s
        AND (format ->> 'schema_text') IS NOT DISTINCT FROM %(schema)s
        AND coalesce(format -> 'choices', '[]') = %(choices)s AS has_format
    FROM (
        SELECT id, bot_id, state, seq, attempt, length(input::text) AS chars,
            extract(epoch FROM settled_at - started_at) AS busy_s,
            params -> 'response_format' AS format
        FROM turns WHERE tenant_id = %(tenant)s ORDER BY id DESC LIMIT %(seen)s
    ) AS seen
    WHERE seen.bot_id = bot.id AND seen.seq = 1 AND seen.state = '{TurnState.COMPLETED}'
    ORDER BY seen.id DESC LIMIT %(most)s
) AS t ON true
JOIN replies r ON r.turn_id = t.id
GROUP BY t.has_format
HAVING sum(r.prompt_tokens) > 0 AND avg(r.completion_tokens) IS NOT NULL
ORDER BY t.has_format DESC LIMIT 1
"""

_SLOTS = f"""
SELECT coalesce(sum(w.slots), 0)::int AS slots
FROM worker_liveness w JOIN bots b ON b.model = w.model
WHERE b.tenant_id = %s AND b.name = %s AND b.deleted_at IS NULL
    AND w.is_consuming AND '{Lane.BATCH}' = ANY(w.lanes)
    AND w.seen_at > clock_timestamp() - make_interval(secs => %s)
"""


class _Bot(NamedTuple):
    params: dict[str, object]
    instruction_chars: int


class _Taken(NamedTuple):
    """The row of `_TAKEN`."""

    has_format: bool
    turn_count: int
    tokens_per_char: float
    completion_tokens: float
    busy_s: float | None


class _Slots(NamedTuple):
    slots: int


class Estimate(NamedTuple):
    """What all rows together will take, without the history of their conversations."""

    prompt_tokens: int
    completion_tokens: int
    #: Seconds with the workers that consume now; None: none does.
    duration_s: float | None
    #: Turns that it is judged by.
    measured: int
    #: The turns have another format than the rows: these reply with so many tokens at most.
    is_bound: bool = False


def estimate(
    database: Database,
    tenant_id: UUID,
    bot: str,
    backlog: Backlog,
    *,
    lease_s: float,
    max_tokens: int | None = None,
    format: ResponseFormat | None = None,
) -> Estimate | None:
    """Estimate what a backlog takes; None while the bot has answered too little to judge by.

    Prompts' tokens go by the characters of the first rows. The time is that of turns that ran
    beside as many others as before, shared among the slots that there are now. Replies are as long
    as before in the same format; without any, as long as they may be.
    """
    own = {"tenant": tenant_id, "bot": bot}
    bots = database.fetch(_Bot, _BOT, own)
    if not bots:
        return None
    asked = GenerationParams(max_tokens=max_tokens, response_format=format).over(
        GenerationParams.model_validate(bots[0].params).over(DEFAULT_PARAMS)
    )
    note = len(format_note(asked.response_format))
    latest = {"seen": SEEN_TURNS, "most": MEASURED_TURNS, "note": note}
    known = database.fetch(_Taken, _TAKEN, {**own, **latest, **_told(asked.response_format)})
    if not known:
        return None
    (taken,) = known
    (found,) = database.fetch(_Slots, _SLOTS, (tenant_id, bot, lease_s))
    chars = _row_chars(backlog) + bots[0].instruction_chars + note
    most = float(asked.max_tokens or 0)
    completion = min(taken.completion_tokens, most) if taken.has_format else most
    share = completion / taken.completion_tokens if taken.completion_tokens else 1.0
    busy_s = (taken.busy_s or 0.0) * share * backlog.total
    return Estimate(
        prompt_tokens=round(backlog.total * chars * taken.tokens_per_char),
        completion_tokens=round(backlog.total * completion),
        duration_s=busy_s / found.slots if found.slots else None,
        measured=taken.turn_count,
        is_bound=not taken.has_format,
    )


def _told(format: ResponseFormat | None) -> dict[str, object]:
    """What tells formats apart: names are only for servers."""
    if format is None:
        return {"type": None, "schema": None, "choices": Jsonb([])}
    choices = Jsonb(list(format.choices))
    return {"type": format.type, "schema": format.schema_text, "choices": choices}


def _row_chars(backlog: Backlog) -> float:
    """Of a row's messages on average, as `turns.input` has them."""
    lengths = [
        len(json.dumps([message.model_dump(mode="json") for message in row.all_messages],
                       ensure_ascii=False))
        for _, row in islice(backlog.rows(), SAMPLE_ROWS)
    ]  # fmt: skip
    return sum(lengths) / max(len(lengths), 1)
