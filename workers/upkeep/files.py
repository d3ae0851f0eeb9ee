"""Retention of files: what has expired, and rows and bytes that a dead process left without each
other.

Rows without bytes are only deleted where the storage is this deployment's, and was when they were
made: a worker that sees another folder than the API, or none, would take all files for lost, and
so would one with a new bucket that the files have not been copied to.

A file that cannot be deleted keeps no other: it waits (`undeleted.py`), and then comes after those
that were not tried yet.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import islice
from typing import NamedTuple
from uuid import UUID

import structlog
from psycopg import Rollback
from psycopg.errors import LockNotAvailable

from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files.files import LOCK_CONTENT
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.postgres.database import AWAIT_STORAGE
from turnmill.schemas.postgres.links import Link
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.files.undeleted import FORGET_STALE, Deletions
from turnmill.schemas.store.knowledge.passages import delete_documents_of_file
from turnmill.workers.upkeep.months import Pause

log = structlog.get_logger()

#: Files of one statement.
PAGE_FILES = 250
#: Bytes whose row is not there yet are younger.
ORPHAN_AGE_S = 3600.0
#: Between two pages.
_PAUSE_S = 0.05


class _File(NamedTuple):
    """A row of `_EXPIRED` and `_PAGE`."""

    id: UUID
    tenant_id: UUID


class _Owner(NamedTuple):
    """The deployment."""

    id: str


_IS_UNDELETED = "EXISTS (SELECT FROM undeleted_files u WHERE u.file_id = f.id{which})"
_WAITS = _IS_UNDELETED.format(which=" AND u.due_at > clock_timestamp()")

_EXPIRED = """
SELECT id, tenant_id FROM files f
WHERE expires_at < clock_timestamp() AND id > %s AND {which} ORDER BY id LIMIT %s
"""
_EXPIRED_FIRST = _EXPIRED.format(which=f"NOT {_IS_UNDELETED.format(which='')}")
_EXPIRED_AGAIN = _EXPIRED.format(
    which=_IS_UNDELETED.format(which=" AND u.due_at <= clock_timestamp()")
)

#: One that is just being stored anew is passed over.
_DELETE = """
DELETE FROM files WHERE id IN (
    SELECT id FROM files WHERE id = %s AND (%s OR expires_at < clock_timestamp())
    FOR UPDATE SKIP LOCKED)
"""

_PAGE = f"""
SELECT id, tenant_id FROM files f
WHERE source IS NULL AND id > %s AND created_at > %s + interval '1 hour' AND NOT {_WAITS}
ORDER BY id LIMIT %s
"""
_KNOWN = "SELECT id FROM files WHERE id = ANY(%s)"
_WAITING = """
SELECT file_id AS id FROM undeleted_files
WHERE file_id = ANY(%s) AND due_at > clock_timestamp()
"""


class FileSweep:
    """One round over the files."""

    def __init__(
        self, link: Link, storage: Storage, pause: Pause, counts: Counter[str], *, is_dry: bool
    ) -> None:
        self._link = link
        self._storage = storage
        self._pause = pause
        self._counts = counts
        self._is_dry = is_dry

    def run(self) -> None:
        """Delete what has expired, then what is orphaned; end where the storage fails."""
        try:
            if not self._is_dry:
                with suppress(LockNotAvailable):  # the next round forgets them
                    self._link.execute(FORGET_STALE)
            for statement in (_EXPIRED_FIRST, _EXPIRED_AGAIN):
                self._delete_all(self._pages(statement), is_lost=False)
            owners = self._link.fetch(_Owner, "SELECT id FROM deployment")
            since = self._storage.owned_since(owners[0].id) if owners else None
            if since is not None:
                self._delete_all(self._lost(since), is_lost=True)
                self._delete_bytes_without_row()
        except StorageUnavailable as error:
            log.warning("files.not_swept", reason=error.message)

    def _delete_all(self, keys: Iterator[Key], *, is_lost: bool) -> None:
        deletions = Deletions(self._link.cursor(), self._storage)
        for key in keys:
            if self._is_dry or deletions.attempt(key, partial(self._delete, key, is_lost=is_lost)):
                self._counts["files"] += 1
            # Whoever stops does not wait for a page of slow deletions.
            if deletions.are_vain or self._pause(0.0):
                return

    def _delete(self, key: Key, *, is_lost: bool) -> bool:
        """Delete row and bytes. The row's lock keeps those apart who store the same content; who
        did so just now has brought back what was lost.
        """
        self._link.execute(AWAIT_STORAGE)
        if not self._link.execute(_DELETE, (key.file_id, is_lost)).rowcount:
            return False
        if is_lost and self._storage.has(key):
            raise Rollback
        delete_documents_of_file(self._link.cursor(), key.tenant_id, key.file_id)
        self._storage.delete(key)
        if is_lost:
            log.warning("file.lost", file_id=key.file_id.hex)
        return True

    def _lost(self, since: datetime) -> Iterator[Key]:
        """Files whose bytes are gone."""
        keys = self._pages(_PAGE, since)
        while page := list(islice(keys, PAGE_FILES)):
            yield from self._storage.missing(page)

    def _delete_bytes_without_row(self) -> None:
        deletions = Deletions(self._link.cursor(), self._storage)
        for page in _paged(self._storage.keys(ORPHAN_AGE_S)):
            passed = {
                row.id
                for statement in (_KNOWN, _WAITING)
                for row in self._link.fetch(Id, statement, (list(page),))
            }
            for file_id in page.keys() - passed:
                key = page[file_id]
                if self._is_dry or deletions.attempt(key, partial(self._delete_bytes, key)):
                    self._counts["files (bytes alone)"] += 1
                if deletions.are_vain or self._pause(0.0):
                    return
            if self._pause(_PAUSE_S):
                return

    def _delete_bytes(self, key: Key) -> bool:
        """Delete bytes whose row is still missing, and is not just being inserted."""
        self._link.execute(AWAIT_STORAGE)
        self._link.execute(LOCK_CONTENT, (key.file_id,))
        if self._link.fetch(Id, _KNOWN, ([key.file_id],)):
            return False
        self._storage.delete(key)
        return True

    def _pages(self, statement: str, *more: datetime) -> Iterator[Key]:
        after = UUID(int=0)
        while rows := self._link.fetch(_File, statement, (after, *more, PAGE_FILES)):
            yield from (Key(row.tenant_id, row.id) for row in rows)
            after = rows[-1].id
            if len(rows) < PAGE_FILES or self._pause(_PAUSE_S):
                return


def _paged(keys: Iterator[Key]) -> Iterator[dict[UUID, Key]]:
    """Pages of keys, by their files' ids. What came before an error is a page, too."""
    page: dict[UUID, Key] = {}
    try:
        for key in keys:
            page[key.file_id] = key
            if len(page) == PAGE_FILES:
                yield page
                page = {}
    except StorageUnavailable:
        yield page
        raise
    yield page
