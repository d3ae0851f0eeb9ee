"""Collections and documents by their ids, for the API: OpenAI's vector stores and their files."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from turnmill.producer.knowledge.sync import digest_of
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.files.files import File, unknown_file
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.store.knowledge import passages
from turnmill.schemas.store.knowledge.formats import MAX_BYTES, SUFFIXES, format_of
from turnmill.schemas.store.knowledge.indexing import Attributes, Wanted, queue_all
from turnmill.schemas.store.knowledge.search import Passage, search
from turnmill.schemas.store.knowledge.spaces import Asked

_STORES = """
SELECT c.id, c.name, c.metadata, c.created_at, n.*
FROM collections c CROSS JOIN LATERAL (
    SELECT count(*) AS total, count(*) FILTER (WHERE d.state = 'ready') AS completed,
        count(*) FILTER (WHERE d.state = 'failed') AS failed,
        coalesce(sum(f.bytes), 0)::bigint AS usage_bytes
    FROM documents d LEFT JOIN files f ON f.id = d.file_id WHERE d.collection_id = c.id
) AS n
WHERE c.tenant_id = %(tenant)s
"""

_FILES = """
SELECT d.id, d.file_id, d.collection_id, d.uri, d.state, d.error_code, d.error_message,
    d.attributes, d.created_at, coalesce(f.bytes, 0) AS usage_bytes
FROM documents d JOIN collections c ON c.id = d.collection_id LEFT JOIN files f ON f.id = d.file_id
WHERE c.tenant_id = %(tenant)s AND d.collection_id = %(store)s
"""

#: Its state in OpenAI's words.
_IS = """ AND CASE d.state WHEN 'ready' THEN 'completed' WHEN 'failed' THEN 'failed'
    ELSE 'in_progress' END = %(is)s"""

_CREATE = """
INSERT INTO collections (id, tenant_id, name, metadata) VALUES (%s, %s, %s, %s)
"""

_CHANGE = """
UPDATE collections SET name = coalesce(%s, name), metadata = coalesce(%s, metadata)
WHERE id = %s AND tenant_id = %s RETURNING id
"""

#: A deletion of the file waits, and then finds the document.
_KEEP_FILES = """
SELECT id FROM files WHERE id = ANY(%s) AND tenant_id = %s ORDER BY id FOR KEY SHARE
"""

#: So does a deletion of the collection. Workers that save passages do not.
_KEEP_STORE = "SELECT id FROM collections WHERE id = %s FOR KEY SHARE"

_DESCRIBE = "UPDATE documents SET attributes = %s WHERE id = %s"

_OF_BATCH = (
    " AND d.id = ANY(ARRAY(SELECT unnest(documents) FROM file_batches WHERE id = %(batch)s))"
)

_CONTENTS = "SELECT content FROM passages WHERE document_id = %s ORDER BY position"

_OF_DOCUMENTS = "SELECT id, file_id, attributes FROM documents WHERE id = ANY(%s)"


class Store(NamedTuple):
    """A collection."""

    id: UUID
    name: str
    metadata: dict[str, str]
    created_at: datetime
    total: int
    completed: int
    failed: int
    usage_bytes: int

    @property
    def shown_id(self) -> str:
        return show_id(Prefix.VECTOR_STORE, self.id)


class StoreFile(NamedTuple):
    """A document. One that `sync` brought has no file."""

    id: UUID
    file_id: UUID | None
    collection_id: UUID
    uri: str
    state: str
    error_code: str | None
    error_message: str | None
    attributes: Attributes
    created_at: datetime
    usage_bytes: int

    @property
    def shown_id(self) -> str:
        return shown_document(self.id, self.file_id)


class Hit(NamedTuple):
    """A passage that was found, and whose it is."""

    shown_id: str
    attributes: Attributes
    passage: Passage
    #: What the order is by, from 0 to 1 within one search.
    score: float


class _Content(NamedTuple):
    content: str


class _OfDocument(NamedTuple):
    id: UUID
    file_id: UUID | None
    attributes: Attributes


class Span(NamedTuple):
    """Which page of a list: ids are in the order of their making."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: UUID | None = None
    before: UUID | None = None


#: As `Embedders.ask`.
Ask = Callable[[Database, UUID, str, str], Asked | None]

Row = TypeVar("Row", Store, StoreFile)


