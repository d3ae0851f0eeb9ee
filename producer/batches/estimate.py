"""What a backlog will take, judged by what its bot's latest turns took."""

import json
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.batches.backlog import Backlog
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.turns import Lane, TurnState

#: Turns that are measured: the latest of the bot, of these latest of all bots.
MEASURED_TURNS, SEEN_TURNS = 500, 20_000
#: Rows whose lengths stand for those of all.
SAMPLE_ROWS = 1000

#: First turns of their conversations: later ones' prompts are longer by what came before.
_TAKEN = f"""
SELECT count(*) AS turn_count,
    sum(r.prompt_tokens)::float / nullif(sum(length(bot.instructions) + t.chars), 0)
        AS tokens_per_char,
    avg(r.completion_tokens)::float AS completion_tokens,
    avg(extract(epoch FROM t.settled_at - t.started_at))::float AS busy_s,
    max(length(bot.instructions)) AS instruction_chars
FROM (SELECT id, model, instructions FROM bots
      WHERE tenant_id = %(tenant)s AND name = %(bot)s AND deleted_at IS NULL) AS bot
JOIN LATERAL (
    SELECT seen.* FROM (
        SELECT id, bot_id, state, seq, settled_at, started_at, length(input::text) AS chars
        FROM turns WHERE tenant_id = %(tenant)s ORDER BY id DESC LIMIT %(seen)s
    ) AS seen
    WHERE seen.bot_id = bot.id AND seen.seq = 1 AND seen.state = '{TurnState.COMPLETED}'
    ORDER BY seen.id DESC LIMIT %(most)s
) AS t ON true
JOIN replies r ON r.turn_id = t.id
"""

_SLOTS = f"""
SELECT coalesce(sum(w.slots), 0)::int AS slots
FROM worker_liveness w JOIN bots b ON b.model = w.model
WHERE b.tenant_id = %s AND b.name = %s AND b.deleted_at IS NULL
    AND w.is_consuming AND '{Lane.BATCH}' = ANY(w.lanes)
    AND w.seen_at > clock_timestamp() - make_interval(secs => %s)
"""


class _Taken(NamedTuple):
    """The row of `_TAKEN`; None: no turn is measured."""

    turn_count: int
    tokens_per_char: float | None
    completion_tokens: float | None
    busy_s: float | None
    instruction_chars: int | None


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


def estimate(
    database: Database,
    tenant_id: UUID,
    bot: str,
    backlog: Backlog,
    *,
    lease_s: float,
    max_tokens: int | None = None,
) -> Estimate | None:
    """Estimate what a backlog takes; None while the bot has answered too little to judge by.

    Prompts' tokens go by the characters of the first rows. The time is that of turns that ran
    beside as many others as before, shared among the slots that there are now.
    """
    params = {"tenant": tenant_id, "bot": bot, "seen": SEEN_TURNS, "most": MEASURED_TURNS}
    (taken,) = database.fetch(_Taken, _TAKEN, params)
    if taken.tokens_per_char is None or taken.completion_tokens is None:
        return None
    (found,) = database.fetch(_Slots, _SLOTS, (tenant_id, bot, lease_s))
    chars = _row_chars(backlog) + (taken.instruction_chars or 0)
    completion = taken.completion_tokens
    if max_tokens is not None:
        completion = min(completion, float(max_tokens))
    share = completion / taken.completion_tokens if taken.completion_tokens else 1.0
    busy_s = (taken.busy_s or 0.0) * share * backlog.total
    return Estimate(
        prompt_tokens=round(backlog.total * chars * taken.tokens_per_char),
        completion_tokens=round(backlog.total * completion),
        duration_s=busy_s / found.slots if found.slots else None,
        measured=taken.turn_count,
    )


def _row_chars(backlog: Backlog) -> float:
    """Of a row's messages on average, as `turns.input` has them."""
    lengths = [
        len(json.dumps([message.model_dump(mode="json") for message in row.all_messages],
                       ensure_ascii=False))
        for _, row in islice(backlog.rows(), SAMPLE_ROWS)
    ]  # fmt: skip
    return sum(lengths) / max(len(lengths), 1)
