"""Copy files from one storage to another, as when a team moves from a folder to a bucket."""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO
from uuid import UUID

from turnmill.schemas.errors import NotFound
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.postgres.database import Database

_PIECE_BYTES = 1024 * 1024
_PAGE_FILES = 250
_PAGE = """
SELECT tenant_id, id AS file_id FROM files WHERE source IS NULL AND id > %s ORDER BY id LIMIT %s
"""


def copy_files(database: Database, source: Storage, target: Storage) -> Iterator[Counter[str]]:
    """Copy what the database knows and the target lacks; yield counts after each page of files:
    `copied`, `there`, and `lost`, which are in neither.

    What is deleted meanwhile may be copied all the same: its row is gone, and the pruner deletes
    the bytes after an hour.

    Raises:
        DatabaseUnavailable, StorageUnavailable: another call copies the rest.
    """
    counts: Counter[str] = Counter()
    after = UUID(int=0)
    while page := database.fetch(Key, _PAGE, (after, _PAGE_FILES)):
        missing = target.missing(page)
        counts["there"] += len(page) - len(missing)
        for key in missing:
            counts["copied" if _copy(key, source, target) else "lost"] += 1
        yield counts
        after = page[-1].file_id


def _copy(key: Key, source: Storage, target: Storage) -> bool:
    """Copy the bytes of one key. False: there are none."""
    try:
        content: BinaryIO = source.open(key)
    except NotFound:
        return False
    with content, target.draft() as draft:
        while piece := content.read(_PIECE_BYTES):
            draft.write(piece)
        draft.publish(key)
    return True
