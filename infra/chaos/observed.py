"""What the tables hold at the end of a run, read once and as plain values."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Database

_TURNS = """
SELECT t.id::text AS turn_id, coalesce(t.idempotency_key, e.key) AS key,
    t.conversation_id::text AS conversation_id, t.seq, t.state, t.error_code,
    t.input -> -1 ->> 'content' AS text, extract(epoch FROM t.accepted_at)::float AS accepted_at,
    extract(epoch FROM t.settled_at)::float AS settled_at,
    r.content AS reply, r.attempt AS reply_attempt, coalesce(r.completion_tokens, 0) AS token_count
FROM turns t LEFT JOIN replies r ON r.turn_id = t.id
LEFT JOIN (
    SELECT turn_id, min(substr(event_id, 3)) AS key FROM channel_events GROUP BY turn_id
) AS e ON e.turn_id = t.id
WHERE t.tenant_id = %s AND t.model = %s ORDER BY t.conversation_id, t.seq
"""

_ATTEMPTS = """
SELECT a.turn_id::text AS turn_id, a.number, a.worker_id::text AS worker_id, a.outcome,
    extract(epoch FROM a.started_at)::float AS started_at,
    extract(epoch FROM a.ended_at)::float AS ended_at, a.is_warm
FROM attempts a JOIN turns t ON t.id = a.turn_id
WHERE t.tenant_id = %s AND t.model = %s ORDER BY a.turn_id, a.number
"""


class TurnRow(NamedTuple):
    turn_id: str
    #: The client's; of a turn that came through a channel: its first event's, without Slack's `Ev`.
    key: str | None
    conversation_id: str
    seq: int
    state: str
    error_code: str | None
    text: str
    #: Seconds since the epoch, by the clock of Postgres.
    accepted_at: float
    settled_at: float | None
    reply: str | None
    reply_attempt: int | None
    token_count: int


class AttemptRow(NamedTuple):
    turn_id: str
    number: int
    worker_id: str
    outcome: str | None
    started_at: float
    ended_at: float | None
    #: Whether the worker that held the conversation made it; None where no live one held it.
    is_warm: bool | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    #: By conversation, then by number.
    turns: list[TurnRow]
    #: Of each turn, by number.
    attempts: dict[str, list[AttemptRow]]


def observe(database: Database, tenant_id: UUID, model: str) -> Observed:
    """Read everything a run left behind. Raises `DatabaseUnavailable`."""
    turns = database.fetch(TurnRow, _TURNS, (tenant_id, model))
    attempts: defaultdict[str, list[AttemptRow]] = defaultdict(list)
    for row in database.fetch(AttemptRow, _ATTEMPTS, (tenant_id, model)):
        attempts[row.turn_id].append(row)
    return Observed(turns, dict(attempts))
