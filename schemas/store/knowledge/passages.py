"""The passages of documents: the one owner of what they are, and of what is counted of them."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.postgres.rows import fetch

#: Passages that one statement saves. PostgreSQL has ten seconds to answer. On a busy machine, 50
#: long ones in Chinese take three: each has 700 pairs of characters to be counted and indexed.
SAVED_AT_ONCE = 50

#: Locking the collection orders those who count its terms. Documents may be added meanwhile.
_LOCK = "SELECT FROM collections WHERE id = %s FOR NO KEY UPDATE"

_FORGET_TERMS = """
WITH gone AS (
    SELECT l.lexeme, count(*) AS n FROM passages p CROSS JOIN LATERAL unnest(p.terms) AS l
    WHERE p.document_id = ANY(%(documents)s) GROUP BY 1
), counted AS (
    UPDATE collection_terms t SET df = t.df - gone.n FROM gone
    WHERE t.collection_id = %(collection)s AND t.lexeme = gone.lexeme AND t.df > gone.n
), removed AS (
    DELETE FROM collection_terms t USING gone
    WHERE t.collection_id = %(collection)s AND t.lexeme = gone.lexeme AND t.df <= gone.n
), size AS (
    SELECT count(*) AS n, coalesce(sum(length), 0) AS length FROM passages
    WHERE document_id = ANY(%(documents)s)
)
UPDATE collections SET passage_count = passage_count - size.n,
    total_length = total_length - size.length
FROM size WHERE id = %(collection)s
"""

_SAVE_PASSAGES = """
WITH saved AS (
    INSERT INTO passages
        (collection_id, document_id, position, heading, content, terms, length, url)
    SELECT %(collection)s, %(document)s, position, heading, content, terms::tsvector, length, url
    FROM jsonb_to_recordset(%(passages)s)
        AS p (position int, heading text, content text, terms text, length int, url text)
    RETURNING terms, length
), counted AS (
    INSERT INTO collection_terms (collection_id, lexeme, df)
    SELECT %(collection)s, l.lexeme, count(*) FROM saved CROSS JOIN LATERAL unnest(terms) AS l
    GROUP BY l.lexeme
    ON CONFLICT (collection_id, lexeme) DO UPDATE SET df = collection_terms.df + excluded.df
)
UPDATE collections SET passage_count = passage_count + (SELECT count(*) FROM saved),
    total_length = total_length + (SELECT coalesce(sum(length), 0) FROM saved)
WHERE id = %(collection)s
"""


class _OfFile(NamedTuple):
    id: UUID
    collection_id: UUID


_OF_FILE = """
SELECT d.id, d.collection_id FROM documents d JOIN collections c ON c.id = d.collection_id
WHERE d.file_id = %s AND c.tenant_id = %s ORDER BY d.collection_id
"""


def lock_collection(cursor: Cursor, collection_id: UUID) -> None:
    """Wait for who changes passages of the collection. Before any row of a document is locked."""
    cursor.execute(_LOCK, (collection_id,))


def replace_passages(
    cursor: Cursor, collection_id: UUID, document_id: UUID, passages: Sequence[dict[str, object]]
) -> None:
    """Give a document other passages, with the columns of their table. The collection is locked."""
    forget_passages(cursor, collection_id, [document_id])
    rows = [{"position": position, **each} for position, each in enumerate(passages)]
    for start in range(0, len(rows), SAVED_AT_ONCE):
        some = Jsonb(rows[start : start + SAVED_AT_ONCE])
        values = {"collection": collection_id, "document": document_id, "passages": some}
        cursor.execute(_SAVE_PASSAGES, values)


def forget_passages(cursor: Cursor, collection_id: UUID, document_ids: list[UUID]) -> None:
    """Delete the passages of documents. The collection is locked."""
    cursor.execute(_FORGET_TERMS, {"collection": collection_id, "documents": document_ids})
    cursor.execute("DELETE FROM passages WHERE document_id = ANY(%s)", (document_ids,))


def delete_documents(cursor: Cursor, collection_id: UUID, document_ids: list[UUID]) -> int:
    """Delete documents with all that is known of them; return how many there were."""
    if not document_ids:
        return 0
    lock_collection(cursor, collection_id)
    forget_passages(cursor, collection_id, document_ids)
    cursor.execute(
        "DELETE FROM documents WHERE id = ANY(%s) AND collection_id = %s",
        (document_ids, collection_id),
    )
    return cursor.rowcount


def delete_documents_of_file(cursor: Cursor, tenant_id: UUID, file_id: UUID) -> None:
    """Delete the documents that were made of a file, in each collection."""
    for row in fetch(cursor, _OfFile, _OF_FILE, (file_id, tenant_id)):
        delete_documents(cursor, row.collection_id, [row.id])
