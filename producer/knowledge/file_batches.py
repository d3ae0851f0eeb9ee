"""Files that are added to a collection together, for the API: OpenAI's file batches."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from turnmill.producer.knowledge.stores import add_files, find_store
from turnmill.schemas.errors import NotFound
from turnmill.schemas.files.files import Files
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.passages import delete_documents, lock_collection

_SAVE = "INSERT INTO file_batches (id, collection_id, documents) VALUES (%s, %s, %s)"

_FIND = """
SELECT b.id, b.collection_id, b.cancelled_at IS NOT NULL AS is_cancelled,
    cardinality(b.documents) AS added, n.*
FROM file_batches b JOIN collections c ON c.id = b.collection_id CROSS JOIN LATERAL (
    SELECT count(*) AS found, count(*) FILTER (WHERE d.state = 'ready') AS completed,
        count(*) FILTER (WHERE d.state = 'failed') AS failed
    FROM documents d WHERE d.id = ANY(b.documents) AND d.collection_id = b.collection_id
) AS n
WHERE c.tenant_id = %s AND b.collection_id = %s AND b.id = %s
"""

#: A document that is read again keeps the passages that it has.
_UNREAD = """
SELECT d.id FROM file_batches b
JOIN documents d ON d.id = ANY(b.documents) AND d.collection_id = b.collection_id
WHERE b.id = %s AND d.version = 0 AND d.state IN ('queued', 'indexing')
"""

_CANCEL = "UPDATE file_batches SET cancelled_at = clock_timestamp() WHERE id = %s"


class FileBatch(NamedTuple):
    """A batch, and how many of its documents are in which state."""

    id: UUID
    collection_id: UUID
    is_cancelled: bool
    #: Documents, when it was made.
    added: int
    #: Those that the collection still has.
    found: int
    completed: int
    failed: int

    @property
    def in_progress(self) -> int:
        return self.found - self.completed - self.failed

    @property
    def cancelled(self) -> int:
        return self.added - self.found if self.is_cancelled else 0


def add_batch(
    database: Database,
    files: Files,
    tenant_id: UUID,
    store_id: UUID,
    wanted: Mapping[UUID, dict[str, Any] | None],
) -> FileBatch:
    """Queue a document of each file, in one transaction. `wanted`: files and their attributes.

    Raises:
        InvalidInput: there is no reader for one of them, or it is too large.
        NotFound: there is no such collection, or one of the files is missing.
    """
    find_store(database, tenant_id, store_id)
    found = [(files.find(tenant_id, id_), attributes) for id_, attributes in wanted.items()]
    batch_id = new_id()
    with database.cursor() as cursor:
        documents = add_files(cursor, tenant_id, store_id, found)
        cursor.execute(_SAVE, (batch_id, store_id, documents))
    return find_batch(database, tenant_id, store_id, batch_id)


def find_batch(database: Database, tenant_id: UUID, store_id: UUID, batch_id: UUID) -> FileBatch:
    """Raises `NotFound`, for those of other tenants too."""
    found = database.fetch(FileBatch, _FIND, (tenant_id, store_id, batch_id))
    if not found:
        raise NotFound("The vector store has no such file batch.", param="batch_id")
    return found[0]


def cancel_batch(database: Database, tenant_id: UUID, store_id: UUID, batch_id: UUID) -> FileBatch:
    """Delete the documents of a batch that nobody has read yet. A worker that reads one finds it
    gone. Raises `NotFound`.
    """
    find_batch(database, tenant_id, store_id, batch_id)
    with database.cursor() as cursor:
        lock_collection(cursor, store_id)
        unread = [row.id for row in cursor.execute(_UNREAD, (batch_id,))]
        if delete_documents(cursor, store_id, unread):
            cursor.execute(_CANCEL, (batch_id,))
    return find_batch(database, tenant_id, store_id, batch_id)
