"""Collections that there are, their documents, and their end."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.fleet.liveness import seen_within
from turnmill.schemas.store.knowledge.gate import Gate, parse_gate
from turnmill.schemas.store.knowledge.indexing import DocumentState

#: Of a collection's passages: with fewer that a gate was fitted to, it is stale.
_UNCHANGED_SHARE = 0.75

_LIST = """
SELECT c.id AS collection_id, t.name AS tenant, c.name, c.passage_count, c.created_at,
    (SELECT count(*) FROM documents d WHERE d.collection_id = c.id) AS document_count,
    c.gate AS stored_gate,
    (SELECT count(*) FROM documents d JOIN passages p ON p.document_id = d.id
     WHERE d.collection_id = c.id
       AND d.updated_at <= (c.gate ->> 'calibrated_at')::timestamptz) AS unchanged_count
FROM collections c JOIN tenants t ON t.id = c.tenant_id
WHERE c.tenant_id = coalesce(%s, c.tenant_id) AND c.name = coalesce(%s, c.name)
ORDER BY t.name, c.name
"""

_DOCUMENTS = """
SELECT d.uri, d.title, d.url, d.version, d.updated_at, d.state, d.error_message,
    (SELECT count(*) FROM passages p WHERE p.document_id = d.id) AS passage_count
FROM documents d WHERE d.collection_id = %s AND d.uri > %s ORDER BY d.uri LIMIT %s
"""

_PROGRESS = """
SELECT d.id AS document_id, d.state, d.error_message,
    (SELECT count(*) FROM passages p WHERE p.document_id = d.id) AS passage_count
FROM documents d WHERE d.id = ANY(%s)
"""

_WORKER = f"SELECT FROM worker_liveness w WHERE {seen_within(10.0, 'w')} LIMIT 1"


class Collection(NamedTuple):
    collection_id: UUID
    tenant: str
    name: str
    passage_count: int
    created_at: datetime
    document_count: int
    #: `Gate` as JSON.
    stored_gate: dict[str, object] | None
    #: Passages that were there when the gate was calibrated.
    unchanged_count: int

    @property
    def gate(self) -> Gate | None:
        return parse_gate(self.stored_gate)

    @property
    def is_stale(self) -> bool:
        """Whether much of what the gate was fitted to has changed since, or was added, or an
        earlier release has fitted it.
        """
        gate = self.gate
        if gate is not None and gate.is_outdated:
            return True
        most = 0 if gate is None else max(gate.passage_count, self.passage_count)
        return self.unchanged_count < most * _UNCHANGED_SHARE


class KnownDocument(NamedTuple):
    uri: str
    title: str
    #: Where people find it.
    url: str | None
    version: int
    updated_at: datetime
    state: str
    error_message: str | None
    passage_count: int


class Progress(NamedTuple):
    """How far a document is."""

    document_id: UUID
    state: str
    error_message: str | None
    passage_count: int

    @property
    def has_ended(self) -> bool:
        return self.state in (DocumentState.READY, DocumentState.FAILED)


def list_collections(database: Database, tenant_id: UUID | None) -> list[Collection]:
    """The collections of a tenant, or of all."""
    return database.fetch(Collection, _LIST, (tenant_id, None))


def find_collection(database: Database, tenant_id: UUID, name: str) -> Collection:
    """Raises `NotFound`, with the names that there are."""
    found = database.fetch(Collection, _LIST, (tenant_id, name))
    if found:
        return found[0]
    names = ", ".join(each.name for each in list_collections(database, tenant_id)[:20])
    raise NotFound(
        f"There is no collection '{name[:200]}'. There are: {names or 'none yet'}.", param="name"
    )


def list_documents(
    database: Database, collection_id: UUID, *, after: str = "", limit: int = 100
) -> list[KnownDocument]:
    """A page of a collection's documents, in the order of their names."""
    return database.fetch(KnownDocument, _DOCUMENTS, (collection_id, after, limit))


def list_progress(database: Database, document_ids: list[UUID]) -> list[Progress]:
    """Those of the documents that there are, in no order."""
    return database.fetch(Progress, _PROGRESS, (document_ids,))


def has_worker(database: Database) -> bool:
    """Whether a worker lives: it indexes, whatever model it serves."""
    return bool(database.run(_WORKER))


def delete_collection(database: Database, collection_id: UUID) -> None:
    """With its documents and passages. What turns were shown of them stays with the turns."""
    database.run("DELETE FROM collections WHERE id = %s RETURNING id", (collection_id,))
