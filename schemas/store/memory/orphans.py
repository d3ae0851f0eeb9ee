"""Orphans: files of erased turns, which are deleted once no turn refers to them.

Whoever erases turns notes their files in the same transaction. What is left of the turns is then
searched, slice by slice in the order of their ids, from the time when the file was stored. Each
slice is a transaction that locks nothing but the notes, and notes how far the search is. A pause as
long follows. The last one also locks the files, and looks again at the turns of the last minute.

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
from turnmill.schemas.postgres.database import Cursor, Database

#: Files that are searched for at a time, and turns in the first slice and in the largest.
MOST_FILES, FIRST_ROWS, MOST_ROWS = 500, 500, 5_000

#: A slice is made as large as can be read in this time, seconds.
SLICE_S = 0.05
#: The pause after a slice is as long as the slice took, and no longer than this.
MOST_PAUSE_S = 1.0

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
INSERT INTO erased_files AS e (file_id, tenant_id)
SELECT DISTINCT {_ID}, %(tenant)s::uuid FROM turns t, {_NAMED}
WHERE t.id = ANY(%(said)s) ORDER BY 1
ON CONFLICT (tenant_id, file_id) DO UPDATE SET searched_to = e.searched_to
"""

#: Somebody stores the same content again, and names it in a turn that is not accepted yet. Whoever
#: locks a file, too, does so afterwards, as a search does.
KEEP_FILE = "DELETE FROM erased_files WHERE tenant_id = %s AND file_id = %s"

#: Whoever notes one of them waits, until it is known whether the note stays.
_NOTED = f"""
SELECT e.file_id, e.searched_to, f.created_at
FROM erased_files e LEFT JOIN files f ON f.id = e.file_id AND f.tenant_id = e.tenant_id
WHERE e.tenant_id = %s ORDER BY e.file_id LIMIT {MOST_FILES} FOR UPDATE OF e
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
_FORGET = "DELETE FROM erased_files WHERE tenant_id = %s AND file_id = ANY(%s)"
_DELETE = "DELETE FROM files WHERE tenant_id = %s AND id = ANY(%s)"


class _Noted(NamedTuple):
    """A row of `_NOTED`."""

    file_id: UUID
    searched_to: UUID | None
    #: None: the row is gone.
    created_at: datetime | None

    def after(self) -> UUID:
        """The turn after which the search continues: no turn names a file before it is stored."""
        assert self.created_at is not None
        return self.searched_to or first_id(self.created_at - _SKEW)


class _Slice(NamedTuple):
    """Which turns are read, and which files are looked for in them: parameters of `_SLICE`."""

    tenant_id: UUID
    file_ids: list[UUID]
    after: UUID
    rows: int


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
        began = time.monotonic()
        with database.cursor() as cursor:
            deleted = _step(cursor, storage, tenant_id, rows)
        if deleted is None:
            return
        took_s = max(time.monotonic() - began, 0.001)
        rows = max(1, min(MOST_ROWS, 2 * rows, int(rows * SLICE_S / took_s)))
        yield deleted
        time.sleep(min(took_s, MOST_PAUSE_S))


def _step(cursor: Cursor, storage: Storage, tenant_id: UUID, rows: int) -> int | None:
    """Search one slice; return the number of files deleted, or None if none is noted."""
    noted = [_Noted(*row) for row in cursor.execute(_NOTED, (tenant_id,))]
    if not noted:
        return None
    places = {each.file_id: each.after() for each in noted if each.created_at is not None}
    done = [each.file_id for each in noted if each.created_at is None]
    late = first_id(datetime.now(UTC) - LATE)
    slice_ = _Slice(tenant_id, list(places), min(places.values(), default=late), rows)
    last_id, found = _look(cursor, slice_)
    if last_id is None or last_id >= late:
        cursor.execute(_LOCK_FILES, (tenant_id, slice_.file_ids))
        found |= _look_again(cursor, slice_._replace(after=late))
        orphans = [each for each in places if each not in found]
        cursor.execute(_FORGET, (tenant_id, [*places, *done]))
        _delete(cursor, storage, tenant_id, orphans)
        return len(orphans)
    behind = [each for each, place in places.items() if each not in found and place < last_id]
    cursor.execute(_SEARCHED, (last_id, tenant_id, behind))
    cursor.execute(_FORGET, (tenant_id, [*found, *done]))
    return 0


def _look(cursor: Cursor, slice_: _Slice) -> tuple[UUID | None, set[UUID]]:
    """Return the last turn of a slice, or None if no turn follows it, and the files named in it."""
    row = cursor.execute(_SLICE, slice_._asdict()).fetchone()
    assert row is not None
    return (row.last_id if row.row_count == slice_.rows else None), set(row.found)


def _look_again(cursor: Cursor, slice_: _Slice) -> set[UUID]:
    """Return the files that the turns of the last minute name."""
    found: set[UUID] = set()
    place: UUID | None = slice_.after
    while place is not None:
        place, named = _look(cursor, slice_._replace(after=place))
        found |= named
    return found


def _delete(cursor: Cursor, storage: Storage, tenant_id: UUID, file_ids: list[UUID]) -> None:
    """Delete rows and bytes; a byte that is left without its row goes with the next sweep."""
    cursor.execute(_DELETE, (tenant_id, file_ids))
    for file_id in file_ids:
        storage.delete(Key(tenant_id, file_id))
