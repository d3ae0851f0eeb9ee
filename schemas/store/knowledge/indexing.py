"""The states of a document: queued, then indexed by one worker at a time, then ready or failed.

Each change of what is wanted counts `fence` up. A worker that was paused, or whose lease has
expired, holds an older number, and changes nothing any more.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.clock import MAX_DELAY_S, is_due, is_over
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.store.knowledge.passages import lock_collection, replace_passages


class DocumentState(StrEnum):
    QUEUED = "queued"
    INDEXING = "indexing"
    READY = "ready"
    #: Its passages, if it has any, are those of before.
    FAILED = "failed"


#: Attempts whose worker died, or whose child process did, before a document fails.
MAX_ATTEMPTS = 3

#: Documents that are looked at for a claim, at most.
MOST_DUE = 16

_QUEUE = """
INSERT INTO documents AS d
    (id, collection_id, uri, origin, title, digest, version, state, fence, due_at, file_id,
     is_of_batches, attributes, url)
SELECT id, collection, uri, origin, uri, digest, 0, 'queued', 1, clock_timestamp(), file,
    %(is_of_batch)s, attributes, url
FROM unnest(%(ids)s::uuid[], %(collections)s::uuid[], %(uris)s::text[], %(origins)s::text[],
    %(digests)s::bytea[], %(files)s::uuid[], %(attributes)s::jsonb[], %(urls)s::text[])
    AS wanted (id, collection, uri, origin, digest, file, attributes, url)
ORDER BY origin, uri  -- the order in which all lock them
ON CONFLICT (collection_id, origin, uri) DO UPDATE SET digest = excluded.digest, state = 'queued',
    fence = d.fence + 1, attempt = 0, due_at = clock_timestamp(), error_code = NULL,
    error_message = NULL, file_id = excluded.file_id, attributes = excluded.attributes,
    url = excluded.url, is_of_batches = d.is_of_batches AND excluded.is_of_batches
RETURNING id
"""

_KEEP_CONTENT = """
INSERT INTO document_contents (document_id, content) VALUES (%s, %s)
ON CONFLICT (document_id) DO UPDATE SET content = excluded.content
"""


class Retried(NamedTuple):
    """A document that is queued again."""

    id: UUID
    uri: str


_RETRY = """
UPDATE documents SET state = 'queued', fence = fence + 1, attempt = 0,
    due_at = clock_timestamp(), error_code = NULL, error_message = NULL
WHERE collection_id = %s AND state = 'failed' AND (%s::text[] IS NULL OR uri = ANY(%s))
RETURNING id, uri
"""

#: `due_at` of a document that is being indexed is the end of the lease: then it is due again. One
#: that was never tried is due whatever the clock shows.
_IS_DUE = f"""
due_at IS NOT NULL AND (state = 'queued' AND (attempt = 0 OR {is_due("due_at", MAX_DELAY_S)})
    OR state = 'indexing' AND {is_over("due_at")})
"""

_DUE = f"""
SELECT id FROM documents WHERE {_IS_DUE} AND id <> ALL(%(resting)s::uuid[])
ORDER BY due_at LIMIT {MOST_DUE}
"""

_CLAIM = f"""
UPDATE documents d SET state = 'indexing', fence = d.fence + 1, attempt = d.attempt + 1,
    due_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
