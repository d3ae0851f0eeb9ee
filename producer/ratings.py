"""Ratings: what people say of replies, by button, reaction or call, and what comes of it."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import IO, Literal, NamedTuple
from uuid import UUID

from turnmill.producer.batches.outputs.table import defused
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch

#: The source of ratings that come by calls.
API = "api"

#: Ratings of one page of an export.
_PAGE = 1000

Score = Literal[-1, 0, 1]


class _Rated(NamedTuple):
    turn_id: UUID
    conversation_id: UUID


#: One who rates again changes the rating; 0 takes it back.
_RATE = """
WITH turn AS (
    SELECT id, tenant_id, conversation_id FROM turns WHERE id = %(turn)s AND tenant_id = %(tenant)s
), taken_back AS (
    DELETE FROM ratings USING turn
    WHERE %(score)s = 0 AND turn_id = turn.id AND source = %(source)s AND author = %(author)s
), rated AS (
    INSERT INTO ratings
        (id, tenant_id, conversation_id, turn_id, source, author, score, comment)
    SELECT %(id)s, tenant_id, conversation_id, id, %(source)s, %(author)s, %(score)s, %(comment)s
    FROM turn WHERE %(score)s <> 0
    ON CONFLICT (turn_id, source, author) DO UPDATE SET score = excluded.score,
        comment = coalesce(excluded.comment, ratings.comment), created_at = excluded.created_at
), gap AS (
    -- What a collection answered badly is asked of its owner, as what it did not answer.
    INSERT INTO knowledge_gaps (id, tenant_id, collection_id, turn_id, question, verdict)
    SELECT %(gap)s, t.tenant_id, c.id, t.id, right(t.input -> -1 ->> 'content', 2000), 'rated_down'
    FROM turn JOIN turns t USING (id) JOIN bots b ON b.id = t.bot_id
    JOIN collections c ON c.tenant_id = t.tenant_id AND c.name = b.policies ->> 'knowledge'
    WHERE %(score)s < 0 AND jsonb_typeof(t.input -> -1 -> 'content') = 'string'
    ON CONFLICT (turn_id) DO NOTHING
), no_gap AS (
    DELETE FROM knowledge_gaps g USING turn
    WHERE %(score)s >= 0 AND g.turn_id = turn.id AND g.verdict = 'rated_down'
      AND g.closed_at IS NULL
)
SELECT id AS turn_id, conversation_id FROM turn
"""


class _Row(NamedTuple):
    id: UUID
    turn_id: UUID
    conversation_id: UUID
    bot: str
    bot_version: int | None
    model: str
    source: str
    author: str
    score: int
    comment: str | None
    created_at: datetime


_EXPORT = """
SELECT r.id, r.turn_id, r.conversation_id, b.name AS bot, t.bot_version, t.model, r.source,
    r.author, r.score, r.comment, r.created_at
FROM ratings r JOIN turns t ON t.id = r.turn_id JOIN bots b ON b.id = t.bot_id
WHERE r.tenant_id = %s AND r.id > %s AND (%s::timestamptz IS NULL OR r.created_at >= %s)
ORDER BY r.id LIMIT %s
"""

_SUMMARY = """
SELECT b.name AS bot, t.bot_version, t.model, count(*) FILTER (WHERE r.score > 0) AS good,
    count(*) FILTER (WHERE r.score < 0) AS bad
FROM ratings r JOIN turns t ON t.id = r.turn_id JOIN bots b ON b.id = t.bot_id
WHERE r.tenant_id = %s AND (%s::timestamptz IS NULL OR r.created_at >= %s)
GROUP BY b.name, t.bot_version, t.model ORDER BY b.name, t.bot_version, t.model
"""


@dataclass(frozen=True, slots=True)
class Rating:
    """A person's word on a reply, with what gave it. `score`: 1 good, -1 bad."""

    turn_id: str
    conversation_id: str
    bot: str
    bot_version: int | None
    model: str
    source: str
    author: str
    score: int
    comment: str | None
    created_at: datetime


class Tally(NamedTuple):
    """How often the replies of one version of a bot were found good and bad."""

    bot: str
    bot_version: int | None
    model: str
    good: int
    bad: int


def rate(
    database: Database,
    tenant_id: UUID,
    turn_id: UUID,
    author: str,
    score: Score,
    comment: str | None = None,
) -> None:
    """Rate a turn's reply by a call of the API. Raises `NotFound`."""
    with database.cursor() as cursor:
        if rate_in(cursor, tenant_id, turn_id, API, author, score, comment) is None:
            raise NotFound("There is no such turn.")


def rate_in(
    cursor: Cursor,
    tenant_id: UUID,
    turn_id: UUID,
    source: str,
    author: str,
    score: Score,
    comment: str | None = None,
) -> UUID | None:
    """Rate a turn in the caller's transaction: one rating of each author at each source.

    Returns the turn's conversation, or None: the tenant has no such turn.
    """
    params = {
        "id": new_id(),
        "gap": new_id(),
        "tenant": tenant_id,
        "turn": turn_id,
        "source": source,
        "author": author,
        "score": score,
        "comment": comment,
    }
    rows = fetch(cursor, _Rated, _RATE, params)
    return rows[0].conversation_id if rows else None


def read_ratings(
    database: Database, tenant_id: UUID, since: datetime | None = None
) -> Iterator[Rating]:
    """Yield the tenant's ratings, page by page, the first given first."""
    after = UUID(int=0)
    while rows := database.fetch(_Row, _EXPORT, (tenant_id, after, since, since, _PAGE)):
        yield from map(_rating, rows)
        after = rows[-1].id


def tally_ratings(
    database: Database, tenant_id: UUID, since: datetime | None = None
) -> list[Tally]:
    """Count the tenant's ratings by bot, version and model."""
    return database.fetch(Tally, _SUMMARY, (tenant_id, since, since))


def write_jsonl(ratings: Iterator[Rating], file: IO[str]) -> None:
    for rating in ratings:
        file.write(json.dumps(_plain(rating), ensure_ascii=False) + "\n")


def write_csv(ratings: Iterator[Rating], file: IO[str]) -> None:
    """Write RFC 4180. A text that a spreadsheet would compute begins with an apostrophe."""
    writer = csv.writer(file)
    writer.writerow(Rating.__dataclass_fields__)
    for rating in ratings:
        writer.writerow(map(defused, _plain(rating).values()))


def _plain(rating: Rating) -> dict[str, object]:
    return {**asdict(rating), "created_at": rating.created_at.isoformat(timespec="milliseconds")}


def _rating(row: _Row) -> Rating:
    return Rating(
        show_id(Prefix.TURN, row.turn_id),
        show_id(Prefix.CONVERSATION, row.conversation_id),
        *row[3:],
    )
