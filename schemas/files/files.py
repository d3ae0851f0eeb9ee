"""Files: save, find, list and delete them. Each belongs to one tenant, and is nobody else's."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import BinaryIO, NamedTuple
from uuid import UUID

from turnmill.schemas.content import MAX_NAME_CHARS, storable
from turnmill.schemas.errors import NotFound, StorageFull, StorageUnavailable
from turnmill.schemas.files.sniffing import sniff
from turnmill.schemas.files.storage import Draft, Key, Storage
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import AWAIT_STORAGE, Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.files.undeleted import FORGET_UNDELETED
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.schemas.store.knowledge.passages import delete_documents_of_file
from turnmill.schemas.store.memory.orphans import KEEP_FILE

_COLUMNS = (
    "id AS file_id, tenant_id, name, purpose, bytes AS size, sha256, mime, created_at, expires_at"
)

#: Uploads at the same time may exceed the tenant's limit by a file each. The same id again is the
#: same content (`file_id` of `save`), which lives as long as the later call asks for, or the one
#: that was fetched.
_INSERT = f"""
INSERT INTO files AS f (id, tenant_id, name, purpose, bytes, sha256, mime, expires_at)
SELECT %(id)s, %(tenant)s, %(name)s, %(purpose)s, %(bytes)s, %(sha256)s, %(mime)s, %(expires_at)s
WHERE %(bytes)s + (SELECT coalesce(sum(bytes), 0) FROM files
    WHERE tenant_id = %(tenant)s AND id <> %(id)s) <= %(max)s
ON CONFLICT (id) DO UPDATE SET expires_at = greatest(f.expires_at, excluded.expires_at),
    bytes = excluded.bytes, sha256 = excluded.sha256, mime = excluded.mime, source = NULL
RETURNING {_COLUMNS}
"""

#: Who stores content again whose row is gone, and who deletes its bytes, have no row to lock.
LOCK_CONTENT = "SELECT pg_advisory_xact_lock(hashtextextended('file/' || %s::uuid, 0))"

#: Held until its bytes are there: who is forgotten meanwhile does not come back with them.
_OWED = "SELECT 1 FROM files WHERE tenant_id = %s AND id = %s AND source IS NOT NULL FOR UPDATE"

_KNOWN = "SELECT 1 FROM files WHERE tenant_id = %s AND id = %s"

_FIND = f"SELECT {_COLUMNS} FROM files WHERE tenant_id = %s AND id = ANY(%s)"

_PROLONG = f"""
UPDATE files SET expires_at = greatest(expires_at, %s) WHERE tenant_id = %s AND id = %s
RETURNING {_COLUMNS}
"""

_LIST = """
SELECT {columns} FROM files
WHERE tenant_id = %(tenant)s AND purpose = ANY(%(purposes)s) AND (
    %(after)s::uuid IS NULL OR (created_at, id) {beyond}
    (SELECT created_at, id FROM files WHERE tenant_id = %(tenant)s AND id = %(after)s))
