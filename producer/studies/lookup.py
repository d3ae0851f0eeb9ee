"""Studies that there are, and their end."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.studies.creation import StudyRow
from turnmill.producer.studies.model import Study
from turnmill.schemas.errors import NotFound
from turnmill.schemas.postgres.database import Database

_COLUMNS = "id AS study_id, name, kind, dimensions, seed, created_at, closed_at"

_LIST = f"SELECT {_COLUMNS} FROM studies WHERE tenant_id = %s ORDER BY created_at DESC"

_FIND = f"SELECT {_COLUMNS} FROM studies WHERE tenant_id = %s AND name = %s"

_CLOSE = """
UPDATE studies SET closed_at = coalesce(closed_at, clock_timestamp()) WHERE id = %s
"""

_RATERS = """
SELECT r.name, r.expires_at, count(a.completed_at) AS done, max(a.completed_at) AS last_at,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY a.seconds) AS median_s
FROM study_raters r LEFT JOIN study_assignments a ON a.rater_id = r.id
WHERE r.study_id = %s GROUP BY r.id ORDER BY r.name
"""

_COUNTS = """
SELECT count(*) AS items, count(*) FILTER (WHERE repeat_of IS NOT NULL) AS repeats,
    coalesce(sum(wanted), 0) AS wanted,
    coalesce(sum(least(wanted, (
        SELECT count(*) FROM study_assignments a
        WHERE a.item_id = study_items.id AND a.completed_at IS NOT NULL))), 0)::bigint AS done
FROM study_items WHERE study_id = %(study)s
"""


class Counts(NamedTuple):
    """How far a study is: items, those that come again, ratings wanted, and those of them done.

    An import may bring more ratings of an item than are wanted: they are no part of `done`.
    """

    items: int
    repeats: int
    wanted: int
    done: int


class RaterProgress(NamedTuple):
    name: str
    expires_at: datetime | None
    done: int
    last_at: datetime | None
    #: Seconds an item takes.
    median_s: float | None


def list_studies(database: Database, tenant_id: UUID) -> list[Study]:
    """Return the tenant's studies, the newest first."""
    return [row.study for row in database.fetch(StudyRow, _LIST, (tenant_id,))]


def find_study(database: Database, tenant_id: UUID, name: str) -> Study:
    """Return the study of this name. Raises `NotFound`."""
    rows = database.fetch(StudyRow, _FIND, (tenant_id, name))
    if not rows:
        raise NotFound(f"There is no study '{name[:80]}'. List them with 'turnmill studies list'.")
    return rows[0].study


def close_study(database: Database, study: Study) -> None:
    """Show no further item to anybody. What was rated stays."""
    database.run(_CLOSE, (study.study_id,))


def delete_study(database: Database, study: Study) -> None:
    """Delete a study with its items, raters and ratings."""
    database.run("DELETE FROM studies WHERE id = %s", (study.study_id,))


def count_study(database: Database, study: Study) -> Counts:
    """Count the items and ratings of a study."""
    (counts,) = database.fetch(Counts, _COUNTS, {"study": study.study_id})
    return counts


def list_raters(database: Database, study: Study) -> list[RaterProgress]:
    """Return the raters by name, and how far each is."""
    return database.fetch(RaterProgress, _RATERS, (study.study_id,))
