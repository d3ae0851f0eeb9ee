"""Time. Postgres keeps the clock of leases and deadlines; processes only measure durations."""

from datetime import UTC, datetime


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)
