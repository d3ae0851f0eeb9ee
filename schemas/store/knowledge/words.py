"""Rank a collection's passages by the words of a question: BM25.

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond",
https://doi.org/10.1561/1500000019
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.lexemes import lexemes

#: Of a question, the rarest: more of them find no more, and cost as much each.
MAX_LEXEMES = 12

#: Passages that are ranked, about: those with the rarest of these lexemes, as many of them as stand
#: in so many passages together. All lexemes count for the score. A passage that has nothing but a
#: commoner lexeme has next to no score beside them (the essential lists of MaxScore:
#: Turtle and Flood 1995, https://doi.org/10.1016/0306-4573(95)00020-H).
MAX_RANKED = 3000

#: k1 = 1.2 and b = 0.75, as Lucene has them. A lexeme that no passage has still counts as missing.
_RANK = """
WITH collection AS (
    SELECT id, passage_count, greatest(total_length, 1)::float / greatest(passage_count, 1) AS usual
    FROM collections WHERE tenant_id = %(tenant)s AND name = %(name)s
), asked AS (
    SELECT a.lexeme, t.df,
        ln(1 + (c.passage_count - coalesce(t.df, 0) + 0.5) / (coalesce(t.df, 0) + 0.5)) AS idf,
        -- The former is next to nothing for a word of all passages, of which small collections have
        -- many.
        ln(1 + c.passage_count::float / coalesce(t.df, 1)) AS weight
    FROM collection c CROSS JOIN unnest(%(lexemes)s::text[]) AS a (lexeme)
    LEFT JOIN collection_terms t ON t.collection_id = c.id AND t.lexeme = a.lexeme
), chosen AS (
    SELECT lexeme, idf, weight, df, sum(df) OVER (ORDER BY df, lexeme) AS up_to
    FROM asked WHERE df IS NOT NULL ORDER BY df, lexeme LIMIT %(most)s
), wanted AS (
    -- A long message has more words than any passage should have.
    SELECT sum(weight) AS all_of
    FROM (SELECT weight FROM asked ORDER BY weight DESC LIMIT %(most)s) AS most
), query AS (
    SELECT string_agg(quote_literal(lexeme), ' | ')
            FILTER (WHERE up_to = df OR up_to <= %(ranked)s)::tsquery AS any_of,
        array_agg(lexeme) AS all_of
    FROM chosen
)
SELECT p.id,
    sum(q.idf * f.n * 2.2 / (f.n + 1.2 * (0.25 + 0.75 * p.length / c.usual)))::float AS score,
    least(1, sum(q.weight) / (SELECT all_of FROM wanted))::float AS coverage
FROM collection c JOIN passages p ON p.collection_id = c.id
-- Marked and filtered first: most of a passage's lexemes are none of the question's.
CROSS JOIN LATERAL unnest(
    ts_filter(setweight(p.terms, 'A', (SELECT all_of FROM query)), '{a}')) AS l
JOIN chosen q ON q.lexeme = l.lexeme
CROSS JOIN LATERAL (SELECT coalesce(array_length(l.positions, 1), 1)::float AS n) AS f
WHERE {which}
GROUP BY p.id ORDER BY score DESC, p.id LIMIT %(limit)s
"""

_BEST = _RANK.replace("{which}", "p.terms @@ (SELECT any_of FROM query)")
_GIVEN = _RANK.replace("{which}", "p.id = ANY(%(passages)s)")


class Ranked(NamedTuple):
    """A passage with words of the question."""

    id: int
    #: BM25: comparable within one search only.
    score: float
    #: From 0 to 1: how much of the question's words it has, each by how rare it is.
    coverage: float


def rank_words(
    database: Database,
    tenant_id: UUID,
    collection: str,
    question: str,
    limit: int,
    *,
    among: Sequence[int] | None = None,
) -> list[Ranked]:
    """The passages with most of the question's words, the best first; `among`: of these alone."""
    asked = sorted({*lexemes(question)})
    if not asked:
        return []
    params = {
        "tenant": tenant_id, "name": collection, "lexemes": asked, "most": MAX_LEXEMES,
        "ranked": MAX_RANKED, "limit": limit, "passages": list(among or ()),
    }  # fmt: skip
    return database.fetch(Ranked, _BEST if among is None else _GIVEN, params)
