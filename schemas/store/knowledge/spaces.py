"""Spaces: the vectors of a collection's passages, of one embedder in one version.

A new embedder fills a space beside the one that is searched, and one UPDATE switches. Where the
server has pgvector, vectors are `halfvec`; elsewhere `real[]`, compared outside the server.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import psycopg

from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database

#: Of length 1.
Vector = Sequence[float]

#: `halfvec` in a row that is stored whole, in one page of 8 KiB.
MAX_DIMS = 4000

#: How long a space is kept after another one took its place: searches that began before end.
SUPERSEDED_FOR = "10 minutes"

#: Whether the server compares vectors.
HAS_PGVECTOR = """
(SELECT format_type(atttypid, NULL) FROM pg_attribute
 WHERE attrelid = 'passage_vectors'::regclass AND attname = 'v') = 'halfvec' AS has_pgvector
"""

_COLUMNS = f"""
s.id, s.collection_id, s.embedder, s.version, s.dims, s.question_prefix, s.passage_prefix,
s.changes, {HAS_PGVECTOR}
"""

_LIVE = f"SELECT {_COLUMNS} FROM collections c JOIN spaces s ON s.id = c.space_id "
_BY_NAME = "WHERE c.tenant_id = %s AND c.name = %s"
_BY_ID = "WHERE c.id = %s"

_SAVE = f"""
INSERT INTO spaces AS s
    (id, collection_id, embedder, version, dims, question_prefix, passage_prefix)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (collection_id, embedder, version, dims, question_prefix, passage_prefix)
DO UPDATE SET superseded_at = NULL RETURNING {_COLUMNS}
"""

_MISSING = """
SELECT p.id FROM passages p
WHERE p.collection_id = %(collection)s AND NOT EXISTS (
    SELECT FROM passage_vectors v WHERE v.space_id = %(space)s AND v.passage_id = p.id)
"""
_OF_DOCUMENT = "AND p.document_id = %(document)s "

_TEXTS = """
SELECT p.id, d.title, p.heading, p.content FROM passages p JOIN documents d ON d.id = p.document_id
WHERE p.id = ANY(%s) ORDER BY p.id
"""

#: A passage may have gone meanwhile.
_SAVE_VECTORS = """
WITH saved AS (
    INSERT INTO passage_vectors (space_id, passage_id, v)
    SELECT s.id, p.id, given.v::real[]{cast}
    FROM unnest(%(passages)s::bigint[], %(vectors)s::text[]) AS given (passage_id, v)
    JOIN passages p ON p.id = given.passage_id JOIN spaces s ON s.id = %(space)s
    FOR KEY SHARE OF p
    ON CONFLICT (space_id, passage_id) DO NOTHING RETURNING passage_id
)
UPDATE spaces SET changes = changes + 1 WHERE id = %(space)s
RETURNING (SELECT count(*) FROM saved) AS n
"""

_SWITCH = """
WITH old AS (
    UPDATE spaces SET superseded_at = clock_timestamp()
    WHERE collection_id = %(collection)s AND id <> %(space)s AND superseded_at IS NULL
)
UPDATE collections SET space_id = %(space)s WHERE id = %(collection)s RETURNING id
"""

_DROP_SUPERSEDED = f"""
DELETE FROM spaces WHERE collection_id = %s
    AND superseded_at < clock_timestamp() - interval '{SUPERSEDED_FOR}' RETURNING id
"""

_AVAILABLE = "SELECT name FROM pg_available_extensions WHERE name = 'vector'"


class Space(NamedTuple):
    id: UUID
    collection_id: UUID
    embedder: str
    version: str
    dims: int
    question_prefix: str
    passage_prefix: str
    changes: int
    #: Whether the server compares the vectors.
    has_pgvector: bool


class Asked(NamedTuple):
    """A question in a space."""

    space: Space
    vector: Vector


class Unembedded(NamedTuple):
    """What is to be embedded of a passage."""

    id: int
    title: str
    heading: str
    content: str

    @property
    def text(self) -> str:
        """What a passage is about often stands in its headings alone."""
        return "\n".join(filter(None, dict.fromkeys((self.title, self.heading, self.content))))


class _Id(NamedTuple):
    id: int


class _Count(NamedTuple):
    n: int


def live_space(database: Database, tenant_id: UUID, collection: str) -> Space | None:
    """The space that questions to a tenant's collection are searched in."""
    found = database.fetch(Space, _LIVE + _BY_NAME, (tenant_id, collection))
    return found[0] if found else None


def space_of(database: Database, collection_id: UUID) -> Space | None:
    """The space that questions to a collection are searched in."""
    found = database.fetch(Space, _LIVE + _BY_ID, (collection_id,))
    return found[0] if found else None


def save_space(
    database: Database,
    collection_id: UUID,
    embedder: str,
    version: str,
    dims: int,
    prefixes: tuple[str, str],
) -> Space:
    """Find a collection's space, or make it. It is not searched before `switch`."""
    values = (new_id(), collection_id, embedder, version, dims, *prefixes)
    return database.fetch(Space, _SAVE, values)[0]


def missing(database: Database, space: Space, document_id: UUID | None = None) -> list[int]:
    """The passages, of one document or of all, that have no vector in the space yet."""
    statement = _MISSING + (_OF_DOCUMENT if document_id else "") + "ORDER BY p.id"
    values = {"collection": space.collection_id, "space": space.id, "document": document_id}
    return [row.id for row in database.fetch(_Id, statement, values)]


def texts_of(database: Database, passages: Sequence[int]) -> list[Unembedded]:
    return database.fetch(Unembedded, _TEXTS, (list(passages),))


def save_vectors(
    database: Database, space: Space, passages: Sequence[int], vectors: Sequence[Vector]
) -> int:
    """Add vectors, in one transaction; return how many were new."""
    statement = _SAVE_VECTORS.format(cast="::halfvec" if space.has_pgvector else "")
    values = {
        "space": space.id,
        "passages": list(passages),
        "vectors": ["{" + ",".join(f"{x:.6g}" for x in vector) + "}" for vector in vectors],
    }
    saved = database.fetch(_Count, statement, values)
    return saved[0].n if saved else 0


def switch(database: Database, space: Space) -> None:
    """Search the collection in this space from now on."""
    database.run(_SWITCH, {"collection": space.collection_id, "space": space.id})


def drop_superseded(database: Database, collection_id: UUID) -> int:
    """Delete a collection's former spaces that no search can be in any more."""
    return len(database.run(_DROP_SUPERSEDED, (collection_id,)))


class _HasPgvector(NamedTuple):
    has_pgvector: bool


def adopt_pgvector(database: Database) -> bool:
    """Keep vectors as `halfvec` from now on, if the server has pgvector and lets us; whether they
    are. https://github.com/pgvector/pgvector#half-precision-vectors
    """
    if database.fetch(_HasPgvector, f"SELECT {HAS_PGVECTOR}")[0].has_pgvector:
        return True
    if not database.run(_AVAILABLE):
        return False
    try:
        with database.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '5s'")
            cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
            cursor.execute("ALTER TABLE passage_vectors ALTER v TYPE halfvec USING v::halfvec")
            # Whole in their rows: nothing is looked up elsewhere, and they do not compress.
            cursor.execute("ALTER TABLE passage_vectors ALTER v SET STORAGE PLAIN")
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.LockNotAvailable):
        return False
    return True