def shown_document(document_id: UUID, file_id: UUID | None) -> str:
    if file_id is None:
        return show_id(Prefix.DOCUMENT, document_id)
    return show_id(Prefix.FILE, file_id)


def create_store(
    database: Database, tenant_id: UUID, name: str | None, metadata: dict[str, str] | None
) -> UUID:
    """Make a collection. Raises `InvalidInput` if there is one of this name."""
    store_id = new_id()
    name = name or show_id(Prefix.VECTOR_STORE, store_id)
    try:
        database.run(_CREATE, (store_id, tenant_id, name, Jsonb(metadata or {})))
    except psycopg.errors.UniqueViolation:
        raise _taken(name) from None
    return store_id


def change_store(
    database: Database,
    tenant_id: UUID,
    store_id: UUID,
    name: str | None,
    metadata: dict[str, str] | None,
) -> None:
    """Raises `NotFound`, and `InvalidInput` if there is another of this name."""
    changed = None if metadata is None else Jsonb(metadata)
    try:
        if not database.run(_CHANGE, (name, changed, store_id, tenant_id)):
            raise _unknown(store_id)
    except psycopg.errors.UniqueViolation:
        raise _taken(str(name)) from None


def find_store(database: Database, tenant_id: UUID, store_id: UUID) -> Store:
    """Raises `NotFound`, for those of other tenants too."""
    found = database.fetch(
        Store, f"{_STORES} AND c.id = %(store)s", {"tenant": tenant_id, "store": store_id}
    )
    if not found:
        raise _unknown(store_id)
    return found[0]


def list_stores(database: Database, tenant_id: UUID, span: Span) -> tuple[list[Store], bool]:
    """A page, and whether there are more behind it."""
    return _page(database, Store, _STORES, "c.id", {"tenant": tenant_id}, span)


def require_readable(file: File) -> None:
    """Raises `InvalidInput`: there is no reader for it, or it is too large."""
    if format_of(file.name) is None:
        raise InvalidInput(
            f"There is no reader for '{file.name[-100:]}'. There are readers for names that end in "
            f"{', '.join(SUFFIXES)}.",
            param="file_id",
        )
    if file.size > MAX_BYTES:
        raise InvalidInput(
            f"Documents have up to {MAX_BYTES >> 20} MiB: split it.", param="file_id"
        )


def add_file(
    database: Database,
    tenant_id: UUID,
    store_id: UUID,
    file: File,
    attributes: Attributes | None,
) -> UUID:
    """Queue a document of a file; return the document. The same file again is read again.

    Raises:
        InvalidInput: there is no reader for it, or it is too large.
        NotFound: there is no such collection, or the file was deleted meanwhile.
    """
    find_store(database, tenant_id, store_id)
    with database.cursor() as cursor:
        [document_id] = add_files(cursor, tenant_id, store_id, [(file, attributes)])
    return document_id


def add_files(
    cursor: Cursor,
    tenant_id: UUID,
    store_id: UUID,
    files: Sequence[tuple[File, Attributes | None]],
    *,
    is_of_batch: bool = False,
) -> list[UUID]:
    """Queue documents of files, each once, with their attributes; return the documents. The tenant
    has the collection.

    Raises:
        InvalidInput: there is no reader for one of them, or it is too large.
        NotFound: the collection or one of the files was deleted meanwhile.
    """
    for file, _ in files:
        require_readable(file)
    # Whoever deletes a file locks it before its collections too.
    ids = [file.file_id for file, _ in files]
    kept = {row.id for row in fetch(cursor, Id, _KEEP_FILES, (ids, tenant_id))}
    for file_id in ids:
        if file_id not in kept:
            raise unknown_file(file_id)
    if not cursor.execute(_KEEP_STORE, (store_id,)).fetchall():
        raise _unknown(store_id)
    wanted = [
        Wanted(store_id, file.shown_id, file.name, digest_of(file.sha256), file.file_id, attributes)
        for file, attributes in files
    ]
    return queue_all(cursor, wanted, is_of_batch=is_of_batch)


def find_file(database: Database, tenant_id: UUID, store_id: UUID, id_: UUID) -> StoreFile:
    """A document by its file's id, or its own. Raises `NotFound`."""
    found = database.fetch(
        StoreFile,
        f"{_FILES} AND %(id)s IN (d.id, d.file_id)",
        {"tenant": tenant_id, "store": store_id, "id": id_},
    )
    if not found:
        raise NotFound("The vector store has no such file.", param="file_id")
    return found[0]


