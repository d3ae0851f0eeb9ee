"""Rating: a rater leases an item, rates it, and may take the last rating back.

The page in the browser and the terminal both work through these calls. All of a study's are
serialized by a lock on its row: raters take seconds for an item, and a call takes milliseconds.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.studies.model import Item, Rater, Standing, check_values
from turnmill.schemas.content import storable
from turnmill.schemas.errors import Conflict, InvalidInput
from turnmill.schemas.postgres.clock import is_due
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.turns import Message

#: So long an item that was shown to one rater is shown to no other in its place.
LEASE_S = 1800

MAX_COMMENT_CHARS = 2000


class _Study(NamedTuple):
    closed_at: datetime | None


_LOCK = "SELECT closed_at FROM studies WHERE id = %s FOR UPDATE"

#: What is there for a rater: items that need another rater, repeats only of what was rated. One
#: whose lease ended is still the rater's own if nobody else has taken the place.
_AVAILABLE = f"""
FROM study_items i
LEFT JOIN study_assignments mine ON mine.item_id = i.id AND mine.rater_id = %(rater)s
WHERE i.study_id = %(study)s AND mine.completed_at IS NULL
  AND (SELECT count(*) FROM study_assignments other
       WHERE other.item_id = i.id AND other.rater_id <> %(rater)s
         AND (other.completed_at IS NOT NULL
              OR NOT {is_due("other.leased_until", LEASE_S)})) < i.wanted
  AND (i.repeat_of IS NULL OR EXISTS (
       SELECT FROM study_assignments first WHERE first.item_id = i.repeat_of
         AND first.rater_id = %(rater)s AND first.completed_at IS NOT NULL))
"""


class _Next(NamedTuple):
    id: UUID
    prompt: list[object]
    left_text: str
    right_text: str | None


_NEXT = f"""
SELECT i.id, i.prompt, i.left_text, i.right_text {_AVAILABLE}
ORDER BY mine.item_id IS NULL, i.position LIMIT 1
"""

_LEASE = f"""
INSERT INTO study_assignments (item_id, rater_id, leased_until)
VALUES (%s, %s, clock_timestamp() + interval '{LEASE_S} s')
ON CONFLICT (item_id, rater_id) DO UPDATE SET leased_until = excluded.leased_until
"""


class _Standing(NamedTuple):
    done: int
    left: int


_STANDING = f"""
SELECT (SELECT count(*) FROM study_assignments a JOIN study_items own ON own.id = a.item_id
        WHERE own.study_id = %(study)s AND a.rater_id = %(rater)s
          AND a.completed_at IS NOT NULL) AS done,
    (SELECT count(*) {_AVAILABLE}) AS "left"
"""

#: Whether the item is still the rater's own: the same condition, of this one item.
_IS_MINE = f"SELECT 1 {_AVAILABLE} AND i.id = %(item)s AND mine.item_id IS NOT NULL"

_COMPLETE = """
UPDATE study_assignments SET completed_at = clock_timestamp(), comment = %(comment)s,
    seconds = extract(epoch FROM clock_timestamp() - created_at)
WHERE item_id = %(item)s AND rater_id = %(rater)s
"""

_RATE = """
INSERT INTO study_ratings (item_id, rater_id, dimension, value)
SELECT %(item)s, %(rater)s, * FROM unnest(%(dimensions)s::text[], %(values)s::smallint[])
"""


class _Reopened(NamedTuple):
    item_id: UUID


_REOPEN = f"""
UPDATE study_assignments SET completed_at = NULL, seconds = NULL,
    leased_until = clock_timestamp() + interval '{LEASE_S} s'
WHERE (item_id, rater_id) = (
    SELECT item_id, rater_id FROM study_assignments
    WHERE rater_id = %s AND completed_at IS NOT NULL ORDER BY completed_at DESC LIMIT 1)
RETURNING item_id
"""

_TAKE_BACK = "DELETE FROM study_ratings WHERE item_id = %(item)s AND rater_id = %(rater)s"

_LET_OTHERS_GO = """
DELETE FROM study_assignments
WHERE item_id <> %(item)s AND rater_id = %(rater)s AND completed_at IS NULL
"""


def next_item(database: Database, rater: Rater) -> Item | None:
    """Lease the next item: the same one until it is rated. None: there is nothing left."""
    with database.cursor() as cursor:
        if _is_closed(cursor, rater):
            return None
        found = fetch(cursor, _Next, _NEXT, _params(rater))
        if not found:
            return None
        (row,) = found
        cursor.execute(_LEASE, (row.id, rater.rater_id))
    prompt = tuple(map(Message.model_validate, row.prompt))
    return Item(row.id, prompt, row.left_text, row.right_text)


def submit(
    database: Database,
    rater: Rater,
    item_id: UUID,
    values: dict[str, int],
    comment: str | None = None,
) -> None:
    """Rate the item that the rater holds.

    Raises:
        InvalidInput: a dimension has no value, or one that the study does not know, or the
            comment is too long.
        Conflict: the study is closed, or the item is not the rater's to rate (any more).
    """
    check_values(rater.study, values)
    params = {**_params(rater), "item": item_id, "comment": read_comment(comment or "")}
    with database.cursor() as cursor:
        if _is_closed(cursor, rater) or cursor.execute(_IS_MINE, params).fetchone() is None:
            raise Conflict("This item is not yours to rate any more.")
        cursor.execute(_COMPLETE, params)
        ratings = {"dimensions": list(values), "values": list(values.values())}
        cursor.execute(_RATE, {**params, **ratings})


def read_comment(text: str) -> str | None:
    """A comment as it is stored; None: an empty one. Raises `InvalidInput`."""
    # Forms end lines with CRLF, and the page counts each end as one character.
    comment = storable(text).replace("\r\n", "\n").strip()
    if len(comment) > MAX_COMMENT_CHARS:
        raise InvalidInput(
            f"A comment has at most {MAX_COMMENT_CHARS:,} characters.", param="comment"
        )
    return comment or None


def undo(database: Database, rater: Rater) -> bool:
    """Take the rater's last rating back: its item is shown again. False: there is none."""
    with database.cursor() as cursor:
        if _is_closed(cursor, rater):
            return False
        reopened = fetch(cursor, _Reopened, _REOPEN, (rater.rater_id,))
        if not reopened:
            return False
        params = {"item": reopened[0].item_id, "rater": rater.rater_id}
        cursor.execute(_TAKE_BACK, params)
        cursor.execute(_LET_OTHERS_GO, params)
    return True


def standing(database: Database, rater: Rater) -> Standing:
    """Count what the rater has done, and what is left to do now."""
    (row,) = database.fetch(_Standing, _STANDING, _params(rater))
    return Standing(row.done, row.left)


def _is_closed(cursor: Cursor, rater: Rater) -> bool:
    """Lock the study, and tell whether it is closed, or deleted."""
    found = fetch(cursor, _Study, _LOCK, (rater.study.study_id,))
    return not found or found[0].closed_at is not None


def _params(rater: Rater) -> dict[str, UUID]:
    return {"rater": rater.rater_id, "study": rater.study.study_id}
