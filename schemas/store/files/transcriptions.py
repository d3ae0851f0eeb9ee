"""Transcriptions that calls wait for: due, then taken by one worker at a time, then ended.

Each claim counts `attempt` up. A worker that was paused, or whose lease has expired, holds an older
number, and changes nothing any more. The row goes with its file.
"""

from typing import Any, NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.postgres.database import Database, notify
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS, seen_within

#: Attempts whose worker died, before a transcription fails.
MAX_ATTEMPTS = 3

_WANT = """
INSERT INTO transcriptions (file_id, language, prompt, due_at)
VALUES (%s, %s, %s, clock_timestamp())
"""

_CLAIM = """
UPDATE transcriptions t SET attempt = t.attempt + 1,
    due_at = clock_timestamp() + make_interval(secs => %s)
FROM files f
WHERE f.id = t.file_id AND t.file_id = (
    SELECT file_id FROM transcriptions WHERE due_at <= clock_timestamp()
    ORDER BY due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING t.file_id, f.tenant_id, t.language, t.prompt, t.attempt
"""

#: As long as the claim counts, with the next time that the row is due.
_DUE_IN = """
UPDATE transcriptions SET due_at = clock_timestamp() + make_interval(secs => %s)
WHERE file_id = %s AND attempt = %s AND due_at IS NOT NULL RETURNING file_id
"""

_END = """
UPDATE transcriptions SET due_at = NULL, transcript = %s, error_code = %s, error_message = %s
WHERE file_id = %s AND attempt = %s AND due_at IS NOT NULL RETURNING file_id
"""

_ENDED = """
SELECT transcript, error_code, error_message FROM transcriptions
WHERE file_id = %s AND due_at IS NULL
"""

_CAN = f"""
SELECT 1 FROM worker_liveness WHERE (capabilities ->> 'transcribes')::boolean
  AND (lock_key IN ({HELD_LOCKS}) OR {seen_within("%(grace_s)s")}) LIMIT 1
"""


class Task(NamedTuple):
    """A transcription that one worker makes."""

    file_id: UUID
    tenant_id: UUID
    language: str | None
    prompt: str | None
    attempt: int


class Ended(NamedTuple):
    """What a transcription ended in: a `Transcript` as JSON, or an error."""

    transcript: dict[str, Any] | None
    error_code: str | None
    error_message: str | None


def can_transcribe(database: Database, grace_s: float) -> bool:
    """Whether a live worker transcribes, or one that was seen in the last `grace_s` seconds."""
    return bool(database.run(_CAN, {"grace_s": grace_s}))


def want(database: Database, file_id: UUID, language: str | None, prompt: str | None) -> None:
    """Ask for the transcription of a stored file."""
    database.run(_WANT, (file_id, language, prompt))


def ended(database: Database, file_id: UUID) -> Ended | None:
    """Return what a transcription ended in; None: it has not."""
    found = database.fetch(Ended, _ENDED, (file_id,))
    return found[0] if found else None


def claim(database: Database, lease_s: float) -> Task | None:
    """Take the transcription that has waited longest. None: nothing is due."""
    found = database.fetch(Task, _CLAIM, (lease_s,))
    return found[0] if found else None


def due_in(database: Database, task: Task, wait_s: float) -> bool:
    """Renew the lease, or give the task back for later. False: it is no longer this worker's."""
    return bool(database.run(_DUE_IN, (wait_s, task.file_id, task.attempt)))


def end(
    database: Database,
    task: Task,
    transcript: dict[str, Any] | None = None,
    *,
    code: str | None = None,
    message: str | None = None,
) -> bool:
    """End it with a transcript or an error, and wake the call that waits. False: it is no longer
    this worker's, and nothing has changed.
    """
    result = None if transcript is None else Jsonb(transcript)
    with database.cursor() as cursor:
        params = (result, code, message, task.file_id, task.attempt)
        if cursor.execute(_END, params).fetchone() is None:
            return False
        notify(cursor, TURN_CHANNEL, task.file_id.hex)
    return True