def list_files(
    database: Database,
    tenant_id: UUID,
    store_id: UUID,
    span: Span,
    state: str | None,
    batch_id: UUID | None = None,
) -> tuple[list[StoreFile], bool]:
    """A page, and whether there are more behind it. `state`: one of OpenAI's words. `batch_id`: of
    this file batch alone.
    """
    find_store(database, tenant_id, store_id)
    asked = {"tenant": tenant_id, "store": store_id, "is": state, "batch": batch_id}
    which = (_IS if state else "") + (_OF_BATCH if batch_id else "")
    # A page goes on behind a file's id, and its place is that of its document.
    after, before = (
        each and find_file(database, tenant_id, store_id, each).id
        for each in (span.after, span.before)
    )
    place = span._replace(after=after, before=before)
    return _page(database, StoreFile, _FILES + which, "d.id", asked, place)


def describe_file(
    database: Database, tenant_id: UUID, store_id: UUID, id_: UUID, attributes: Attributes
) -> StoreFile:
    """Give a document other attributes. Raises `NotFound`."""
    found = find_file(database, tenant_id, store_id, id_)
    database.run(_DESCRIBE, (Jsonb(attributes), found.id))
    return found._replace(attributes=attributes)


def remove_file(database: Database, tenant_id: UUID, store_id: UUID, id_: UUID) -> None:
    """Delete a document with its passages. Its file stays. Raises `NotFound`."""
    found = find_file(database, tenant_id, store_id, id_)
    with database.cursor() as cursor:
        passages.delete_documents(cursor, store_id, [found.id])


def read_passages(database: Database, tenant_id: UUID, store_id: UUID, id_: UUID) -> list[str]:
    """The passages of a document, in its order. Raises `NotFound`."""
    found = find_file(database, tenant_id, store_id, id_)
    return [row.content for row in database.fetch(_Content, _CONTENTS, (found.id,))]


def search_store(
    database: Database, tenant_id: UUID, store_id: UUID, question: str, limit: int, ask: Ask
) -> list[Hit]:
    """The best passages of a collection, the best first, as a bot's turn finds them. Raises
    `NotFound`.
    """
    store = find_store(database, tenant_id, store_id)
    asked = ask(database, tenant_id, store.name, question)
    found = search(database, tenant_id, store.name, question, limit, asked)
    best = max((each.score for each in found), default=0.0) or 1.0
    ids = list({each.document_id for each in found})
    known = {each.id: each for each in database.fetch(_OfDocument, _OF_DOCUMENTS, (ids,))}
    # What was deleted meanwhile is not shown.
    return [
        Hit(
            shown_document(owner.id, owner.file_id),
            owner.attributes,
            passage,
            passage.score / best if passage.fused is None else passage.fused,
        )
        for passage in found
        if (owner := known.get(passage.document_id))
    ]


def _page(
    database: Database,
    kind: type[Row],
    rows: str,
    key: str,
    asked: Mapping[str, object],
    span: Span,
) -> tuple[list[Row], bool]:
    is_backwards = span.before is not None
    is_ascending = (span.order == "asc") != is_backwards
    order = "ASC" if is_ascending else "DESC"
    statement = f"""{rows}
        AND (%(after)s::uuid IS NULL OR {key} {">" if span.order == "asc" else "<"} %(after)s)
        AND (%(before)s::uuid IS NULL OR {key} {"<" if span.order == "asc" else ">"} %(before)s)
        ORDER BY {key} {order} LIMIT %(limit)s"""
    place = {"after": span.after, "before": span.before, "limit": span.limit + 1}
    found: Sequence[Row] = database.fetch(kind, statement, {**asked, **place})
    page = list(found[: span.limit])
    return page[::-1] if is_backwards else page, len(found) > span.limit


def _unknown(store_id: UUID) -> NotFound:
    return NotFound(
        f"There is no vector store '{show_id(Prefix.VECTOR_STORE, store_id)}': it was deleted, or "
        "never was.",
        param="vector_store_id",
    )


def _taken(name: str) -> InvalidInput:
    return InvalidInput(
        f"There is a vector store '{name[:100]}' already, and bots read it by this name. Choose "
        "another.",
        param="name",
    )
