"""How large the tables are, and how far back they reach."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.ids import time_of
from turnmill.schemas.postgres.database import Database


class _Size(NamedTuple):
    name: str
    parts: int
    rows: int
    bytes: int


#: Rows as PostgreSQL's statistics have them: to count them all would take minutes.
_SIZES = """
SELECT coalesce(whole.relname, c.relname) AS name, count(*) AS parts,
    sum(pg_stat_get_live_tuples(c.oid))::bigint AS rows,
    sum(pg_total_relation_size(c.oid))::bigint AS bytes
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_class whole ON whole.oid = i.inhparent
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
GROUP BY 1 ORDER BY bytes DESC
"""


class _Key(NamedTuple):
    key: UUID


#: Their keys begin with the time.
_KEYS = {"turns": "id", "attempts": "turn_id", "replies": "turn_id", "batches": "id"}


@dataclass(frozen=True, slots=True)
class TableSize:
    name: str
    #: Partitions; 1 for a table that has none.
    parts: int
    #: About so many.
    rows: int
    #: With indexes and long texts.
    bytes: int
    #: When the oldest turn or batch in it was accepted, where rows are kept by age.
    oldest_at: datetime | None


def table_sizes(database: Database) -> list[TableSize]:
    """The tables, the largest first. Raises `DatabaseUnavailable`."""
    return [
        TableSize(*row, _oldest_at(database, row.name)) for row in database.fetch(_Size, _SIZES)
    ]


def _oldest_at(database: Database, table: str) -> datetime | None:
    key = _KEYS.get(table)
    if key is None:
        return None
    rows = database.fetch(_Key, f"SELECT {key} AS key FROM {table} ORDER BY {key} LIMIT 1")
    return time_of(rows[0].key) if rows else None
