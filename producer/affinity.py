"""How often conversations returned to the worker that held them, lately."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.ids import first_id


class Warmth(NamedTuple):
    held: int
    hits: int


#: Turns that a live worker held, and those of them that it got. Ids are UUIDv7, so this reads the
#: key of what was accepted since, and nothing older.
WARMTH = """
SELECT count(is_warm) AS held, count(*) FILTER (WHERE is_warm) AS hits
FROM attempts WHERE turn_id >= %s AND number = 1
"""


def ids_since(seconds: float) -> UUID:
    """The parameter of `WARMTH`: turns accepted in the last so many seconds."""
    return first_id(datetime.now(UTC) - timedelta(seconds=seconds))
