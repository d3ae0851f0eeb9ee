"""Masking: text without the passwords of the URLs in it."""

import re

MASK = "***"

#: The user-info of a URL (RFC 3986, section 3.2.1), up to the last `@` of its authority.
_USERINFO = re.compile(r"(?<=://)[^\s/?#\"']*@")
#: As a parameter of a URL, or a keyword of libpq's connection strings.
_PASSWORD = re.compile(r"(?i)\b((?:ssl)?password=)(?:'[^']*'|[^\s&;'\"]+)")
#: In what is a URL for certain: also without a scheme, and with letters that should be encoded.
_LOGIN = re.compile(r"(?<=://).*@|^(?!\S*://).*@")


def masked(text: str) -> str:
    """Replace user names and passwords of URLs, and libpq's `password=…`, by a mask."""
    return _PASSWORD.sub(rf"\1{MASK}", _USERINFO.sub(f"{MASK}@", text))


def masked_urls(urls: str) -> str:
    """As `masked`, for URLs joined with `;` that need not be well-formed."""
    return ";".join(masked(_LOGIN.sub(f"{MASK}@", url)) for url in urls.split(";"))


def masked_within(value: object) -> object:
    """As `masked`, for strings within lists, tuples and dicts too; other values stay."""
    match value:
        case str():
            return masked(value)
        case dict():
            return {key: masked_within(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(masked_within, value)) if type(value) in (list, tuple) else value
    return value
