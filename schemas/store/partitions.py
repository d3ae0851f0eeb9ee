"""Attempts and replies are kept in one partition per month of their turn's id.

The months are calendar months in UTC. What was there before the tables were partitioned lies in
`…_before`; a row for which no month was made lies in `…_default`, so that none is ever refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from turnmill.schemas.ids import first_id

PARTITIONED = ("attempts", "replies")

#: Storage of a month's partition: as migration 0028 explains.
_STORAGE = {
    "attempts": "WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, "
    "autovacuum_vacuum_cost_delay = 0)"
}

_NAME = re.compile(rf"({'|'.join(PARTITIONED)})_(before|default|\d{{4}}_\d\d)")


@dataclass(frozen=True, slots=True, order=True)
class Month:
    year: int
    month: int

    @classmethod
    def of(cls, at: datetime) -> "Month":
        at = at.astimezone(UTC)
        return cls(at.year, at.month)

    def next(self) -> "Month":
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def first_id(self) -> UUID:
        """Turns accepted in this month or later have this id or a higher one."""
        return first_id(datetime(self.year, self.month, 1, tzinfo=UTC))

    def partition_of(self, table: str) -> str:
        return f"{table}_{self.year:04}_{self.month:02}"


def months_from(month: Month, count: int) -> Iterator[Month]:
    for _ in range(count):
        yield month
        month = month.next()


def create_month(table: str, month: Month) -> tuple[str, str]:
    """The statements that make a month's partition.

    Made first and attached then, it keeps nobody from the table itself; the default partition
    is looked through for rows of that month, and locked meanwhile.
    """
    name = month.partition_of(table)
    return (
        f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES) "
        f"{_STORAGE.get(table, '')}",
        f"ALTER TABLE {table} ATTACH PARTITION {name} "
        f"FOR VALUES FROM ('{month.first_id}') TO ('{month.next().first_id}')",
    )


def is_partition(name: str | None) -> bool:
    """Whether a table's name is that of a partition, which the metadata does not list."""
    return name is not None and _NAME.fullmatch(name) is not None
