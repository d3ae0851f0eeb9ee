"""Identifiers: UUIDv7 (RFC 9562), shown to people with a prefix that names the noun.

Version 7 starts with a millisecond timestamp, so that new rows land at the right-hand
edge of an index instead of all over it.
"""

import secrets
import string
import time
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID, uuid5

from turnmill.schemas.errors import InvalidInput


class Prefix(StrEnum):
    TURN = "turn"
    CONVERSATION = "conv"
    BATCH = "batch"
    KEY = "key"
    DELIVERY = "dlv"
    WORKER = "worker"
    GAP = "gap"
    FILE = "file"
    DOCUMENT = "doc"
    VECTOR_STORE = "vs"
    FILE_BATCH = "vsfb"


#: Digits of an id that may stand for all of it.
MIN_PREFIX_DIGITS = 4


def new_id() -> UUID:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return UUID(int=value)


def first_id(at: datetime) -> UUID:
    """The lowest UUIDv7 of this millisecond; sorts before every id made then or later."""
    return UUID(int=round(at.timestamp() * 1000) << 80)


def time_of(value: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond."""
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)


def derived_id(namespace: UUID, *names: str) -> UUID:
    """The same UUID for the same names, so that a retried insert meets its first try."""
    return uuid5(namespace, "\x1f".join(names))


def show_id(prefix: Prefix, value: UUID) -> str:
    return f"{prefix}_{value.hex}"


def parse_id(prefix: Prefix, text: str) -> UUID:
    """Read `turn_<32 hex digits>`; raises `InvalidInput` for anything else."""
    head, _, digits = text.partition("_")
    if head == prefix and len(digits) == 32:
        try:
            return UUID(hex=digits)
        except ValueError:
            pass
    raise InvalidInput(f"'{text[:80]}' is not an id of the form {prefix}_<32 hex digits>.")


def id_range(prefix: Prefix, text: str) -> tuple[UUID, UUID]:
    """Return the first and the last id that start like this: `turn_01a2`, `01a2` or a whole id.

    Raises:
        InvalidInput: it is not the start of an id.
    """
    digits = text.strip().lower().removeprefix(f"{prefix}_").replace("-", "")
    if not MIN_PREFIX_DIGITS <= len(digits) <= 32 or not set(digits) <= set(string.hexdigits):
        raise InvalidInput(
            f"'{text[:80]}' is not the start of a {prefix.name.lower()}'s id: "
            f"{prefix}_ and {MIN_PREFIX_DIGITS} to 32 hex digits."
        )
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
