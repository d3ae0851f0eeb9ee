"""Transcriptions that calls wait for: due, then taken by one worker at a time, then ended.

Each claim counts `attempt` up. A worker that was paused, or whose lease has expired, holds an older
number, and changes nothing any more. The row goes with its file.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.errors import TooManyWaiting
from turnmill.schemas.files.files import File
from turnmill.schemas.postgres.clock import MAX_DELAY_S, is_due, is_over, within
from turnmill.schemas.postgres.database import Database, notify
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS

#: Attempts whose worker died, before a transcription fails.
MAX_ATTEMPTS = 3
#: Attempts at which the transcriber failed, before a transcription does.
MAX_FAILURES = 5
#: Sounds that are looked at for a claim, at most.
MOST_DUE = 16

#: A call that waits says so this often, and is believed this long, seconds: one whose process died
#: is forgotten, and no step of the clock makes anybody forget one that waits.
WANT_EVERY_S, WANTED_S = 5.0, 30.0

#: `due_at` is the end of a lease, and of no pause after an error.
IS_LEASED = "attempt > 0 AND error_code IS NULL"

#: Calls of a tenant are counted one after the other.
_LOCK_TENANT = "SELECT FROM tenants WHERE id = %s FOR NO KEY UPDATE"

#: A time further in the future than anybody sets it is of a call whose process died before the
#: clock was set back.
_WANT = f"""
INSERT INTO transcriptions (file_id, language, prompt, due_at, wanted_until)
SELECT %(file)s, %(language)s, %(prompt)s, now_at,
    now_at + make_interval(secs => least(%(wait_s)s, {WANTED_S}))
FROM clock_timestamp() AS now_at
WHERE (
    SELECT count(*) FROM transcriptions t JOIN files f ON f.id = t.file_id
    WHERE f.tenant_id = %(tenant)s AND t.due_at IS NOT NULL AND t.wanted_until > now_at
      AND t.wanted_until <= now_at + make_interval(secs => {WANTED_S})
) < %(most)s
RETURNING file_id
"""

_WANT_STILL = f"""
UPDATE transcriptions SET wanted_until = clock_timestamp() + make_interval(secs => {WANTED_S})
WHERE file_id = %s AND due_at IS NOT NULL RETURNING file_id
"""

#: One that was never tried is due whatever the clock shows.
_WAITING = f"""
FROM transcriptions due JOIN files sound ON sound.id = due.file_id
WHERE due.due_at IS NOT NULL AND due.wanted_until > clock_timestamp() AND CASE
    WHEN due.attempt = 0 THEN true
    WHEN due.error_code IS NULL THEN {is_over("due.due_at")}
    ELSE {is_due("due.due_at", MAX_DELAY_S)} END
"""
_TURN_BY_TURN = """
ORDER BY array_position(%(served)s::uuid[], sound.tenant_id) NULLS FIRST, due.due_at
"""

_DUE = f"""
SELECT due.file_id AS id {_WAITING} AND due.file_id <> ALL(%(resting)s::uuid[])
{_TURN_BY_TURN} LIMIT {MOST_DUE}
"""

_CLAIM = f"""
UPDATE transcriptions t SET attempt = t.attempt + 1, tries = t.tries + 1,
    error_code = NULL, error_message = NULL,
    due_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
FROM files f
WHERE f.id = t.file_id AND t.file_id = (
    SELECT due.file_id {_WAITING} AND (%(file)s::uuid IS NULL OR due.file_id = %(file)s)
    {_TURN_BY_TURN} LIMIT 1 FOR NO KEY UPDATE OF due SKIP LOCKED)
RETURNING t.file_id, f.tenant_id, t.language, t.prompt, t.attempt, t.tries, t.failures
"""

#: As long as the claim counts.
_RENEW = """
UPDATE transcriptions SET due_at = clock_timestamp() + make_interval(secs => %s)
WHERE file_id = %s AND attempt = %s AND due_at IS NOT NULL RETURNING file_id
"""

#: Its attempt is over, whatever the thread does that was at it. Without a pause it is due whatever
#: the clock shows.
_HAND_BACK = """
UPDATE transcriptions SET attempt = attempt + 1, tries = tries - 1,
    failures = failures + %(failures)s, error_code = %(code)s, error_message = %(message)s,
    due_at = CASE WHEN %(wait_s)s > 0 THEN clock_timestamp() + make_interval(secs => %(wait_s)s)
        ELSE to_timestamp(0) END
WHERE file_id = %(file)s AND attempt = %(attempt)s AND due_at IS NOT NULL RETURNING file_id
"""

_END = """
UPDATE transcriptions
SET due_at = NULL, transcript = %s, error_code = %s, error_message = %s, error_param = %s
WHERE file_id = %s AND attempt = %s AND due_at IS NOT NULL RETURNING file_id
"""

_ENDED = """
SELECT transcript, error_code, error_message, error_param FROM transcriptions
WHERE file_id = %s AND (due_at IS NULL OR (%s AND error_code IS NOT NULL))
"""

#: A worker that drains takes no sound any more: it counts as one last seen when it began to.
_CAN = f"""
SELECT 1 FROM worker_liveness WHERE (capabilities ->> 'transcribes')::boolean
  AND ((draining_since IS NULL AND lock_key IN ({HELD_LOCKS}))
    OR {within("coalesce(draining_since, seen_at)", "%(grace_s)s")}) LIMIT 1
