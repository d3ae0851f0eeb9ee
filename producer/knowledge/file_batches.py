"""Files that are added to a collection together, for the API: OpenAI's file batches."""

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.knowledge.stores import add_files, find_store
from turnmill.schemas.errors import NotFound
from turnmill.schemas.files.files import Files
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.knowledge.indexing import Attributes
from turnmill.schemas.store.knowledge.passages import delete_documents, lock_collection

_SAVE = "INSERT INTO file_batches (id, collection_id, documents) VALUES (%s, %s, %s)"

_FIND = """
SELECT b.id, b.collection_id, cardinality(b.documents) AS kept,
    cardinality(b.cancelled) AS cancelled, n.*
FROM file_batches b JOIN collections c ON c.id = b.collection_id CROSS JOIN LATERAL (
    SELECT count(*) AS found, count(*) FILTER (WHERE d.state = 'ready') AS completed,
        count(*) FILTER (WHERE d.state = 'failed') AS failed
    FROM documents d WHERE d.id = ANY(b.documents) AND d.collection_id = b.collection_id
) AS n
WHERE c.tenant_id = %s AND b.collection_id = %s AND b.id = %s
"""

#: Who adds one of them again meanwhile has done so before they are judged, or does so afterwards.
_LOCK_UNREAD = """
SELECT FROM file_batches b
JOIN documents d ON d.id = ANY(b.documents) AND d.collection_id = b.collection_id
WHERE b.id = %(batch)s AND d.version = 0 ORDER BY d.origin, d.uri FOR UPDATE OF d
"""


class _Unread(NamedTuple):
    id: UUID
    is_unwanted: bool


#: A document that is read again keeps the passages that it has. One that was added by itself, or
#: that another batch has, is wanted still.
_UNREAD = """
SELECT d.id, d.is_of_batches AND d.id NOT IN (
    SELECT unnest(documents) FROM file_batches
    WHERE collection_id = %(store)s AND id <> %(batch)s
) AS is_unwanted
FROM file_batches b
JOIN documents d ON d.id = ANY(b.documents) AND d.collection_id = b.collection_id
WHERE b.id = %(batch)s AND d.version = 0 AND d.state IN ('queued', 'indexing')
"""

_CANCEL = """
UPDATE file_batches SET cancelled = cancelled || %(unread)s, documents = ARRAY(
    SELECT unnest(documents) EXCEPT SELECT unnest(%(unread)s))
WHERE id = %(batch)s
"""


class FileBatch(NamedTuple):
    """A batch, and how many of its documents are in which state."""

    id: UUID
    collection_id: UUID
    #: Documents, without those that were cancelled.
    kept: int
    cancelled: int
    #: Of those kept, what the collection still has.
    found: int
    completed: int
    failed: int

    @property
    def in_progress(self) -> int:
        return self.found - self.completed - self.failed


def add_batch(
    database: Database,
    files: Files,
    tenant_id: UUID,
    store_id: UUID,
    wanted: Mapping[UUID, Attributes | None],
) -> FileBatch:
    """Queue a document of each file, in one transaction. `wanted`: files and their attributes.

    Raises:
        InvalidInput: there is no reader for one of them, or it is too large.
        NotFound: there is no such collection, or one of the files is missing.
    """
    find_store(database, tenant_id, store_id)
    found = list(zip(files.find_all(tenant_id, list(wanted)), wanted.values(), strict=True))
    batch_id = new_id()
    with database.cursor() as cursor:
        documents = add_files(cursor, tenant_id, store_id, found, is_of_batch=True)
        cursor.execute(_SAVE, (batch_id, store_id, documents))
    return find_batch(database, tenant_id, store_id, batch_id)


def find_batch(database: Database, tenant_id: UUID, store_id: UUID, batch_id: UUID) -> FileBatch:
    """Raises `NotFound`, for those of other tenants too."""
    found = database.fetch(FileBatch, _FIND, (tenant_id, store_id, batch_id))
    if not found:
        raise NotFound("The vector store has no such file batch.", param="batch_id")
    return found[0]


def cancel_batch(database: Database, tenant_id: UUID, store_id: UUID, batch_id: UUID) -> FileBatch:
    """Take the documents out of a batch that nobody has read yet, and delete those that nothing
    else has added. A worker that reads one finds it gone. Raises `NotFound`.
    """
    find_batch(database, tenant_id, store_id, batch_id)
    with database.cursor() as cursor:
        lock_collection(cursor, store_id)
        place = {"store": store_id, "batch": batch_id}
        cursor.execute(_LOCK_UNREAD, place)
        unread = fetch(cursor, _Unread, _UNREAD, place)
        cursor.execute(_CANCEL, place | {"unread": [row.id for row in unread]})
        delete_documents(cursor, store_id, [row.id for row in unread if row.is_unwanted])
    return find_batch(database, tenant_id, store_id, batch_id)
