"""Attempts as the tasks that Flower shows, read from PostgreSQL.

PostgreSQL has the truth. Flower hears events, which are lost while it is away, and which the worker
that dies does not send.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.routes import ANSWER_TASK
from turnmill.workers.consumer.task_events import event_of, parse_task, show_arguments, show_task

_COLUMNS = """
SELECT a.turn_id, a.number, a.lane, t.model, a.outcome,
    CASE WHEN t.attempt = a.number THEN t.error_code END AS error_code,
    extract(epoch FROM a.started_at)::float AS started_s,
    extract(epoch FROM a.ended_at)::float AS ended_s,
    array_to_string(w.lanes, '+') || '-' || w.pid || '@' || w.host AS worker
FROM {attempts} a JOIN turns t ON t.id = a.turn_id
LEFT JOIN worker_liveness w ON w.id = a.worker_id
"""

#: The newest attempts by the age of their turns, which their key orders, and all that run.
_RECENT = f"""
WITH recent AS (
    (SELECT * FROM attempts ORDER BY turn_id DESC, number DESC LIMIT %(limit)s)
    UNION
    SELECT a.* FROM turns t JOIN attempts a ON a.turn_id = t.id AND a.number = t.attempt
    WHERE t.state = 'running'
)
{_COLUMNS.format(attempts="recent")} ORDER BY a.started_at
"""

_ENDED = f"""
{_COLUMNS.format(attempts="attempts")}
WHERE (a.turn_id, a.number) IN (SELECT * FROM unnest(%(turns)s::uuid[], %(numbers)s::int[]))
  AND a.ended_at IS NOT NULL
"""


class AttemptRow(NamedTuple):
    """An attempt as events show it: without its error's text, which an engine may have written."""

    turn_id: UUID
    number: int
    lane: str
    model: str
    outcome: str | None
    error_code: str | None
    started_s: float
    ended_s: float | None
    worker: str | None

    @property
    def task(self) -> dict[str, Any]:
        """The arguments that show it: its name, its last event, its worker, fields of a task."""
        shown = {
            "uuid": show_task(self.turn_id, self.number),
            "event": "started",
            "worker": self.worker,
            "name": ANSWER_TASK,
            "args": "()",
            "kwargs": show_arguments(self.turn_id, self.lane, self.model),
            "received": self.started_s,
            "started": self.started_s,
            "timestamp": self.started_s,
        }
        if self.outcome is None or self.ended_s is None:
            return shown
        event = event_of(self.outcome, self.error_code)
        what = "result" if event == "succeeded" else "exception"
        return shown | {
            "event": event,
            event: self.ended_s,
            what: self.error_code or self.outcome,
            "timestamp": self.ended_s,
            "runtime": max(self.ended_s - self.started_s, 0.0),
        }


def read_recent(database: Database, limit: int) -> list[AttemptRow]:
    """Read the newest attempts, and all that run, oldest first. Raises `DatabaseUnavailable`."""
    return database.fetch(AttemptRow, _RECENT, {"limit": limit}) if limit else []


def read_ended(database: Database, names: Iterable[str]) -> list[AttemptRow]:
    """Read those of the named tasks whose attempts have ended. Raises `DatabaseUnavailable`."""
    known = [attempt for name in names if (attempt := parse_task(name))]
    if not known:
        return []
    turns, numbers = zip(*known, strict=True)
    return database.fetch(AttemptRow, _ENDED, {"turns": list(turns), "numbers": list(numbers)})
