"""The counters of a batch: moves of its turns between states, read as sums and merged as they age.

The table is append-only for those who settle turns: a counter that each of them updated would let
one settle at a time commit.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.store.changes import OPEN, literals
from turnmill.schemas.turns import OPEN_STATES, TurnState

#: So finely the times of endings are kept, and so long, seconds: what a rate is computed from.
BIN_S = 5
PACE_S = 600

_ENDED = literals(set(TurnState) - OPEN_STATES)
_BIN = f"date_bin('{BIN_S} s', last_at, 'epoch')"

#: Moves of one batch, summed up, and how many of its turns run.
READ_MOVES = f"""
SELECT old_state, new_state, error_code, sum(turns)::int AS turn_count,
    sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens,
    min(first_at) AS first_at, max(last_at) AS last_at,
    (array_agg(turn_id) FILTER (WHERE turn_id IS NOT NULL))[1:5] AS turn_ids,
    (SELECT count(*) FROM turns
     WHERE state = '{TurnState.RUNNING}' AND batch_id = %(batch)s)::int AS running_count
FROM batch_moves WHERE batch_id = %(batch)s GROUP BY old_state, new_state, error_code
"""


class MovedRow(NamedTuple):
    """A row of `READ_MOVES`."""

    old_state: str | None
    new_state: str
    error_code: str | None
    turn_count: int
    prompt_tokens: int
    completion_tokens: int
    first_at: datetime
    last_at: datetime
    #: A few of the turns that came to a failure.
    turn_ids: list[UUID] | None
    #: The same in each row.
    running_count: int


#: From here on, to the end of the transaction, the trigger counts no turn: `COUNT_MOVES` follows.
COUNTS_MOVES = "SELECT set_config('turnmill.counts_moves', 'on', true)"

#: Count turns of a batch that were in these states, one of each for each turn; the trigger counts
#: again. A batch's page is one row then, and not one row a turn, which take half as long as
#: whatever changes the turns.
COUNT_MOVES = """
INSERT INTO batch_moves (batch_id, old_state, new_state, turns)
SELECT %(batch)s, old_state, %(state)s, count(*)
FROM unnest(%(old_states)s::text[]) AS old_state
GROUP BY old_state
RETURNING set_config('turnmill.counts_moves', '', true)
"""

#: When turns of a batch ended lately, the latest first. A pause is no part of its rate.
READ_PACE = f"""
SELECT extract(epoch FROM clock_timestamp() - min(first_at))::float AS first_age_s,
    extract(epoch FROM clock_timestamp() - max(last_at))::float AS last_age_s,
    sum(turns)::int AS turn_count, sum(completion_tokens)::bigint AS token_count
FROM batch_moves
WHERE batch_id = %(batch)s AND old_state IN ({OPEN}) AND new_state IN ({_ENDED})
  AND last_at > clock_timestamp() - interval '{PACE_S} s'
  AND last_at > coalesce((SELECT resumed_at FROM batches WHERE id = %(batch)s), '-infinity')
GROUP BY {_BIN} ORDER BY {_BIN} DESC
"""


class EndedBin(NamedTuple):
    """A row of `READ_PACE`: turns that ended within some seconds."""

    #: Since the first of them and since the last.
    first_age_s: float
    last_age_s: float
    turn_count: int
    token_count: int


#: Sums of moves for all of a tenant's batches: the ended turns of each.
READ_ENDED = f"""
SELECT batch_id, (sum(turns) FILTER (WHERE new_state IN ({_ENDED}))
    - coalesce(sum(turns) FILTER (WHERE old_state IN ({_ENDED})), 0))::int AS ended_count
FROM batch_moves WHERE batch_id = ANY(%s) GROUP BY batch_id
"""


class EndedRow(NamedTuple):
    """A row of `READ_ENDED`. None of its turns has ended: the count is None."""

    batch_id: UUID
    ended_count: int | None


class Unmerged(NamedTuple):
    batch_id: UUID


#: Batches whose moves are worth merging.
UNMERGED = """
SELECT batch_id FROM batch_moves WHERE NOT is_merged
GROUP BY batch_id
HAVING count(*) >= 500 OR min(last_at) < clock_timestamp() - interval '1 minute'
"""

#: Moves that one statement merges: it takes a fraction of a second.
MERGED_ROWS = 20_000

#: Replace moves of a batch by their sums, in one statement: readers see the ones or the others.
#: Times of endings stay apart as long as a rate may want them.
MERGE = f"""
WITH gone AS (
    DELETE FROM batch_moves WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM batch_moves WHERE batch_id = %(batch)s LIMIT {MERGED_ROWS}))
    RETURNING *, CASE WHEN old_state IN ({OPEN}) AND new_state IN ({_ENDED})
        AND last_at > clock_timestamp() - interval '{PACE_S} s' THEN {_BIN} END AS bin
)
INSERT INTO batch_moves (batch_id, old_state, new_state, turns, error_code, turn_id, prompt_tokens,
    completion_tokens, first_at, last_at, is_merged)
SELECT batch_id, old_state, new_state, sum(turns), error_code,
    (array_agg(turn_id ORDER BY last_at DESC) FILTER (WHERE turn_id IS NOT NULL))[1],
    sum(prompt_tokens), sum(completion_tokens), min(first_at), max(last_at), true
FROM gone GROUP BY batch_id, old_state, new_state, error_code, bin
"""


class Forgotten(NamedTuple):
    """A row of `FORGOTTEN`: a batch that is gone."""

    batch_id: UUID


#: Batches are found by skipping through the index.
FORGOTTEN = """
WITH RECURSIVE counted AS (
    (SELECT batch_id FROM batch_moves ORDER BY batch_id LIMIT 1)
    UNION ALL
    SELECT (SELECT m.batch_id FROM batch_moves m WHERE m.batch_id > counted.batch_id
            ORDER BY m.batch_id LIMIT 1)
    FROM counted WHERE counted.batch_id IS NOT NULL
)
SELECT batch_id FROM counted
WHERE batch_id IS NOT NULL AND NOT EXISTS (SELECT FROM batches WHERE id = counted.batch_id)
"""

FORGET_MOVES = "DELETE FROM batch_moves WHERE batch_id = ANY(%s)"
