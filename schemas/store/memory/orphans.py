"""Orphans: files of erased turns, which are deleted once no turn refers to them.

Whoever erases turns notes their files in the same transaction. What is left of the turns is then
searched, slice by slice in the order of their ids, from the time when the file was stored. Each
slice is a transaction that locks nothing but the notes, and notes how far the search is. A pause as
long follows, with the notes locked: no other process fills it. The last one also locks the files,
looks again at the turns of the last minute, and pauses afterwards.

A search that has begun ends before files are searched for that were noted meanwhile, so that they
do not send it back. A file that cannot be deleted keeps no other: it waits (`undeleted.py`), and a
later search begins where this one ended.

No index leads to the turns of one tenant: those of all tenants since then are passed over. Only the
tenant's own are read beyond their row.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.ids import Prefix, first_id
from turnmill.schemas.postgres.database import AWAIT_STORAGE, Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.files.undeleted import FORGET_UNDELETED, LOCK_UNDELETED, Deletions

#: Files that are searched for at a time, and turns in the first slice and in the largest.
MOST_FILES, FIRST_ROWS, MOST_ROWS = 500, 500, 5_000

#: A slice is made as large as can be read in this time, seconds.
SLICE_S = 0.05
#: The pause after a slice is as long as the slice took, and no longer than this.
MOST_PAUSE_S = 1.0

#: So long a step deletes files, seconds: whoever stores the same content, or deletes it, waits.
HOLD_S = 2.0

#: Ids of turns are made before their transactions commit, by clocks that differ.
LATE = timedelta(minutes=1)
_SKEW = timedelta(hours=1)

#: The ids in the parts of a turn's messages (`MediaPart`).
_NAMED = (
    f"jsonb_path_query(t.input, '$[*].content[*].file_id ? "
    f'(@ like_regex "^{Prefix.FILE}_[0-9a-f]{{32}}$")\') AS named'
)
_ID = f"substr(named #>> '{{}}', {len(Prefix.FILE) + 2})::uuid"

#: A note that a search is just deleting is waited for, and made anew.
NOTE_FILES = f"""
INSERT INTO erased_files AS e (file_id, tenant_id, asked_by)
SELECT DISTINCT {_ID}, %(tenant)s::uuid, ARRAY[%(key_hash)s::bytea] FROM turns t, {_NAMED}
WHERE t.id = ANY(%(said)s) ORDER BY 1
ON CONFLICT (tenant_id, file_id) DO UPDATE
SET asked_by = array_remove(e.asked_by, %(key_hash)s::bytea) || excluded.asked_by
"""

#: Somebody stores the same content again, and names it in a turn that is not accepted yet. Whoever
#: locks a file, too, does so afterwards, as a search does (`LOCK_UNDELETED`).
KEEP_FILE = """
WITH undeleted AS (DELETE FROM undeleted_files WHERE file_id = %(file_id)s)
DELETE FROM erased_files WHERE tenant_id = %(tenant_id)s AND file_id = %(file_id)s
"""

#: Those of the search that has begun, or all but those that wait. Whoever notes one of them waits,
#: until it is known whether the note stays.
_NOTED = f"""
SELECT e.file_id, coalesce(e.searched_to, e.cleared_to) AS cleared_to, f.created_at
FROM erased_files e LEFT JOIN files f ON f.id = e.file_id AND f.tenant_id = e.tenant_id
WHERE e.tenant_id = %(tenant_id)s AND (e.searched_to IS NOT NULL OR %(is_new)s AND NOT EXISTS (
    SELECT FROM undeleted_files u WHERE u.file_id = e.file_id AND u.due_at > clock_timestamp()))
ORDER BY e.file_id LIMIT {MOST_FILES} FOR UPDATE OF e
"""

_LOCK_FILES = "SELECT 1 FROM files WHERE tenant_id = %s AND id = ANY(%s) ORDER BY id FOR UPDATE"

_SLICE = f"""
WITH slice AS MATERIALIZED (
    SELECT id, tenant_id, input FROM turns WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
)
SELECT count(*) AS row_count, (SELECT id FROM slice ORDER BY id DESC LIMIT 1) AS last_id,
    ARRAY(SELECT DISTINCT {_ID} FROM slice t, {_NAMED}
        WHERE t.tenant_id = %(tenant_id)s AND {_ID} = ANY(%(file_ids)s)) AS found
