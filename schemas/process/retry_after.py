"""The header `Retry-After` of an answer, as RFC 9110 (10.2.3) defines it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the pause that an answer asks for, seconds, 0 or more; None: it asks for none.

    `headers`: their names in lower case. The pause is seconds, also with decimals as Discord writes
    them, or a date, which is held against the server's own clock (`Date`) where the answer has it.
    It has no bound yet: each caller knows how long it can wait.
    """
    asked = headers.get("retry-after", "").strip()
    if asked.isascii() and asked.replace(".", "", 1).isdigit():
        return float(asked)
    if (until := _date(asked)) is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    """Read a date in one of HTTP's three forms (RFC 9110, 5.6.7); None: it is none."""
    try:
        date = parsedate_to_datetime(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)  # asctime's form names no zone
    except (ValueError, OverflowError):
        return None
