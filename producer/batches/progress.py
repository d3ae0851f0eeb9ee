"""How far a batch is: from counters, so that a million turns cost what a hundred do.

Only latencies, the replies that were cut and the rows that failed are read from turns, of the
turns of a sample.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.batches.pace import Pace, pace_of
from turnmill.schemas.batches import BatchFailures, BatchProgress, row_id_of
from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.batches.moves import (
    READ_ENDED,
    READ_MOVES,
    READ_PACE,
    EndedBin,
    EndedRow,
    MovedRow,
)
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.turns import OPEN_STATES, TurnState

#: Rows whose latencies stand for those of all. The 95th percentile of as many errs by about one
#: percent of the rows.
SAMPLE_ROWS = 2000

#: Codes of errors told apart.
MAX_FAILURES = 10

_FAILED = frozenset({TurnState.FAILED, TurnState.PARKED})

_FIND = """
SELECT total, paused_at IS NOT NULL AS is_paused, cancelled_at IS NOT NULL AS is_cancelled
FROM batches WHERE id = %s AND tenant_id = %s
"""

_SAMPLED = f"""
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_s) AS latency_p50_s,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_s) AS latency_p95_s,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY answer_s) AS answer_p50_s,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY answer_s) AS answer_p95_s,
    count(*)::int AS sampled_count, (count(*) FILTER (WHERE is_cut))::int AS cut_count
FROM (
    SELECT extract(epoch FROM settled_at - accepted_at)::float AS latency_s,
        extract(epoch FROM settled_at - started_at)::float AS answer_s,
        replies.finish_reason = 'length' AS is_cut
    FROM turns JOIN replies ON replies.turn_id = turns.id
    WHERE batch_id = %s AND batch_row = ANY(%s) AND state = '{TurnState.COMPLETED}'
) AS sampled
"""

_EXAMPLES = """
SELECT state, error_code, error_message, idempotency_key FROM turns WHERE id = ANY(%s) ORDER BY id
"""


#: An open turn among the last and the first rows of a batch: however large it is, a few pages of an
#: index. Rows are answered about in their order, so the last ones are open until the batch ends.
_OPEN = f"""
SELECT id FROM (
    (SELECT id, state FROM turns WHERE batch_id = %(batch)s ORDER BY batch_row DESC LIMIT 1000)
    UNION ALL
    (SELECT id, state FROM turns WHERE batch_id = %(batch)s ORDER BY batch_row LIMIT 1000)
) AS row WHERE state IN ({OPEN}) LIMIT 1
"""


class _OpenRow(NamedTuple):
    """A row of `_OPEN`."""

    id: UUID


class _BatchRow(NamedTuple):
    """A row of `_FIND`."""

    total: int
    is_paused: bool
    is_cancelled: bool


class _SampledRow(NamedTuple):
    """The row of `_SAMPLED`. Times in seconds; None: no turn of the sample is completed."""

    latency_p50_s: float | None
    latency_p95_s: float | None
    answer_p50_s: float | None
    answer_p95_s: float | None
    sampled_count: int
    cut_count: int


class _ExampleRow(NamedTuple):
    """A row of `_EXAMPLES`."""

    state: str
    error_code: str | None
    error_message: str | None
    idempotency_key: str


def progress(database: Database, tenant_id: UUID, batch_id: UUID) -> BatchProgress:
    """Read how far the batch is and how fast it goes, without latencies. Raises `NotFound`."""
    with database.cursor() as cursor:
        batch = _find(cursor, tenant_id, batch_id)
        moves = fetch(cursor, MovedRow, READ_MOVES, {"batch": batch_id})
        pace = pace_of(fetch(cursor, EndedBin, READ_PACE, {"batch": batch_id}))
        failures = _failures(cursor, moves)
    return _progress(batch, moves, pace, failures)


def summarize(database: Database, tenant_id: UUID, batch_id: UUID) -> BatchProgress:
    """Read the progress, with what a sample of the rows tells. Raises `NotFound`."""
    now = progress(database, tenant_id, batch_id)
    # The same rows each time: figures that are read twice do not jump.
    chance = random.Random(batch_id.int)
    rows = chance.sample(range(1, now.total + 1), min(now.total, SAMPLE_ROWS))
    (sampled,) = database.fetch(_SampledRow, _SAMPLED, (batch_id, rows))
    return now.model_copy(update=sampled._asdict())


def find_open(database: Database, batch_id: UUID) -> UUID | None:
    """Find a turn of the batch that is not answered yet; None: there are few left, or none."""
    rows = database.fetch(_OpenRow, _OPEN, {"batch": batch_id})
    return rows[0].id if rows else None


def count_ended(database: Database, batch_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Count the turns of each batch that have ended. A batch without turns has no entry."""
    rows = database.fetch(EndedRow, READ_ENDED, (list(batch_ids),))
    return {row.batch_id: row.ended_count or 0 for row in rows}


def _find(cursor: Cursor, tenant_id: UUID, batch_id: UUID) -> _BatchRow:
    found = fetch(cursor, _BatchRow, _FIND, (batch_id, tenant_id))
    if not found:
        raise NotFound("There is no such batch.")
    return found[0]


def _progress(
    batch: _BatchRow, moves: list[MovedRow], pace: Pace | None, failures: list[BatchFailures]
) -> BatchProgress:
    running = moves[0].running_count if moves else 0
    attempts = sum(row.turn_count for row in moves if row.old_state == TurnState.RUNNING)
    accepted = [row.first_at for row in moves if row.old_state is None]
    ended = [row.last_at for row in moves if row.new_state not in OPEN_STATES]
    return BatchProgress(
        **batch._asdict(),
        states=_states(moves, running),
        attempts=attempts + running,
        prompt_tokens=sum(row.prompt_tokens for row in moves),
        completion_tokens=sum(row.completion_tokens for row in moves),
        first_accepted_at=min(accepted, default=None),
        last_settled_at=max(ended, default=None),
        turns_per_s=pace.turns_per_s if pace else None,
        tokens_per_s=pace.tokens_per_s if pace else None,
        failures=tuple(failures),
    )


def _states(moves: list[MovedRow], running: int) -> dict[TurnState, int]:
    """Count the turns in each state. Moves into `running` are not kept, only those out of it."""
    states: Counter[str] = Counter()
    for row in moves:
        states[row.new_state] += row.turn_count
        if row.old_state is not None:
            states[row.old_state] -= row.turn_count
    due = states.pop(TurnState.QUEUED, 0) + states.pop(TurnState.RUNNING, 0)
    states[TurnState.RUNNING], states[TurnState.QUEUED] = running, due - running
    return {state: states[state] for state in TurnState if states[state] > 0}


def _failures(cursor: Cursor, moves: list[MovedRow]) -> list[BatchFailures]:
    counts: Counter[str] = Counter()
    for row in moves:
        came, left = row.new_state in _FAILED, row.old_state in _FAILED
        counts[row.error_code or ""] += (came - left) * row.turn_count
    turn_ids = [turn_id for row in moves for turn_id in row.turn_ids or ()]
    examples = {
        row.error_code: row
        for row in fetch(cursor, _ExampleRow, _EXAMPLES, (turn_ids,))
        if row.state in _FAILED
    }
    return [
        _failure(code, count, examples.get(code))
        for code, count in counts.most_common(MAX_FAILURES)
        if count > 0
    ]


def _failure(code: str, count: int, example: _ExampleRow | None) -> BatchFailures:
    if example is None:
        return BatchFailures(error_code=code, count=count)
    return BatchFailures(
        error_code=code,
        count=count,
        example=row_id_of(example.idempotency_key),
        message=example.error_message,
    )
