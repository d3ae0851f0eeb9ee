"""Files that could not be deleted: each fails alone, and is tried again after pauses that grow.

The row of `undeleted_files` says what went wrong. Whoever deletes files for others does it through
`Deletions`; whoever deletes a file that they asked for themselves gets the error.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
import structlog

from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.postgres.database import OUTAGES, Cursor, Database
from turnmill.schemas.postgres.rows import Count, fetch

log = structlog.get_logger()

#: The pause after the first failure, which doubles with each further one, and the longest; seconds.
FIRST_PAUSE_S, MOST_PAUSE_S = 60.0, 6 * 3600.0
#: So long deletions may fail in a round, seconds: a storage takes its time to refuse something.
VAIN_S = 20.0

_NOTE = f"""
INSERT INTO undeleted_files AS u (file_id, tenant_id, reason, remedy, due_at)
VALUES (%(file_id)s, %(tenant_id)s, %(reason)s, %(remedy)s,
    clock_timestamp() + make_interval(secs => {FIRST_PAUSE_S}))
ON CONFLICT (file_id) DO UPDATE SET reason = excluded.reason, remedy = excluded.remedy,
    failures = u.failures + 1, tried_at = clock_timestamp(),
    due_at = clock_timestamp() + make_interval(
        secs => least({MOST_PAUSE_S}, {FIRST_PAUSE_S} * 2.0 ^ least(u.failures, 20)))
RETURNING (NOT EXISTS (
    SELECT FROM undeleted_files before WHERE before.reason = u.reason))::int AS n
"""

#: Of files that are deleted, or are to be kept.
FORGET_UNDELETED = "DELETE FROM undeleted_files WHERE file_id = ANY(%s)"

#: Whoever repaired the storage does not wait for the end of a pause.
_MAKE_DUE = """
UPDATE undeleted_files SET due_at = clock_timestamp() WHERE file_id IN (
    SELECT file_id FROM undeleted_files WHERE due_at > clock_timestamp() FOR UPDATE SKIP LOCKED)
"""

#: Nobody tries them any more: somebody of an older release deleted or kept them. Those that are
#: still to be deleted only wait for their turn behind many others.
FORGET_STALE = """
DELETE FROM undeleted_files u WHERE due_at < clock_timestamp() - interval '2 days'
    AND NOT EXISTS (SELECT FROM files WHERE id = u.file_id AND expires_at < clock_timestamp())
    AND NOT EXISTS (
        SELECT FROM erased_files WHERE (tenant_id, file_id) = (u.tenant_id, u.file_id))
"""

#: Whoever locks rows of `files` too locks these before, and rows of `erased_files` before both.
LOCK_UNDELETED = """
SELECT 1 FROM undeleted_files WHERE file_id = ANY(%s) ORDER BY file_id FOR UPDATE
"""


class Deletions:
    """Deletions of a round, one after the other."""

    def __init__(self, cursor: Cursor, storage: Storage) -> None:
        """`cursor`: each deletion is a transaction of its own, or a savepoint within one."""
        self._cursor = cursor
        self._storage = storage
        self._vain_s = 0.0

    @property
    def are_vain(self) -> bool:
        """Whether failures have taken so much time that what is left must wait for another round.
        Those that failed are not tried first in it.
        """
        return self._vain_s >= VAIN_S

    def attempt(self, key: Key, delete: Callable[[], bool]) -> bool | None:
        """Run `delete`, which deletes row and bytes, and return what it returned: whether it did.

        None: it failed, all of it is rolled back, and the reason is noted. False too if somebody
        else holds a row that it needs.

        Raises:
            StorageUnavailable: the storage does not answer, which is no single file's fault.
            psycopg.Error: likewise, the database, or our rights on it.
        """
        began = time.monotonic()
        try:
            with self._cursor.connection.transaction():
                self._cursor.execute(FORGET_UNDELETED, ([key.file_id],))
                return delete()
            return False  # `delete` took all back
        except psycopg.errors.LockNotAvailable:
            return False
        except (*OUTAGES, psycopg.errors.InsufficientPrivilege):
            raise
        except StorageUnavailable as error:
            self._storage.owned_since("")  # raises where it is the storage, and not the file
            self._note(key, error.message, error.remedy)
        except psycopg.Error as error:
            # Without the server's text, which may quote what is in a row.
            self._note(key, f"PostgreSQL refuses the deletion: {type(error).__name__}.", "")
        self._vain_s += time.monotonic() - began
        return None

    def _note(self, key: Key, reason: str, remedy: str) -> None:
        is_new = 0
        given = {**key._asdict(), "reason": reason, "remedy": remedy}
        with suppress(psycopg.errors.LockNotAvailable), self._cursor.connection.transaction():
            is_new = fetch(self._cursor, Count, _NOTE, given)[0].n
        if is_new:
            # The doctor and the metrics have the others that fail likewise.
            log.warning("file.not_deleted", file_id=key.file_id.hex, reason=reason, remedy=remedy)


def retry_now(database: Database) -> None:
    """Let all files be tried again at once. Raises `DatabaseUnavailable`."""
    database.run(_MAKE_DUE)
