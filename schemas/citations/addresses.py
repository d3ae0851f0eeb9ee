"""Addresses of documents: where people find what a reply cites."""

import re
from urllib.parse import quote, urlsplit

from turnmill.schemas.errors import InvalidInput

MAX_URL_CHARS = 2048

_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\\]")


def address_of(text: str) -> str | None:
    """An address of http or https; None: the text is none, or is too long, or has a login in it,
    behind which people would not see the host.
    """
    text = text.strip()
    if len(text) > MAX_URL_CHARS or _UNPRINTABLE.search(text):
        return None
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname)
    except ValueError:
        return None
    is_web = parts.scheme in ("http", "https")
    return text if is_web and has_host and "@" not in parts.netloc else None


def check_base(url: str) -> str:
    """The address that paths of documents are joined to. Raises `InvalidInput`."""
    base = address_of(url)
    if base is None or "?" in base or "#" in base:
        raise InvalidInput(
            f"'{url[:200]}' is no address that paths can be joined to. Write "
            "https://help.example.com/: http or https, no login, and no '?' or '#' in it.",
            param="base_url",
        )
    return base


def joined_address(base: str, path: str) -> str | None:
    """The address of a document below a base; None: it is too long."""
    return address_of(f"{base.rstrip('/')}/{quote(path, errors='replace')}")
