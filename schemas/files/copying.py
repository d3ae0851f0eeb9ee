"""Copy files from one storage to another, as when a team moves from a folder to a bucket."""

import time
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

import structlog

from turnmill.schemas.errors import NotFound, StorageUnavailable
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.files.undeleted import VAIN_S

log = structlog.get_logger()

_PIECE_BYTES = 1024 * 1024
_PAGE_FILES = 250
#: So many failures in a row, and `VAIN_S` of them, are no fault of single files.
_VAIN_FILES = 10
_PAGE = """
SELECT tenant_id, id AS file_id FROM files WHERE source IS NULL AND id > %s ORDER BY id LIMIT %s
"""


def copy_files(database: Database, source: Storage, target: Storage) -> Iterator[Counter[str]]:
    """Copy what the database knows and the target lacks; yield counts after each page of files:
    `copied`, `there`, `lost`, which are in neither, and `failed`, which keep no others; the log
    names those.

    What is deleted meanwhile may be copied all the same: its row is gone, and the pruner deletes
    the bytes after an hour.

    Raises:
        DatabaseUnavailable: another call copies the rest.
        StorageUnavailable: likewise, where one of the storages does not answer at all, or has
            refused one file after the other for so long that it will not take the next.
    """
    counts: Counter[str] = Counter()
    after, failures, vain_s = UUID(int=0), 0, 0.0
    while page := database.fetch(Key, _PAGE, (after, _PAGE_FILES)):
        missing = target.missing(page)
        counts["there"] += len(page) - len(missing)
        for key in missing:
            began = time.monotonic()
            counts[result := _copy(key, source, target)] += 1
            if result == "copied":
                failures, vain_s = 0, 0.0
            elif result == "failed":
                failures, vain_s = failures + 1, vain_s + time.monotonic() - began
            if failures >= _VAIN_FILES and vain_s >= VAIN_S:
                raise StorageUnavailable(_in_vain(counts, failures))
        yield counts
        after = page[-1].file_id


def _copy(key: Key, source: Storage, target: Storage) -> str:
    """Copy the bytes of one key; return what to count it as."""
    try:
        with source.open(key) as content, target.draft() as draft:
            while piece := content.read(_PIECE_BYTES):
                draft.write(piece)
            draft.publish(key)
    except NotFound:
        return "lost"
    except (OSError, StorageUnavailable) as error:
        for storage in (source, target):
            storage.owned_since("")  # raises where it is the storage, and not the file
        reason = error.message if isinstance(error, StorageUnavailable) else error.strerror
        log.warning("file.not_copied", file_id=key.file_id.hex, reason=reason)
        return "failed"
    return "copied"


def _in_vain(counts: Counter[str], failures: int) -> str:
    return (
        f"{counts['copied']:,} files were copied, and then {failures:,} in a row could not be; the "
        "rest was not tried. The log has each with the reason (file.not_copied). Run the command "
        "again when that is mended."
    )