FROM slice
"""

_SEARCHED = "UPDATE erased_files SET searched_to = %s WHERE tenant_id = %s AND file_id = ANY(%s)"
_PUT_OFF = """
UPDATE erased_files SET searched_to = NULL, cleared_to = %s
WHERE tenant_id = %s AND file_id = ANY(%s)
"""
_FORGET = "DELETE FROM erased_files WHERE tenant_id = %s AND file_id = ANY(%s)"
_DELETE = "DELETE FROM files WHERE tenant_id = %s AND id = %s"


class _Noted(NamedTuple):
    """A row of `_NOTED`."""

    file_id: UUID
    cleared_to: UUID | None
    #: None: the row is gone.
    created_at: datetime | None

    def after(self) -> UUID:
        """The turn after which the search continues: no turn names a file before it is stored."""
        assert self.created_at is not None
        return self.cleared_to or first_id(self.created_at - _SKEW)


class _Slice(NamedTuple):
    """Which turns are read, and which files are looked for in them: parameters of `_SLICE`."""

    tenant_id: UUID
    file_ids: list[UUID]
    after: UUID
    rows: int


class _Named(NamedTuple):
    """The row of `_SLICE`."""

    row_count: int
    last_id: UUID | None
    found: list[UUID]


def delete_orphans(
    database: Database, storage: Storage, tenant_id: UUID, *, within_s: float = math.inf
) -> Counter[str]:
    """Delete the files of erased turns that no turn refers to, rows and bytes, and count them.

    What is not searched after `within_s` is left to the next call.

    Raises:
        DatabaseUnavailable, StorageUnavailable: what was searched need not be searched again.
    """
    ends = time.monotonic() + within_s
    counts: Counter[str] = Counter()
    for deleted in search(database, storage, tenant_id):
        counts["files"] += deleted
        if time.monotonic() >= ends:
            break
    return counts


def search(database: Database, storage: Storage, tenant_id: UUID) -> Iterator[int]:
    """Search slice by slice; yield after each how many files were deleted. Nothing is locked then.

    Raises as `delete_orphans` does.
    """
    rows = FIRST_ROWS
    while True:
        with database.cursor() as cursor:
            noted = _noted(cursor, tenant_id)
            if not noted:
                return
            began = time.monotonic()
            deleted = _step(cursor, storage, tenant_id, noted, rows)
            took_s = max(time.monotonic() - began, 0.001)
            pause_s = min(took_s, MOST_PAUSE_S)
            if deleted is None:
                time.sleep(pause_s)
        rows = max(1, min(MOST_ROWS, 2 * rows, int(rows * SLICE_S / took_s)))
        yield deleted or 0
        if deleted is not None:
            time.sleep(pause_s)


def _noted(cursor: Cursor, tenant_id: UUID) -> list[_Noted]:
    """Lock and return the notes of the search that has begun, or else those of a new one."""
    for is_new in (False, True):
        params = {"tenant_id": tenant_id, "is_new": is_new}
        if noted := fetch(cursor, _Noted, _NOTED, params):
            return noted
    return []


def _step(
    cursor: Cursor, storage: Storage, tenant_id: UUID, noted: list[_Noted], rows: int
) -> int | None:
    """Search one slice; return the number of files deleted, or None if it was not the last one."""
    places = {each.file_id: each.after() for each in noted if each.created_at is not None}
    done = [each.file_id for each in noted if each.created_at is None]
    late = first_id(datetime.now(UTC) - LATE)
    slice_ = _Slice(tenant_id, list(places), min(places.values(), default=late), rows)
    last_id, found = _look(cursor, slice_)
    if last_id is None or last_id >= late:
        cursor.execute(LOCK_UNDELETED, (slice_.file_ids,))
        cursor.execute(_LOCK_FILES, (tenant_id, slice_.file_ids))
        found |= _look_again(cursor, slice_._replace(after=late))
        orphans = [each for each in places if each not in found]
        deleted, refused = _delete(cursor, storage, tenant_id, orphans)
        cursor.execute(_PUT_OFF, (late, tenant_id, refused))
        _forget(cursor, tenant_id, [*found, *done, *deleted])
        return len(deleted)
    # Also of files that were stored later, which no turn names up to there.
    cursor.execute(_SEARCHED, (last_id, tenant_id, [each for each in places if each not in found]))
    _forget(cursor, tenant_id, [*found, *done])
    return None


def _forget(cursor: Cursor, tenant_id: UUID, file_ids: list[UUID]) -> None:
    """Drop the notes of files that are gone, or that turns refer to."""
    cursor.execute(_FORGET, (tenant_id, file_ids))
    cursor.execute(FORGET_UNDELETED, (file_ids,))


def _look(cursor: Cursor, slice_: _Slice) -> tuple[UUID | None, set[UUID]]:
    """Return the last turn of a slice, or None if no turn follows it, and the files named in it."""
    (row,) = fetch(cursor, _Named, _SLICE, slice_._asdict())
    return (row.last_id if row.row_count == slice_.rows else None), set(row.found)


def _look_again(cursor: Cursor, slice_: _Slice) -> set[UUID]:
    """Return the files that the turns of the last minute name."""
    found: set[UUID] = set()
    place: UUID | None = slice_.after
    while place is not None:
        place, named = _look(cursor, slice_._replace(after=place))
        found |= named
    return found


def _delete(
    cursor: Cursor, storage: Storage, tenant_id: UUID, file_ids: list[UUID]
) -> tuple[list[UUID], list[UUID]]:
    """Delete rows and bytes; return the files that are deleted, and those that could not be. The
    others are left to the next step. A byte that is left without its row goes with the next sweep.

    A statement for each: the transaction must not be idle for as long as all their bytes take.
    """
    cursor.execute(AWAIT_STORAGE)
    deletions = Deletions(cursor, storage)
    ends = time.monotonic() + HOLD_S
    deleted: list[UUID] = []
    refused: list[UUID] = []
    for key in (Key(tenant_id, each) for each in file_ids):

        def delete(key: Key = key) -> bool:
            cursor.execute(_DELETE, key)
            storage.delete(key)
            return True

        (deleted if deletions.attempt(key, delete) else refused).append(key.file_id)
        if time.monotonic() >= ends:
            break
    return deleted, refused
