"""Claim: one attempt wins a queued turn."""

from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.clock import IS_DUE
from turnmill.schemas.routes import PAUSED_LANE
from turnmill.schemas.store.changes import change
from turnmill.schemas.store.fleet.lanes import is_paused
from turnmill.schemas.turns import Lane, TurnState

_CLAIM = change(to=TurnState.RUNNING)

#: Claim the turns of `turns` that are due, for one worker; returns what their prompts need.
#:
#: The DELETE decides. Another worker may claim and requeue the turn between this statement's
#: snapshot and its row lock: the turn is `queued` again, and its new hint, which may be due in an
#: hour, is not in the snapshot. The hint that the snapshot shows is gone, so the DELETE finds
#: nothing and the turn is left alone. Whatever else the snapshot shows of the turn (the chunks of
#: earlier attempts) is then current too: the turn has been `queued` all the time.
#:
#: A turn that somebody holds is passed over: it is being claimed, cancelled or replayed. So is one
#: in a conversation that is handed off, where only an older release's processes make a turn due.
#: The hint of a turn whose batch is paused goes into the lane of such (`batches/sweep.py`); one
#: whose lane is paused is dropped (`fleet/lanes.py`).
#:
#: The claim need not survive a crash of PostgreSQL: the turn is then simply queued again, and
#: the fence names the worker beside the number. So it does not wait for the disk.
CLAIM = f"""
WITH hinted AS (
    SELECT id, conversation_id, seq, batch_id FROM turns
    WHERE id = ANY(%(turns)s) AND {_CLAIM.guard} AND model = %(model)s
    ORDER BY id FOR UPDATE SKIP LOCKED
), paused AS (
    SELECT id FROM batches
    WHERE id IN (SELECT batch_id FROM hinted) AND paused_at IS NOT NULL FOR SHARE
), held AS (
    UPDATE outbox o SET lane = '{PAUSED_LANE}', published_at = NULL, worker_id = NULL,
        own_until = NULL
    FROM hinted JOIN paused ON paused.id = hinted.batch_id
    WHERE o.turn_id = hinted.id AND o.lane <> '{Lane.QUARANTINE}'
), hint AS (
    DELETE FROM outbox o USING hinted, conversations c
    WHERE o.turn_id = hinted.id AND {IS_DUE} AND o.lane = ANY(%(lanes)s)
      AND NOT {is_paused("o.lane", "o.model")}
      AND c.id = hinted.conversation_id AND c.answered_seq = hinted.seq - 1
      AND c.handed_off_at IS NULL
      AND (hinted.batch_id IS NULL OR hinted.batch_id NOT IN (SELECT id FROM paused))
    RETURNING o.turn_id, o.lane, o.worker_id, o.due_at
), turn AS (
    UPDATE turns t SET {_CLAIM.setting}, attempt = t.attempt + 1, worker_id = %(worker)s,
        leased_until = clock_timestamp() + make_interval(secs => %(lease_s)s),
        started_at = coalesce(t.started_at, clock_timestamp())
    FROM hint WHERE t.id = hint.turn_id
    RETURNING t.id, t.conversation_id, t.seq, t.bot_id, t.attempt, t.failures, t.input, t.params,
        t.lane, t.accepted_at, t.deadline_at, t.tenant_id, t.user_key, hint.lane AS hint_lane,
        hint.worker_id = %(worker)s AS is_warm, hint.due_at
), attempt AS (
    INSERT INTO attempts (turn_id, number, worker_id, lane, is_warm)
    SELECT id, attempt, %(worker)s, hint_lane, is_warm FROM turn
)
SELECT turn.id, turn.conversation_id, turn.seq, turn.attempt, turn.failures, turn.input,
    turn.params, turn.lane, turn.tenant_id, turn.user_key, bots.instructions,
    bots.policies ->> 'knowledge' AS knowledge,
    nullif(coalesce(bots.policies -> 'memory', '{{}}') || coalesce((
        SELECT policies -> 'memory' FROM conversations WHERE id = turn.conversation_id), '{{}}'),
        '{{}}') AS memory, bots.policies -> 'safety' AS safety,
    coalesce((bots.policies ->> 'cites')::boolean, true) AS cites, kept.*,
    (SELECT count(*) FROM (SELECT FROM tenants LIMIT 2) AS t) > 1 AS has_neighbours,
    -- The clock was set back since: at most what the client gave.
    extract(epoch FROM turn.deadline_at - greatest(clock_timestamp(), turn.accepted_at))::float
        AS deadline_s,
    extract(epoch FROM turn.accepted_at)::float AS accepted_s,
    extract(epoch FROM clock_timestamp())::float AS now_s,
    extract(epoch FROM clock_timestamp() - turn.due_at)::float AS queued_s,
    set_config('synchronous_commit', 'off', true)
FROM turn JOIN bots ON bots.id = turn.bot_id CROSS JOIN LATERAL (
    SELECT coalesce(string_agg(text, '' ORDER BY position), '') AS kept_text,
        coalesce(sum(token_count), 0)::int AS kept_tokens,
        coalesce(max(position) + 1, 0) AS next_position
    FROM chunks WHERE turn_id = turn.id
) AS kept
"""


class ClaimedRow(NamedTuple):
    """A row of `CLAIM`."""

    id: UUID
    conversation_id: UUID
    seq: int
    attempt: int
    failures: int
    #: `Message`s and `GenerationParams` as JSON.
    input: list[object]
    params: dict[str, object]
    lane: str
    tenant_id: UUID
    user_key: str | None
    instructions: str
    #: Its bot's collection.
    knowledge: str | None
    #: Its conversation's `MemoryPolicy`, over its bot's, as JSON; None: neither says anything.
    memory: dict[str, object] | None
    #: `Safety` as JSON.
    safety: dict[str, object] | None
    #: Whether its replies cite it.
    cites: bool
    kept_text: str
    kept_tokens: int
    next_position: int
    has_neighbours: bool
    #: Times of PostgreSQL's clock, in Unix seconds, and seconds by it.
    deadline_s: float | None
    accepted_s: float
    now_s: float
    queued_s: float


#: The end of the lease says that the attempt is over as by a crash: the rescuer counts it. Only
#: running turns have a lease.
ABANDON = """
UPDATE turns SET leased_until = 'epoch'
WHERE id = %s AND attempt = %s AND worker_id = %s AND leased_until IS NOT NULL RETURNING id
"""