"""


class Task(NamedTuple):
    """A transcription that one worker makes."""

    file_id: UUID
    tenant_id: UUID
    language: str | None
    prompt: str | None
    attempt: int
    #: This claim, and those before it whose workers died.
    tries: int
    #: Attempts before this one at which the transcriber failed.
    failures: int


class Ended(NamedTuple):
    """What a transcription ended in: a `Transcript` as JSON, or an error."""

    transcript: dict[str, object] | None
    error_code: str | None
    error_message: str | None
    error_param: str | None


def can_transcribe(database: Database, grace_s: float) -> bool:
    """Whether a live worker takes sounds, or one did in the last `grace_s` seconds."""
    return bool(database.run(_CAN, {"grace_s": grace_s}))


def want(
    database: Database,
    file: File,
    language: str | None,
    prompt: str | None,
    *,
    wait_s: float,
    max_waiting: int,
) -> None:
    """Ask for the transcription of a stored file, for `wait_s` seconds; longer than `WANTED_S` with
    `want_still`.

    Raises:
        TooManyWaiting: `max_waiting` sounds of the tenant have not ended.
    """
    given = {
        "file": file.file_id,
        "tenant": file.tenant_id,
        "language": language,
        "prompt": prompt,
        "wait_s": wait_s,
        "most": max_waiting,
    }
    with database.cursor() as cursor:
        cursor.execute(_LOCK_TENANT, (file.tenant_id,))
        if cursor.execute(_WANT, given).fetchone() is None:
            raise TooManyWaiting(
                f"{max_waiting} sounds of this tenant wait already. Send this one again when one "
                "of them has ended; TURNMILL_MEDIA__MAX_WAITING_SOUNDS allows more.",
                param="file",
            )


def want_still(database: Database, file_id: UUID) -> None:
    """Say that a call still waits, every `WANT_EVERY_S`. Raises `DatabaseUnavailable`."""
    database.run(_WANT_STILL, (file_id,))


def ended(database: Database, file_id: UUID, *, or_delayed: bool = False) -> Ended | None:
    """Return what a transcription ended in; None: it has not. `or_delayed`: or the error that it
    waits after for another attempt.
    """
    found = database.fetch(Ended, _ENDED, (file_id, or_delayed))
    return found[0] if found else None


def due(
    database: Database,
    served: Sequence[UUID] = (),
    latest_s: float = math.inf,
    resting: Sequence[UUID] = (),
) -> list[UUID]:
    """Return the transcriptions that are next, but for those that rest, by their files: those of
    the tenant that is next, and of each the one that has waited longest.

    `served`: the tenants that had their turn, the last one last; others come before them.
    `latest_s`: the Unix time by which leases are judged.
    """
    given = {"served": list(served), "latest_s": latest_s, "resting": list(resting)}
    return [row.id for row in database.fetch(Id, _DUE, given)]


def claim(
    database: Database,
    lease_s: float,
    served: Sequence[UUID] = (),
    latest_s: float = math.inf,
    file_id: UUID | None = None,
) -> Task | None:
    """Take the transcription of a file, or the one that is next. None: it, or nothing, is due.
    `served` and `latest_s` as in `due`.
    """
    given = {"lease_s": lease_s, "served": list(served), "latest_s": latest_s, "file": file_id}
    found = database.fetch(Task, _CLAIM, given)
    return found[0] if found else None


def renew(database: Database, task: Task, lease_s: float) -> bool:
    """Renew the lease. False: the task is no longer this worker's."""
    return bool(database.run(_RENEW, (lease_s, task.file_id, task.attempt)))


def hand_back(
    database: Database,
    task: Task,
    wait_s: float = 0.0,
    *,
    code: str | None = None,
    message: str | None = None,
    has_failed: bool = False,
) -> None:
    """Give the task back for another attempt in `wait_s` seconds, `MAX_DELAY_S` at most; this one
    does not count. `code`
    and `message`: the error that the attempt ended in, if it was not interrupted. `has_failed`: the
    transcriber failed, perhaps because of the sound.
    """
    given = {
        "failures": int(has_failed),
        "wait_s": wait_s,
        "code": code,
        "message": message,
        "file": task.file_id,
        "attempt": task.attempt,
    }
    database.run(_HAND_BACK, given)


def end(
    database: Database,
    task: Task,
    transcript: dict[str, object] | None = None,
    *,
    code: str | None = None,
    message: str | None = None,
    param: str | None = None,
) -> bool:
    """End it with a transcript or an error, and wake the call that waits. False: it is no longer
    this worker's, and nothing has changed.
    """
    result = None if transcript is None else Jsonb(transcript)
    with database.cursor() as cursor:
        params = (result, code, message, param, task.file_id, task.attempt)
        if cursor.execute(_END, params).fetchone() is None:
            return False
        notify(cursor, TURN_CHANNEL, task.file_id.hex)
    return True
