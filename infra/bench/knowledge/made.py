"""A collection of made passages, whose words are distributed as in natural text."""

from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from random import Random
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.lexemes import as_tsvector
from turnmill.schemas.store.knowledge.spaces import Space, adopt_pgvector, save_space, switch

#: Different words. The n-th is as frequent as 1/n (Zipf's law).
WORDS = 50_000
#: Of a passage: about 1,000 characters of English.
PASSAGE_WORDS = 170
#: Of a document.
PASSAGES = 20
#: As those of e5-small.
DIMS = 384

_COPY = """
COPY passages (collection_id, document_id, position, heading, content, terms, length) FROM STDIN
"""

_COUNT = """
WITH counted AS (
    INSERT INTO collection_terms (collection_id, lexeme, df)
    SELECT %(collection)s, l.lexeme, count(*) FROM passages CROSS JOIN LATERAL unnest(terms) AS l
    WHERE collection_id = %(collection)s GROUP BY l.lexeme
)
UPDATE collections SET passage_count = n, total_length = length
FROM (SELECT count(*) AS n, sum(length) AS length FROM passages
      WHERE collection_id = %(collection)s) AS size
WHERE id = %(collection)s
"""

_INDEXES = """
SELECT format('DROP INDEX %I', indexname) AS drop, indexdef AS build FROM pg_indexes
WHERE tablename = 'passages' AND indexdef LIKE '% USING gin %'
"""

#: Uniform numbers of the variance that makes the length about 1.
_VECTORS = """
INSERT INTO passage_vectors (space_id, passage_id, v)
SELECT %(space)s, p.id, (
    SELECT array_agg((random() - 0.5) * sqrt(12.0 / %(dims)s))
    FROM generate_series(1, %(dims)s) WHERE p.id > 0)::real[]{cast}
FROM passages p WHERE p.collection_id = %(collection)s
"""


class _Index(NamedTuple):
    drop: str
    build: str


class Language:
    """Words by how frequent they are."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._words = [self._word() for _ in range(WORDS)]
        self._up_to = list(accumulate(1 / n for n in range(1, WORDS + 1)))

    def words(self, count: int) -> list[str]:
        total = self._up_to[-1]
        draws = (self._random.random() * total for _ in range(count))
        return [self._words[bisect(self._up_to, draw)] for draw in draws]

    def question(self) -> str:
        """Eight words, frequent ones and rare ones as they come."""
        return " ".join(self.words(8))

    def vector(self) -> list[float]:
        values = [self._random.gauss(0, 1) for _ in range(DIMS)]
        length = sum(x * x for x in values) ** 0.5
        return [x / length for x in values]

    def _word(self) -> str:
        letters = self._random.choices("abcdefghijklmnoprtuvwz", k=self._random.randint(3, 10))
        return "".join(letters)


def make_collection(
    database: Database, tenant_id: UUID, name: str, count: int, language: Language, arrays: bool
) -> Space:
    """A collection of so many passages with vectors; `arrays`: as without pgvector."""
    collection_id = new_id()
    database.run(
        "INSERT INTO collections (id, tenant_id, name) VALUES (%s, %s, %s) RETURNING id",
        (collection_id, tenant_id, name),
    )
    with _without_indexes(database), database.cursor() as cursor:
        documents = _documents(count)
        cursor.executemany(
            "INSERT INTO documents (id, collection_id, uri, origin, title, digest) "
            "VALUES (%s, %s, %s, 'made', %s, '')",
            [(each, collection_id, str(each), f"Document {each.hex[-4:]}") for each in documents],
        )
        with cursor.copy(_COPY) as copy:
            for row in _passages(collection_id, documents, count, language):
                copy.write_row(row)
        cursor.execute(_COUNT, {"collection": collection_id})
    if not arrays:
        adopt_pgvector(database)
    space = save_space(database, collection_id, "made", "1", DIMS, ("", ""))
    values = {"space": space.id, "dims": DIMS, "collection": collection_id}
    with database.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(_VECTORS.replace("{cast}", "::halfvec" * space.has_pgvector), values)
    switch(database, space)
    return space


@contextmanager
def _without_indexes(database: Database) -> Iterator[None]:
    """Build the indexes of words afterwards, which takes a fifth of the time."""
    indexes = database.fetch(_Index, _INDEXES)
    for index in indexes:
        database.run(index.drop)
    yield
    for index in indexes:
        database.run(index.build)


def _documents(count: int) -> list[UUID]:
    return [new_id() for _ in range(-(-count // PASSAGES))]


def _passages(
    collection_id: UUID, documents: list[UUID], count: int, language: Language
) -> Iterator[tuple[object, ...]]:
    for number in range(count):
        words = language.words(PASSAGE_WORDS)
        place = (documents[number // PASSAGES], number % PASSAGES)
        yield collection_id, *place, "", " ".join(words), as_tsvector(words), len(words)
