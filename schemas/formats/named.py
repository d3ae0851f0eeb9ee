"""Texts of formats, as their RFCs have them: those that jsonschema needs ten more packages for."""

import re
from collections.abc import Callable
from datetime import datetime

_TIME = re.compile(
    r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.I
)
_CLOCK = "(\\d+H(\\d+M(\\d+S)?)?|\\d+M(\\d+S)?|\\d+S)"
_DAYS = "(\\d+Y(\\d+M(\\d+D)?)?|\\d+M(\\d+D)?|\\d+D)"
_DURATION = re.compile(f"P(\\d+W|{_DAYS}(T{_CLOCK})?|T{_CLOCK})", re.ASCII)
_LABEL = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.I | re.ASCII)
_URI = re.compile(r"[a-z][a-z0-9+.-]*:([\w.~:/?#\[\]@!$&'()*+,;=-]|%[0-9a-f]{2})*", re.I | re.ASCII)


def is_time(text: str) -> bool:
    """Whether it is a `full-time` of RFC 3339, section 5.6, a leap second among them."""
    return text.isascii() and _TIME.fullmatch(text) is not None


def is_date_time(text: str) -> bool:
    """Whether it is a `date-time` of RFC 3339, section 5.6."""
    day, time = text[:10], text[11:]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", day, re.ASCII) or text[10:11] not in ("T", "t"):
        return False
    try:
        datetime.fromisoformat(day)
    except ValueError:
        return False
    return is_time(time)


def is_duration(text: str) -> bool:
    """Whether it is a `duration` of RFC 3339, appendix A."""
    return _DURATION.fullmatch(text) is not None


def is_hostname(text: str) -> bool:
    """Whether it is a name of RFC 1123, section 2.1, of at most 253 characters."""
    return len(text) <= 253 and all(map(_LABEL.fullmatch, text.split(".")))


def is_uri(text: str) -> bool:
    """Whether it is a `URI` of RFC 3986, with a scheme; what is between its delimiters is free."""
    return _URI.fullmatch(text) is not None and text.count("#") <= 1


NAMED: dict[str, Callable[[str], bool]] = {
    "time": is_time,
    "date-time": is_date_time,
    "duration": is_duration,
    "hostname": is_hostname,
    "uri": is_uri,
}
