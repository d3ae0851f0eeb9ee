"""Raters: people with a link to one study, which works until it expires."""

import hashlib
import re
import secrets
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.studies.creation import StudyRow
from turnmill.producer.studies.model import Kind, Rater, Study
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import Id, fetch

MAX_NAME = 100

#: The secret of a link: 256 random bits.
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")

_INVITE = """
INSERT INTO study_raters (id, study_id, name, digest, expires_at)
VALUES (%s, %s, %s, %s, clock_timestamp() + make_interval(days => %s))
ON CONFLICT (study_id, name) DO UPDATE SET digest = excluded.digest,
    expires_at = excluded.expires_at
"""

_ENSURE = """
INSERT INTO study_raters (id, study_id, name) VALUES (%s, %s, %s)
ON CONFLICT (study_id, name) DO UPDATE SET name = excluded.name
RETURNING id
"""


class _RaterRow(NamedTuple):
    study_id: UUID
    name: str
    kind: Kind
    dimensions: list[str]
    seed: int
    created_at: datetime
    closed_at: datetime | None
    rater_id: UUID
    rater: str


_FIND = """
SELECT s.id AS study_id, s.name, s.kind, s.dimensions, s.seed, s.created_at, s.closed_at,
    r.id AS rater_id, r.name AS rater
FROM study_raters r JOIN studies s ON s.id = r.study_id
WHERE r.digest = %s AND r.expires_at > clock_timestamp()
"""


def invite(database: Database, study: Study, name: str, days: int) -> str:
    """Give a rater a new secret, and make the one of before worthless.

    The secret is shown once: the database stores only its hash.

    Raises:
        InvalidInput: the name is empty or too long.
    """
    _check_name(name)
    secret = secrets.token_urlsafe(32)
    database.run(_INVITE, (new_id(), study.study_id, name, _digest(secret), days))
    return secret


def ensure_rater(cursor: Cursor, study_id: UUID, name: str) -> UUID:
    """Return the id of the study's rater of this name, who may be new. Raises `InvalidInput`."""
    _check_name(name)
    (found,) = fetch(cursor, Id, _ENSURE, (new_id(), study_id, name))
    return found.id


def find_rater(database: Database, secret: str) -> Rater:
    """Return whose link this is. Raises `NotFound`."""
    rows = database.fetch(_RaterRow, _FIND, (_digest(secret),)) if SECRET.fullmatch(secret) else []
    if not rows:
        raise NotFound("The link is wrong or has expired.")
    *study, rater_id, rater = rows[0]
    return Rater(rater_id, rater, StudyRow._make(study).study)


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(f"A rater's name has 1 to {MAX_NAME} printable characters.")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
