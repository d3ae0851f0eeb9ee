"""Retention of files: what has expired, and rows and bytes that a dead process left without each
other.

Rows without bytes are only deleted where the storage is this deployment's, and was when they were
made: a worker that sees another folder than the API, or none, would take all files for lost, and
so would one with a new bucket that the files have not been copied to.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import NamedTuple
from uuid import UUID

import structlog
from psycopg import Rollback

from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files.files import LOCK_CONTENT
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.postgres.database import AWAIT_STORAGE
from turnmill.schemas.postgres.links import Link
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.knowledge.passages import delete_documents_of_file
from turnmill.workers.upkeep.months import Pause

log = structlog.get_logger()

#: Files of one statement.
PAGE_FILES = 250
#: Bytes whose row is not there yet are younger.
ORPHAN_AGE_S = 3600.0
#: So many deletions that fail in a row end the round: then it is the storage, and not a file.
MOST_FAILURES = 10
#: Between two pages.
_PAUSE_S = 0.05


class _File(NamedTuple):
    """A row of `_EXPIRED` and `_PAGE`."""

    id: UUID
    tenant_id: UUID


class _Owner(NamedTuple):
    """The deployment."""

    id: str


_EXPIRED = """
SELECT id, tenant_id FROM files
WHERE expires_at < clock_timestamp() AND id > %s ORDER BY id LIMIT %s
"""

#: One that is just being stored anew is passed over.
_DELETE = """
DELETE FROM files WHERE id IN (
    SELECT id FROM files WHERE id = %s AND (%s OR expires_at < clock_timestamp())
    FOR UPDATE SKIP LOCKED)
"""

_PAGE = """
SELECT id, tenant_id FROM files
WHERE source IS NULL AND id > %s AND created_at > %s + interval '1 hour' ORDER BY id LIMIT %s
"""
_KNOWN = "SELECT id FROM files WHERE id = ANY(%s)"


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
        self._failures = 0

    def run(self) -> None:
        """Delete what has expired, then what is orphaned; end where the storage fails."""
        try:
            for key in self._pages(_EXPIRED):
                self._delete(key, is_lost=False)
            owners = self._link.fetch(_Owner, "SELECT id FROM deployment")
            since = self._storage.owned_since(owners[0].id) if owners else None
            if since is not None:
                keys = self._pages(_PAGE, since)
                while page := list(islice(keys, PAGE_FILES)):
                    for key in self._storage.missing(page):
                        self._delete(key, is_lost=True)
                self._delete_bytes_without_row()
        except StorageUnavailable as error:
            log.warning("files.not_swept", reason=error.message)

    def _delete(self, key: Key, *, is_lost: bool) -> None:
        """Delete row and bytes. The row's lock keeps those apart who store the same content; who
        did so just now has brought back what was lost.
        """
        if self._is_dry:
            self._counts["files"] += 1
            return
        with self._tolerated(key, "files"), self._link.transaction() as transaction:
            self._link.execute(AWAIT_STORAGE)
            if self._link.execute(_DELETE, (key.file_id, is_lost)).rowcount:
                if is_lost and self._storage.has(key):
                    raise Rollback(transaction)
                delete_documents_of_file(self._link.cursor(), key.tenant_id, key.file_id)
                self._storage.delete(key)
                if is_lost:
                    log.warning("file.lost", file_id=key.file_id.hex)

    @contextmanager
    def _tolerated(self, key: Key, counted: str) -> Iterator[None]:
        """Count a deletion. One that the storage refuses keeps no other file."""
        try:
            yield
        except StorageUnavailable as error:
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise
            log.warning("file.not_deleted", file_id=key.file_id.hex, reason=error.message)
        else:
            self._failures = 0
            self._counts[counted] += 1

    def _delete_bytes_without_row(self) -> None:
        keys = self._storage.keys(ORPHAN_AGE_S)
        while page := {key.file_id: key for key in islice(keys, PAGE_FILES)}:
            known = {row.id for row in self._link.fetch(Id, _KNOWN, (list(page),))}
            for file_id in page.keys() - known:
                self._delete_bytes(page[file_id])
            if self._pause(_PAUSE_S):
                return

    def _delete_bytes(self, key: Key) -> None:
        """Delete bytes whose row is still missing, and is not just being inserted."""
        counted = "files (bytes alone)"
        if self._is_dry:
            self._counts[counted] += 1
            return
        with self._tolerated(key, counted), self._link.transaction():
            self._link.execute(AWAIT_STORAGE)
            self._link.execute(LOCK_CONTENT, (key.file_id,))
            if not self._link.fetch(Id, _KNOWN, ([key.file_id],)):
                self._storage.delete(key)

    def _pages(self, statement: str, *more: datetime) -> Iterator[Key]:
        after = UUID(int=0)
        while rows := self._link.fetch(_File, statement, (after, *more, PAGE_FILES)):
            yield from (Key(row.tenant_id, row.id) for row in rows)
            after = rows[-1].id
            if len(rows) < PAGE_FILES or self._pause(_PAUSE_S):
                return