ORDER BY created_at {order}, id {order} LIMIT %(limit)s
"""

_DELETE = "DELETE FROM files WHERE tenant_id = %s AND id = %s RETURNING id"


class Purpose(StrEnum):
    """What a file is for."""

    USER_DATA = "user_data"
    ASSISTANTS = "assistants"
    VISION = "vision"
    #: A part of a message: stored when its turn is accepted, or fetched from a channel.
    MESSAGE = "message"


#: Of files that people upload, and find in lists.
UPLOADED = (Purpose.USER_DATA, Purpose.ASSISTANTS, Purpose.VISION)


class File(NamedTuple):
    file_id: UUID
    tenant_id: UUID
    name: str
    purpose: str
    size: int
    sha256: bytes
    mime: str
    created_at: datetime
    expires_at: datetime | None

    @property
    def key(self) -> Key:
        return Key(self.tenant_id, self.file_id)

    @property
    def shown_id(self) -> str:
        return show_id(Prefix.FILE, self.file_id)


class Files:
    """The files of all tenants."""

    def __init__(self, database: Database, storage: Storage, max_tenant_bytes: int) -> None:
        self._database = database
        self._storage = storage
        self._max_tenant_bytes = max_tenant_bytes
        self._is_claimed = False

    def save(
        self,
        draft: Draft,
        *,
        tenant_id: UUID,
        name: str,
        purpose: Purpose,
        expires_at: datetime | None = None,
        file_id: UUID | None = None,
        is_owed: bool = False,
    ) -> File:
        """Store a draft as a file. The name is only shown; the type is that of the content.

        `file_id`: derived from the tenant and the content, so that the same content is one file.
        `is_owed`: only while the file is still to be fetched.

        Raises:
            NotFound: the file is owed no longer.
            StorageFull: the tenant's files together would be too large.
            StorageUnavailable: the bytes cannot be stored, or the storage is another deployment's.
            DatabaseUnavailable: it is not stored, or its bytes are, and retention deletes them.
        """
        self._claim()
        key = Key(tenant_id, file_id or new_id())
        row = {
            "id": key.file_id,
            "tenant": tenant_id,
            "name": shown_name(name),
            "purpose": purpose,
            "bytes": draft.size,
            "sha256": draft.digest,
            "mime": sniff(draft.head),
            "expires_at": expires_at,
            "max": self._max_tenant_bytes,
        }
        if not is_owed:
            # No transaction waits while its bytes travel, and nobody looks for them without a row.
            draft.publish(key)
        with self._database.cursor() as cursor:
            cursor.execute(AWAIT_STORAGE)
            cursor.execute(LOCK_CONTENT, (key.file_id,))
            if not is_owed:
                cursor.execute(KEEP_FILE, key._asdict())
            elif cursor.execute(_OWED, key).fetchone() is None:
                raise unknown_file(key.file_id)
            # The row's lock keeps a deletion of the same content apart.
            rows = fetch(cursor, File, _INSERT, row)
            if not rows:
                self._delete_bytes_alone(cursor, key)
                raise StorageFull
            if is_owed:
                draft.publish(key)
            elif file_id is not None and not self._storage.has(key):
                raise StorageUnavailable("The same content was just being deleted. Try again.")
        return rows[0]

    def _delete_bytes_alone(self, cursor: Cursor, key: Key) -> None:
        """Delete bytes unless a row has them. The content is locked."""
        if cursor.execute(_KNOWN, key).fetchone() is None:
            self._storage.delete(key)

    def _claim(self) -> None:
        """Once, and before anything is stored: another deployment's pruner would delete it."""
        if not self._is_claimed:
            self._storage.claim(read_deployment(self._database).id)
            self._is_claimed = True

    def find(self, tenant_id: UUID, file_id: UUID) -> File:
        """Raises `NotFound`, for files of other tenants too."""
        return self.find_all(tenant_id, [file_id])[0]

    def find_all(self, tenant_id: UUID, file_ids: Sequence[UUID]) -> list[File]:
        """Files in this order. Raises `NotFound`, for files of other tenants too."""
        rows = self._database.fetch(File, _FIND, (tenant_id, list(file_ids)))
        found = {row.file_id: row for row in rows}
        for file_id in file_ids:
            if file_id not in found:
                raise unknown_file(file_id)
        return [found[file_id] for file_id in file_ids]

    def prolong(self, tenant_id: UUID, file_id: UUID, expires_at: datetime) -> File:
        """Let a file live until then at least. Raises `NotFound`."""
        with self._database.cursor() as cursor:
            cursor.execute(KEEP_FILE, Key(tenant_id, file_id)._asdict())
            found = fetch(cursor, File, _PROLONG, (expires_at, tenant_id, file_id))
        if not found:
            raise unknown_file(file_id)
        return found[0]

    def open(self, file: File) -> BinaryIO:
        """Open the content of a file. Raises `NotFound` and `StorageUnavailable`."""
        return self._storage.open(file.key)

    def read(self, file: File) -> bytes:
        """Return the content of a file. Raises `NotFound` and `StorageUnavailable`."""
        with self.open(file) as content:
            return content.read()

    def page(
        self,
        tenant_id: UUID,
        *,
        purposes: tuple[Purpose, ...] = UPLOADED,
        after: UUID | None = None,
        limit: int,
        newest_first: bool = True,
    ) -> list[File]:
        """Return a page of a tenant's files, by the time of their upload."""
        order = (
            {"beyond": "<", "order": "DESC"} if newest_first else {"beyond": ">", "order": "ASC"}
        )
        asked = {
            "tenant": tenant_id,
            "purposes": list(purposes),
            "after": after,
            "limit": limit,
        }
        return self._database.fetch(File, _LIST.format(columns=_COLUMNS, **order), asked)

    def delete(self, tenant_id: UUID, file_id: UUID) -> None:
        """Delete a file for good, with the documents that collections have of it. Turns that refer
        to it say from then on that it is gone.

        Raises:
            NotFound: the tenant has no such file.
            StorageUnavailable: nothing is deleted.
        """
        with self._database.cursor() as cursor:
            cursor.execute(AWAIT_STORAGE)
            cursor.execute(FORGET_UNDELETED, ([file_id],))
            if cursor.execute(_DELETE, (tenant_id, file_id)).fetchone() is None:
                raise unknown_file(file_id)
            delete_documents_of_file(cursor, tenant_id, file_id)
            self._storage.delete(Key(tenant_id, file_id))


def shown_name(name: str) -> str:
    """Reduce a name that somebody gave to its last part, printable and of bounded length.

    It is shown and handed back, and no path is made of it.
    """
    last = storable(name).replace("\\", "/").rstrip("/").rpartition("/")[2]
    printable = "".join(char for char in last if char.isprintable()).strip()
    return printable[-MAX_NAME_CHARS:] or "file"


def unknown_file(file_id: UUID) -> NotFound:
    """Build the error for a file that the tenant does not have."""
    return NotFound(
        f"There is no file '{show_id(Prefix.FILE, file_id)}': it was deleted, has expired, or "
        "never was. Upload it: POST /v1/files",
        param="file_id",
    )
