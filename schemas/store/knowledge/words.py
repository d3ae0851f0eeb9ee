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
_ASKED = """
WITH collection AS (
    SELECT id, passage_count, greatest(total_length, 1)::float / greatest(passage_count, 1) AS usual
    FROM collections WHERE tenant_id = %(tenant)s AND name = %(name)s
), asked AS (
    SELECT a.lexeme, t.df, t.df <= c.passage_count / 2 AS is_telling,
        ln(1 + (c.passage_count - coalesce(t.df, 0) + 0.5) / (coalesce(t.df, 0) + 0.5))::float
            AS idf,
        -- The former is next to nothing for a word of all passages, of which small collections have
        -- many.
        ln(1 + c.passage_count::float / coalesce(t.df, 1)) AS weight
    FROM collection c CROSS JOIN unnest(%(lexemes)s::text[]) AS a (lexeme)
    LEFT JOIN collection_terms t ON t.collection_id = c.id AND t.lexeme = a.lexeme
), chosen AS (
    SELECT lexeme, idf, weight, is_telling,
        sum(df) OVER rarest = df OR sum(df) OVER rarest <= %(ranked)s AS is_essential
    FROM asked WHERE df IS NOT NULL WINDOW rarest AS (ORDER BY df, lexeme)
    ORDER BY df, lexeme LIMIT %(most)s
), wanted AS (
    -- A long message has more words than any passage should have.
    SELECT sum(weight) AS all_of
    FROM (SELECT weight FROM asked ORDER BY weight DESC LIMIT %(most)s) AS most
)
"""

#: The passages that may be among the best. A passage's words are stored outside its row, and to
#: read them takes ten times as long as to find the passage. The index alone tells of each lexeme
#: whether a passage has it once, twice, or three times and more, which gives two bounds of the
#: score. Whose upper bound is below the lower bounds of enough others is never read; the rest is
#: ranked by the whole formula, so nothing is lost.
#:
#: The n-th occurrence adds idf * 2.2 * k / ((n + k) (n - 1 + k)), and all that may come after it
#: idf * 2.2 * k / (n + k). Of a lexeme that most passages have, which adds next to nothing, not
#: even the index is read.
_LIKELY = """
, keys AS (
    SELECT q.idf, n::float, q.is_essential,
        quote_literal(to_hex(hashtextextended(q.lexeme, uuid_hash_extended(c.id, n)))) AS key
    FROM chosen q CROSS JOIN collection c CROSS JOIN generate_series(1, 3) AS n
    WHERE q.is_essential OR q.is_telling
), essential AS (
    SELECT string_agg(key, ' | ') AS keys FROM keys WHERE is_essential AND n = 1
), scans AS (
    -- One condition: of two, a plan may leave one to a filter, which reads the words.
    SELECT q.idf, q.n, (q.key || ' & (' || e.keys || ')')::tsquery AS wanted
    FROM keys q CROSS JOIN essential e
), bounds AS (
    SELECT f.id,
        sum(q.idf * 2.2::float * f.k / ((q.n + f.k) * (q.n - 1 + f.k))) AS low,
        sum(q.idf * 2.2::float * f.k / (q.n + f.k)) FILTER (WHERE q.n = 3) AS more
    FROM scans q CROSS JOIN collection c CROSS JOIN LATERAL (
        SELECT p.id, 1.2::float * (0.25::float + 0.75::float * p.length / c.usual) AS k
        FROM passages p WHERE passage_postings(p.collection_id, p.terms) @@ q.wanted
    ) AS f
    GROUP BY f.id
), unread AS (
    SELECT coalesce(sum(idf * 2.2::float), 0) AS more FROM chosen
    WHERE NOT (is_essential OR is_telling)
), likely AS (
    SELECT array_agg(id) AS ids FROM bounds
    -- Sums of the same numbers in another order differ by less than a millionth.
    WHERE low + coalesce(more, 0) + (SELECT more FROM unread) + 1e-6 >= coalesce(
        (SELECT low FROM bounds ORDER BY low DESC OFFSET %(limit)s - 1 LIMIT 1), 0)
)
"""

_RANK = """
SELECT p.id,
    sum(q.idf * f.n * 2.2::float
        / (f.n + 1.2::float * (0.25::float + 0.75::float * p.length / c.usual))) AS score,
    least(1, sum(q.weight) / (SELECT all_of FROM wanted))::float AS coverage
FROM collection c JOIN passages p ON p.collection_id = c.id
-- Marked and filtered first: most of a passage's lexemes are none of the question's.
CROSS JOIN LATERAL unnest(
    ts_filter(setweight(p.terms, 'A', (SELECT array_agg(lexeme) FROM chosen)), '{a}')) AS l
JOIN chosen q ON q.lexeme = l.lexeme
CROSS JOIN LATERAL (SELECT coalesce(array_length(l.positions, 1), 1)::float AS n) AS f
WHERE p.id = ANY({passages})
GROUP BY p.id ORDER BY score DESC, p.id LIMIT %(limit)s
"""

_BEST = _ASKED + _LIKELY + _RANK.replace("{passages}", "(SELECT ids FROM likely)::bigint[]")
_GIVEN = _ASKED + _RANK.replace("{passages}", "%(passages)s")


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
