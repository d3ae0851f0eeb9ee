"""Times of the past, as people name them."""

import re
from datetime import UTC, datetime, timedelta

from turnmill.schemas.errors import InvalidInput

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_past(text: str, param: str) -> datetime:
    """Read how long ago (`30m`, `6h`, `2d`), or a time with its zone.

    Raises:
        InvalidInput: it is neither.
    """
    if ago := re.fullmatch(r"(\d{1,4})([mhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidInput(
            f"'{text[:80]}' is no time: give how long ago (30m, 6h, 2d) or a time with its zone "
            "(2026-11-24T03:00+01:00).",
            param=param,
        )
    return time
