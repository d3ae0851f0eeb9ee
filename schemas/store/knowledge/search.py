"""Search a collection: the passages that are likeliest to answer a question, by its words and,
where the collection has a space, by its meaning.
"""

from functools import partial
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.dense import nearest
from turnmill.schemas.store.knowledge.fusion import DENSE_WEIGHT, fuse
from turnmill.schemas.store.knowledge.spaces import Asked
from turnmill.schemas.store.knowledge.words import Ranked, rank_words

#: Of each of the two searches, before they are fused.
CANDIDATES = 50

#: Tenant and collection once more: whatever was found before, no other's passage is read.
_READ = """
SELECT p.id, d.id AS document_id, d.uri, d.title, d.version, p.heading, p.content,
    coalesce(p.url, d.url) AS url
FROM collections c JOIN passages p ON p.collection_id = c.id
JOIN documents d ON d.id = p.document_id
WHERE c.tenant_id = %s AND c.name = %s AND p.id = ANY(%s)
"""


class Passage(NamedTuple):
    """A passage that was found."""

    document_id: UUID
    uri: str
    title: str
    version: int
    heading: str
    content: str
    #: Where people find it.
    url: str | None
    #: BM25: comparable within one search only; 0: it has no word of the question.
    score: float
    #: From 0 to 1: how much of the question's words it has, each by how rare it is.
    coverage: float
    #: Of its vector and the question's. None: the search has no vectors, or it has none yet.
    cosine: float | None = None
    #: What the order is by, from 0 to 1 within one search; None where it is by BM25 alone.
    fused: float | None = None


class _Read(NamedTuple):
    id: int
    document_id: UUID
    uri: str
    title: str
    version: int
    heading: str
    content: str
    url: str | None


def search(
    database: Database,
    tenant_id: UUID,
    collection: str,
    question: str,
    limit: int,
    asked: Asked | None = None,
    *,
    weight: float = DENSE_WEIGHT,
) -> list[Passage]:
    """The best passages of a tenant's collection, the best first; none, if there is no such one.

    `asked`: the question in the collection's space. Without it, words alone count. `weight`: that
    of the cosine, from 0 to 1.
    """
    once = partial(_search, database, tenant_id, collection, question, limit, asked, weight)
    found, is_whole = once()
    if not is_whole:
        # A document was indexed again after its passages were ranked: they have other ids now.
        found, _ = once()
    return found


def _search(
    database: Database,
    tenant_id: UUID,
    collection: str,
    question: str,
    limit: int,
    asked: Asked | None,
    weight: float,
) -> tuple[list[Passage], bool]:
    """What was found, and whether all of it was there still when it was read."""
    most = max(limit, CANDIDATES) if asked else limit
    ranked = rank_words(database, tenant_id, collection, question, most)
    words = {each.id: each for each in ranked}
    if asked is None:
        return _passages(database, tenant_id, collection, list(words), words, {}, {})
    cosines = nearest(database, asked, most, also=list(words))
    unranked = [each for each in cosines if each not in words]
    if unranked:
        rest = rank_words(database, tenant_id, collection, question, most, among=unranked)
        words |= {each.id: each for each in rest}
    fused = fuse(words, cosines, weight)
    best = sorted(fused, key=lambda each: (-fused[each], each))[:limit]
    return _passages(database, tenant_id, collection, best, words, cosines, fused)


def _passages(
    database: Database,
    tenant_id: UUID,
    collection: str,
    order: list[int],
    words: dict[int, Ranked],
    cosines: dict[int, float],
    fused: dict[int, float],
) -> tuple[list[Passage], bool]:
    """Read passages, in their order, and whether none was deleted meanwhile."""
    if not order:
        return [], True
    rows = database.fetch(_Read, _READ, (tenant_id, collection, order))
    found = {row.id: row[1:] for row in rows}
    none = Ranked(0, 0.0, 0.0)
    passages = [
        Passage(*found[each], *words.get(each, none)[1:], cosines.get(each), fused.get(each))
        for each in order
        if each in found
    ]
    return passages, len(found) == len(order)