FROM collections c
WHERE c.id = d.collection_id AND d.id = (
    SELECT id FROM documents
    WHERE {_IS_DUE} AND (%(document)s::uuid IS NULL OR id = %(document)s)
    ORDER BY due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING d.id AS document_id, d.collection_id, c.tenant_id, d.uri, d.file_id, d.fence, d.attempt
"""


class _Content(NamedTuple):
    content: bytes


_CONTENT = "SELECT content FROM document_contents WHERE document_id = %s"

_RENEW = """
UPDATE documents SET due_at = clock_timestamp() + make_interval(secs => %s)
WHERE id = %s AND fence = %s RETURNING id
"""

_WRITTEN = """
UPDATE documents SET state = 'ready', title = %s, url = coalesce(%s, url),
    version = version + 1, due_at = NULL, error_code = NULL, error_message = NULL,
    updated_at = clock_timestamp()
WHERE id = %s
"""

_READY = f"{_WRITTEN} AND fence = %s RETURNING id"

_FAIL = """
UPDATE documents SET state = 'failed', due_at = NULL, error_code = %s, error_message = %s
WHERE id = %s AND fence = %s RETURNING id
"""

_AGAIN = """
UPDATE documents SET state = 'queued', due_at = clock_timestamp() + make_interval(secs => %s)
WHERE id = %s AND fence = %s RETURNING id
"""

#: What the owner of a document says of it.
Attributes = dict[str, bool | float | str]


class Wanted(NamedTuple):
    """A document as it is to be."""

    collection_id: UUID
    origin: str
    uri: str
    digest: bytes
    file_id: UUID | None = None
    attributes: Attributes | None = None
    #: Where people find it, unless it says otherwise itself.
    url: str | None = None


class Task(NamedTuple):
    """A document that one worker indexes."""

    document_id: UUID
    collection_id: UUID
    tenant_id: UUID
    uri: str
    file_id: UUID | None
    fence: int
    attempt: int


def queue(cursor: Cursor, wanted: Wanted, content: bytes | None) -> UUID:
    """Want a document indexed. `content` waits in the database; None: it is that of the file."""
    [document_id] = queue_all(cursor, [wanted])
    if content is not None:
        cursor.execute(_KEEP_CONTENT, (document_id, content))
    return document_id


def queue_all(cursor: Cursor, wanted: Sequence[Wanted], *, is_of_batch: bool = False) -> list[UUID]:
    """Want documents indexed, no two of one origin and uri; return them. Their content is that of
    their files. `is_of_batch`: a file batch adds them.
    """
    values = {
        # Of one millisecond, they are in no order by themselves.
        "ids": sorted(new_id() for _ in wanted),
        "collections": [each.collection_id for each in wanted],
        "uris": [each.uri for each in wanted],
        "origins": [each.origin for each in wanted],
        "digests": [each.digest for each in wanted],
        "files": [each.file_id for each in wanted],
        "attributes": [Jsonb(each.attributes or {}) for each in wanted],
        "urls": [each.url for each in wanted],
        "is_of_batch": is_of_batch,
    }
    return [row.id for row in fetch(cursor, Id, _QUEUE, values)]


def write(
    cursor: Cursor, wanted: Wanted, title: str, passages: Sequence[dict[str, object]]
) -> UUID:
    """Save a document whose passages are known already; return it."""
    lock_collection(cursor, wanted.collection_id)
    document_id = queue(cursor, wanted, None)
    cursor.execute(_WRITTEN, (title, wanted.url, document_id))
    replace_passages(cursor, wanted.collection_id, document_id, passages)
    return document_id


def retry(database: Database, collection_id: UUID, uris: Sequence[str] | None) -> list[Retried]:
    """Queue documents that failed; return those that did, by id and uri. None: all of them."""
    names = None if uris is None else list(uris)
    return database.fetch(Retried, _RETRY, (collection_id, names, names))


def due(database: Database, latest_s: float = math.inf, resting: Sequence[UUID] = ()) -> list[UUID]:
    """Return the documents that have waited longest, but for those that rest, in their order.
    `latest_s`: the Unix time by which leases are judged.
    """
    found = database.fetch(Id, _DUE, {"latest_s": latest_s, "resting": list(resting)})
    return [row.id for row in found]


def claim(
    database: Database,
    lease_s: float,
    latest_s: float = math.inf,
    document_id: UUID | None = None,
) -> Task | None:
    """Take a document, or the one that has waited longest. None: it, or nothing, is due.
    `latest_s` as in `due`.
    """
    given = {"lease_s": lease_s, "latest_s": latest_s, "document": document_id}
    found = database.fetch(Task, _CLAIM, given)
    return found[0] if found else None


def content_of(database: Database, document_id: UUID) -> bytes | None:
    """Return what waits in the database of a document."""
    rows = database.fetch(_Content, _CONTENT, (document_id,))
    return rows[0].content if rows else None


def renew(database: Database, task: Task, lease_s: float) -> bool:
    """Keep the document; False: it is wanted otherwise meanwhile, deleted, or somebody else's."""
    return bool(database.run(_RENEW, (lease_s, task.document_id, task.fence)))


def settle(
    database: Database,
    task: Task,
    title: str,
    passages: Sequence[dict[str, object]],
    url: str | None = None,
) -> bool:
    """Give the document its new passages, in one transaction. False: it is no longer this task's,
    and nothing has changed. `url`: where the document says that people find it.
    """
    with database.cursor() as cursor:
        lock_collection(cursor, task.collection_id)
        if not cursor.execute(_READY, (title, url, task.document_id, task.fence)).fetchall():
            return False
        replace_passages(cursor, task.collection_id, task.document_id, passages)
        cursor.execute("DELETE FROM document_contents WHERE document_id = %s", (task.document_id,))
    return True


def fail(database: Database, task: Task, code: str, message: str) -> bool:
    """End the task without passages. False: it is no longer this task's."""
    return bool(database.run(_FAIL, (code, message, task.document_id, task.fence)))


def try_again(database: Database, task: Task, wait_s: float) -> bool:
    """Queue the document of a failed attempt in `wait_s` seconds, `MAX_DELAY_S` at most. False: it
    is no longer this task's.
    """
    return bool(database.run(_AGAIN, (wait_s, task.document_id, task.fence)))
